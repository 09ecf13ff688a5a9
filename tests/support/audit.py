"""Audit hook that records what readers and commands must not do: run code from data, write elsewhere, start processes, connect.

A hook cannot be removed, so it runs in child processes: `python -m support.audit PROGRAM FOLDER [JSON]` calls one of the
functions at the end of this file, and writes the violations that it returns to the file found.json in the folder.

Python raises audit events for these actions only in its own functions. What libraries do in C is not seen, so the tests also
compare the files before and after.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import ctypes.util
import json
import marshal
import os
import pickle
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, cast

import msgspec._utils

from fastmlp.commands.program import program
from support.processes import ROOT
from support.samples import READERS, write_hostile

CODE = {"pickle.find_class", "exec", "compile", "marshal.load", "marshal.loads", "code.__new__", "ctypes.dlopen", "import"}
PROCESSES = {f"os.{name}" for name in ("exec", "fork", "forkpty", "posix_spawn", "spawn", "system")} | {"subprocess.Popen"}
CONNECTIONS = {f"socket.{name}" for name in ("bind", "connect", "getaddrinfo", "gethostbyname", "sendmsg", "sendto")}
# Events that change files, with the positions of a path and of the descriptor to which it is relative, in their arguments.
CHANGES: dict[str, tuple[tuple[int, int], ...]] = {
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.link": ((1, 3),),
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.rmdir": ((0, 1),),
    "os.symlink": ((1, 2),),
    "os.utime": ((0, 3),),
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Files whose functions read data, models and settings. In the process of a command, code must not be run while one is called.
READING = tuple(str(ROOT / part) for part in ("fastmlp/data/", "fastmlp/files/", "fastmlp/models/file.py", "cnn/files.py"))
COMPILER = str(ROOT / "fastmlp" / "engines" / "cpu" / "codegen")
CACHE = str(ROOT / "fastmlp" / "engines" / "kernel_cache.py")
# Code that starts processes in a command: kernels are compiled in a forked process, and matplotlib asks fontconfig for fonts.
STARTERS = (f"{COMPILER}/fork.py", f"{sysconfig.get_path('purelib')}/matplotlib/font_manager.py")
# Code that runs other code of installed packages: imports, and msgspec, which evaluates the type annotations of a class once.
IMPORT = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>", msgspec._utils.__file__)


def frames() -> Iterator[tuple[CodeType, FrameType]]:
    """Yield the frames of the code that raised an audit event, from the innermost one."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            yield frame.f_code, frame
        frame = frame.f_back


def called_from(*files: str) -> bool:
    """Return whether code of one of the files or folders called the code that raised an audit event."""
    return any(code.co_filename.startswith(files) for code, _ in frames())


