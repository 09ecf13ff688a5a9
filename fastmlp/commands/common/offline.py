"""FASTMLP_OFFLINE on the command line: an audit hook that blocks connections of this process, including those of libraries.

Only data/download.py connects to other machines, and it refuses downloads with a message that contains the file and its folder.
The hook covers everything else that uses Python's sockets.
"""

from __future__ import annotations

import sys
from typing import Any

from fastmlp.data.download import is_offline
from fastmlp.errors import UnavailableError

# Audit events of connections and of look-ups, whose first argument is a name or a URL: https://docs.python.org/3/library/audit_events.html
SOCKET_EVENTS = ("socket.connect", "socket.sendto", "socket.sendmsg")  # arguments: the socket, the address
LOOKUP_EVENTS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "urllib.Request")


class OfflineError(UnavailableError):
    """FASTMLP_OFFLINE forbids a connection."""


def forbid_connections() -> None:
    """If FASTMLP_OFFLINE is set, refuse connections until the process ends, because audit hooks cannot be removed."""
    if is_offline():
        sys.addaudithook(refuse)


def refuse(event: str, args: tuple[Any, ...]) -> None:
    """Audit hook that raises OfflineError for connections other than those to sockets of this machine (AF_UNIX)."""
    if event in SOCKET_EVENTS:
        import socket

        if args[0].family == getattr(socket, "AF_UNIX", None):
            return
        target = ":".join(map(str, args[1][:2])) if isinstance(args[1], tuple) else args[1]
    elif event in LOOKUP_EVENTS and not str(args[0]).startswith(("file:", "data:")):  # such URLs need no connection
        target = args[0]
    else:
        return
    raise OfflineError(f"FASTMLP_OFFLINE forbids the connection to {target}; unset it to allow connections")


def refused_connection(error: BaseException | None) -> OfflineError | None:
    """Return the OfflineError that led to an exception, since libraries may raise an exception of their own instead."""
    while error is not None and not isinstance(error, OfflineError):
        error = error.__cause__ or error.__context__
    return error
