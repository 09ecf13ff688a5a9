"""Tests of FASTMLP_OFFLINE with a local server, which must see no connection."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.processes import ROOT

from fastmlp.commands.common.offline import OfflineError, refuse, refused_connection
from fastmlp.data.download import NOT_OFFLINE, is_offline
from fastmlp.errors import DataError
from fastmlp.experiments.config.fields import BOOLEAN_WORDS


class Server(ThreadingHTTPServer):
    """A server that answers every request with status 404 and counts the connections."""

    connections = 0

    def verify_request(self, request: object, client_address: object) -> bool:
        self.connections += 1
        return True


class Handler(BaseHTTPRequestHandler):
    """Request handler that knows no path."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


# Runs the command line with a local mirror of MNIST. The first argument is Python code that runs before the program.
PROGRAM = """
import sys
from fastmlp.commands import main
from fastmlp.commands.common import offline
from fastmlp.data import download, named
code, url = sys.argv.pop(1), sys.argv.pop(1)
named.DATASETS["mnist"] = named.DATASETS["mnist"]._replace(mirrors=(url,))
exec(code)
main()
"""
UNCHECKED = "download.is_offline = lambda: False"  # only the audit hook is left
LIBRARY = """
import urllib.request
from fastmlp.commands.data import data
def call(*given, **named):
    {}
data.commands["list"].callback = call
"""
ASKS = "print(urllib.request.urlopen(url).status)"
WRAPS = f"""
    try:
        {ASKS}
    except Exception as error:
        raise LookupError("a message of a library") from error"""
HIDES = WRAPS.replace("from error", "from None")
SWALLOWS = WRAPS.replace('raise LookupError("a message of a library") from error', "print('no newer version')")
CONNECTS = "import socket; socket.create_connection(('127.0.0.1', int(url.split(':')[2].strip('/'))))"
IN_A_FILE = "import pathlib; print(urllib.request.urlopen(pathlib.Path('{}').as_uri()).read())"
ON_THIS_MACHINE = """
    import socket, threading
    listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    listener.bind("here"); listener.listen(); client.connect("here"); print("connected")"""


def run(server: Server, folder: Path, code: str, *arguments: str, offline: str = "1") -> subprocess.CompletedProcess[str]:
    url = f"http://127.0.0.1:{server.server_port}/"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {"FASTMLP_OFFLINE": offline, "FASTMLP_DATA": str(folder / "data"), "PYTHONPATH": path, "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, code, url, *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.full
@pytest.mark.parametrize("code", ["", UNCHECKED], ids=["download", "hook"])
@pytest.mark.parametrize("command", [["data", "fetch", "mnist", "-q"], ["train", "--data", "mnist", "-q"]], ids="/".join)
def test_offline_nothing_is_downloaded(command: list[str], code: str, server: Server, tmp_path: Path) -> None:
    done = run(server, tmp_path, code, *command)
    assert (done.returncode, done.stdout, server.connections) == (4, "", 0)
    (line,) = done.stderr.splitlines()
    assert line.startswith("fastmlp: error: ")
    assert "FASTMLP_OFFLINE forbids" in line
    if code == UNCHECKED:
        assert "the connection to 127.0.0.1;" in line
    else:
        assert "train-images-idx3-ubyte.gz" in line
        assert f"copy the files to {tmp_path / 'data' / 'MNIST' / 'raw'}" in line


@pytest.mark.full
@pytest.mark.parametrize("offline", ["", "0", "No"])
def test_otherwise_the_server_is_asked(offline: str, server: Server, tmp_path: Path) -> None:
    done = run(server, tmp_path, "", "data", "fetch", "mnist", "-q", offline=offline)
    assert (done.returncode, server.connections) == (4, 1)
    assert "(HTTP 404)" in done.stderr


@pytest.mark.full
@pytest.mark.parametrize("body", [ASKS, CONNECTS, WRAPS, HIDES], ids=["asks", "connects", "wraps", "hides"])
def test_a_library_that_connects_is_refused_with_one_line(body: str, server: Server, tmp_path: Path) -> None:
    done = run(server, tmp_path, LIBRARY.format(body), "data", "list")
    assert (done.returncode, done.stdout, server.connections) == (4, "", 0)
    (line,) = done.stderr.splitlines()
    assert line.startswith("fastmlp: error: FASTMLP_OFFLINE forbids the connection to ")
    assert "127.0.0.1" in line


@pytest.mark.full
def test_a_library_may_continue_without_its_connection(server: Server, tmp_path: Path) -> None:
    done = run(server, tmp_path, LIBRARY.format(SWALLOWS), "data", "list")
    assert (done.returncode, done.stdout, done.stderr, server.connections) == (0, "no newer version\n", "", 0)


@pytest.mark.full
def test_files_and_sockets_of_this_machine_are_allowed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    done = run(server, tmp_path, LIBRARY.format(IN_A_FILE.format(tmp_path / "a.txt")), "data", "list")
    assert (done.returncode, done.stdout) == (0, "b'text'\n"), done.stderr
    done = run(server, tmp_path, LIBRARY.format(ON_THIS_MACHINE), "data", "list")
    assert (done.returncode, done.stdout) == (0, "connected\n"), done.stderr


def test_values_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTMLP_OFFLINE", raising=False)
    assert not is_offline()
    for word, means in {**BOOLEAN_WORDS, "": False, "TRUE": True, "Off": False, "2": True, "anything": True}.items():
        monkeypatch.setenv("FASTMLP_OFFLINE", word)
        assert is_offline() is means
    assert set(NOT_OFFLINE) == {"", *(word for word, means in BOOLEAN_WORDS.items() if not means)}


@pytest.mark.parametrize(
    ("family", "event", "address", "named"),
    [
        (socket.AF_INET, "socket.connect", ("localhost", 80), "localhost:80"),
        (socket.AF_INET6, "socket.connect", ("::1", 80, 0, 0), "::1:80"),
        (socket.AF_INET, "socket.sendto", ("1.2.3.4", 53), "1.2.3.4:53"),
        (socket.AF_INET, "socket.sendmsg", ("1.2.3.4", 53), "1.2.3.4:53"),
    ],
)
def test_addresses_are_named(family: int, event: str, address: tuple[object, ...], named: str) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as one, pytest.raises(OfflineError, match=f"to {named};"):
        refuse(event, (one, address))


@pytest.mark.parametrize("event", ["socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "urllib.Request"])
def test_names_are_not_looked_up(event: str) -> None:
    with pytest.raises(OfflineError, match=r"to example\.org;"):
        refuse(event, ("example.org", 80))


def test_other_events_are_allowed() -> None:
    refuse("open", ("example.org", "r", 0))
    refuse("socket.gethostname", ())


def test_an_error_without_a_refused_connection_is_unchanged() -> None:
    assert refused_connection(DataError("bad file")) is None
    assert refused_connection(None) is None