class Audit:
    """Audit hook that appends violations to `found` as [name of the reader or command, event, arguments].

    allowed : folders and files that may be written
    reading : whether all code is that of a reader; if not, only that in the stack of `READING`
    imports : whether packages may be imported, which runs code
    """

    def __init__(self, allowed: tuple[Path, ...] = (), *, reading: bool, imports: bool) -> None:
        self.allowed, self.reading, self.imports = allowed, reading, imports
        self.name = ""
        self.found: list[list[str]] = []
        sys.addaudithook(self)

    @contextlib.contextmanager
    def watch(self, name: str) -> Iterator[None]:
        """Record the violations in the context."""
        self.name = name
        try:
            yield
        finally:
            self.name = ""

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Record a violation; see sys.addaudithook."""
        if self.name and self.violates(event, args):
            name, self.name = self.name, ""  # the text of the arguments may cause further events
            self.found.append([name, event, str(args)[:300]])
            self.name = name

    def violates(self, event: str, args: tuple[Any, ...]) -> bool:
        """Return whether an event is a violation."""
        if event in CODE:
            return self.runs_code(event, args)
        if event in PROCESSES:
            return self.reading or not called_from(*STARTERS)
        if event in CONNECTIONS:
            return True
        if event == "open":
            path, _, flags = args
            if not isinstance(flags, int) or not flags & WRITING or isinstance(path, int):
                return False
            # The event lacks the descriptor of the folder; test_cache_folder.py tests the place of these files.
            return not (next(frames())[0].co_filename == CACHE and not self.reading) and not self.may_write(path)
        return any(not self.may_write(args[path], args[folder]) for path, folder in CHANGES.get(event, ()))

    def runs_code(self, event: str, args: tuple[Any, ...]) -> bool:
        """Return whether code is run that may come from a file that is read."""
        if event == "ctypes.dlopen" and args[0] is None:  # the process itself
            return False
        if event == "pickle.find_class" and not self.reading:  # cached kernels, and Numba's copies of functions
            return not called_from(COMPILER)
        found = list(frames())
        if event == "compile" and found[0][0] is ast.parse.__code__ and found[0][1].f_locals["flags"] & ast.PyCF_ONLY_AST:
            return False  # ast.literal_eval, with which NumPy parses headers: the text is parsed, but not compiled or run
        for code, _ in found:
            if self.imports and (code.co_filename in IMPORT or event == "import"):  # of an installed package
                return False
            if not self.reading and code.co_filename.startswith(READING) and code.co_name != "<module>":
                return True
        return self.reading

    def may_write(self, path: Any, folder: int = -1) -> bool:
        """Return whether a file may be written; the path may be relative to the descriptor of a folder, unless it is -1."""
        base = Path.cwd() if folder == -1 else Path(f"/proc/self/fd/{folder}").readlink()
        given = base / os.fsdecode(path)
        place = given.parent.resolve() / given.name  # a link itself, not the file to which it leads
        return any(place.is_relative_to(one) for one in self.allowed)


# ------------------------------------------------------------------------------------------------ programs


def readers(folder: Path) -> list[list[str]]:
    """Read every sample in `folder / "samples"` and every hostile file, twice; the second time, no package may be imported."""
    (folder / "hostile").mkdir()
    hostile = write_hostile(folder / "hostile")
    calls: dict[str, Callable[[], object]] = {name: partial(read, folder / "samples") for name, read in READERS.items()}
    calls |= {f"hostile {name}": partial(refused, read) for name, read in hostile.items()}
    audit = Audit(reading=True, imports=True)
    for _ in range(2):
        for name, call in calls.items():
            with audit.watch(name):
                call()
        audit.imports = False
    assert not (folder / "hostile" / "executed").exists()
    return audit.found


def refused(read: Callable[[], object]) -> None:
    """Check that a hostile file is refused with an error that is meant for users."""
    try:
        read()
    except Exception as error:
        assert getattr(error, "exit_code", 1) == 3, error
    else:
        raise AssertionError("a hostile file was read")


def violations(folder: Path) -> list[list[str]]:
    """Violate each rule once; the name of the violation is the event that must be found."""
    path, code = str(folder / "file"), compile("1", "code", "eval")
    calls: dict[str, Callable[[], object]] = {
        "pickle.find_class": partial(pickle.loads, pickle.dumps(Path)),
        "exec": partial(eval, code),
        "compile": partial(compile, "1", "text", "eval"),
        "marshal.loads": partial(marshal.loads, marshal.dumps(1)),
        "code.__new__": code.replace,
        "ctypes.dlopen": partial(ctypes.CDLL, ctypes.util.find_library("m")),
        "import": partial(__import__, "there_is_no_such_module"),
        "open": Path(path).touch,
        "os.chmod": partial(os.chmod, path, 0o600),
        "os.rename": partial(os.rename, path, path),
        "os.symlink": partial(os.symlink, path, f"{path}-link"),
        "os.remove": partial(os.remove, path),
        "os.mkdir": partial(os.mkdir, path),
        "os.rmdir": partial(os.rmdir, path),
        "os.system": partial(os.system, "true"),
        "os.fork": lambda: os.waitpid(os.fork() or os._exit(0), 0),
        "subprocess.Popen": partial(subprocess.run, ["true"], check=True),
        "socket.connect": partial(socket.socket().connect_ex, ("127.0.0.1", 9)),
        "socket.getaddrinfo": partial(socket.getaddrinfo, "127.0.0.1", 9),
    }
    audit = Audit(reading=True, imports=False)
    for name, call in calls.items():
        with audit.watch(name), contextlib.suppress(ImportError):
            call()
    return audit.found


def violations_of_commands(folder: Path) -> list[list[str]]:
    """Violate the rules for commands; the name is "allowed", or the event that must be found."""

    def called_in(file: str, text: str, **names: object) -> Callable[[], object]:
        """Return a function that evaluates a text and that seems to be defined in a file of the repository."""
        exec(compile(f"def call():\n    return {text}", str(ROOT / file), "exec"), names)
        return cast(Callable[[], object], names["call"])

    code, pickled = compile("1", "code", "eval"), pickle.dumps(Path)
    reader, other, kernels = "fastmlp/data/readers/new.py", "fastmlp/training/new.py", "fastmlp/engines/cpu/codegen/cache.py"
    calls: list[tuple[str, Callable[[], object]]] = [
        ("exec", called_in(reader, "eval(code)", code=code)),
        ("allowed", called_in(other, "eval(code)", code=code)),
        ("pickle.find_class", called_in(reader, "loads(data)", loads=pickle.loads, data=pickled)),
        ("pickle.find_class", called_in(other, "loads(data)", loads=pickle.loads, data=pickled)),
        ("allowed", called_in(kernels, "loads(data)", loads=pickle.loads, data=pickled)),
        ("subprocess.Popen", called_in(other, "run(['true'])", run=subprocess.run)),
        ("allowed", called_in("fastmlp/engines/cpu/codegen/fork.py", "run(['true'])", run=subprocess.run)),
        ("socket.getaddrinfo", called_in(kernels, "find('127.0.0.1', 9)", find=socket.getaddrinfo)),
        ("open", called_in(other, "path.write_text('')", path=folder / "elsewhere")),
        ("allowed", called_in(other, "path.write_text('')", path=folder / "allowed" / "file")),
        ("os.remove", called_in(other, "path.unlink()", path=folder / "elsewhere")),
    ]
    audit = Audit(((folder / "allowed").resolve(),), reading=False, imports=True)
    for name, call in calls:
        with audit.watch(name):
            call()
    return audit.found


def commands(folder: Path, lines: list[list[str]]) -> list[list[str]]:
    """Run commands in this process; files may be written only in `folder / "allowed"` and its subfolders."""
    audit = Audit(((folder / "allowed").resolve(), Path(os.devnull)), reading=False, imports=True)
    for arguments in lines:
        with audit.watch(" ".join(arguments)):
            assert program(arguments, standalone_mode=False) in (None, 0), arguments
    return audit.found


if __name__ == "__main__":
    import torch  # noqa: F401 - its import starts a process, and loads libraries

    found = globals()[sys.argv[1]](Path(sys.argv[2]), *map(json.loads, sys.argv[3:]))
    Path(sys.argv[2], "found.json").write_text(json.dumps(found))
