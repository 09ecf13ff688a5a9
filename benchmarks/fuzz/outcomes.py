"""Outcomes of reading a mutant: it is read, it is rejected with a clear message, or there is a finding."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

import fastmlp
from benchmarks.fuzz.samples import Sample
from fastmlp.errors import FastMLPError, UnavailableError, printable

READ, REFUSED = "read", "refused"
EXCEPTION, CRASH, HANG, MEMORY, MESSAGE = "exception", "crash", "hang", "memory", "message"
WRITES, WARNING, OUTPUT = "writes", "warning", "output"
FINDINGS = (EXCEPTION, CRASH, HANG, MEMORY, MESSAGE, WRITES, WARNING, OUTPUT)
SECONDS = 10.0  # limit of CPU time per file
WAITING = 6  # limit of wall-clock time as a multiple of SECONDS, such as for reading a FIFO
SPARE_BYTES = 100 * 10**6  # memory that a reader may use in addition to twice the size of the file
UNPACKED_BYTES = 1 << 30  # additional memory for formats that are compressed or declare a size, such as images
PACKAGE = Path(fastmlp.__file__).parent
LONGEST = 600  # characters of a message, without the folder of the file
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
# Audit events (see "Audit events table" in the documentation of Python) of calls that no reader may make.
FORBIDDEN = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "tempfile.mkstemp",
)
FORBIDDEN += (
    "shutil.copyfile",
    "shutil.move",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.putenv",
)
FORBIDDEN += ("socket.connect", "socket.getaddrinfo", "socket.bind", "pickle.find_class", "webbrowser.open")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Target(NamedTuple):
    """A reader and its samples, in a form that can be sent to another process."""

    name: str
    read: Callable[[Path], Any]
    samples: list[Sample]
    names_file: bool = True
    expands: bool = False
    prints: bool = False


class Outcome(NamedTuple):
    """The outcome of one mutant.

    kind : READ, REFUSED, or one of FINDINGS
    error : the type of an exception, or what is wrong
    frame : the innermost frame of an exception, as file:function
    message : the message of an exception
    seconds, grown : duration, and the increase of the peak memory in bytes
    """

    kind: str
    error: str = ""
    frame: str = ""
    message: str = ""
    seconds: float = 0.0
    grown: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        """(kind, error, frame), by which findings of a reader are deduplicated."""
        return self.kind, self.error, self.frame


class Hung(BaseException):
    """A reader took too long. It is not an Exception, so that no reader catches it."""


class Watch:
    """An audit hook that collects forbidden calls while `active` is true; hooks cannot be removed."""

    def __init__(self) -> None:
        self.active, self.found = False, ""
        sys.addaudithook(self.audit)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            self.found = f"open {Path(str(arguments[0])).name} for writing"
        elif event in FORBIDDEN:
            self.found = event


_watches: list[Watch] = []


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    """Context manager that collects forbidden calls."""
    if not _watches:
        _watches.append(Watch())
    watch = _watches[0]
    watch.active, watch.found = True, ""
    try:
        yield watch
    finally:
        watch.active = False


@contextlib.contextmanager
def alarm(seconds: float | None) -> Iterator[None]:
    """Context manager that raises Hung after a CPU time, or after WAITING times as many seconds.

    It needs the main thread, and does not interrupt code that holds the lock of the interpreter.

    seconds : None to do nothing
    """
    if seconds is None:
        yield
        return

    def ring(*given: Any) -> NoReturn:
        raise Hung

    before = {one: signal.signal(one, ring) for one in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WAITING * seconds)
    try:
        yield
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        for one, handler in before.items():
            signal.signal(one, handler)


def peak_bytes() -> int:
    """Return the peak of the resident memory since `reset_peak` was called, or since the process was started.

    On Linux, `ru_maxrss` is not used, because it is at least the memory of the process that started this one.
    """
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    status = STATUS.read_bytes()
    return int(status[status.index(b"VmHWM:") + 6 :].split(None, 1)[0]) * 1024


def reset_peak() -> int:
    """Reset the peak of the resident memory to its current size if the system can do this (Linux), and return the peak."""
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")
    return peak_bytes()


def frame_of(trace: TracebackType | None) -> str:
    """Return the innermost frame of a traceback as file:function, except the signal handler of `alarm`."""
    inner = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename != __file__:
            inner = f"{'/'.join(Path(code.co_filename).parts[-2:])}:{code.co_name}"
        trace = trace.tb_next
    return inner


def write_sample(sample: Sample, place: Path) -> Path:
    """Write the files of a sample to an empty folder, which is created, and return the path for the reader."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for name, data in sample.files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    target = place / sample.target
    if not sample.files:
        target.mkdir()
    return target


def size_of(sample: Sample) -> int:
    return sum(map(len, sample.files.values()))


def is_refusal(error: BaseException) -> bool:
    """Return whether an exception is one of fastmlp, or of fastmlp.cnn, which is only imported with PyTorch."""
    cnn = sys.modules.get("fastmlp.cnn.errors")
    return isinstance(error, FastMLPError) or (cnn is not None and isinstance(error, cnn.CNNError))


def fault_of_message(message: str, path: Path, names_file: bool) -> str:
    """Return what is wrong with the message of a refusal; "" for a good message."""
    if not message:
        return "no message"
    if printable(message) != message:
        return "several lines" if len(message.splitlines()) > 1 else "control characters"
    if len(message.replace(str(path.parent), "")) > LONGEST:
        return f"longer than {LONGEST} characters"
    return "" if not names_file or path.name in message else "does not name the file"


def check(target: Target, path: Path, size: int, seconds: float | None = SECONDS, output: int | None = None) -> Outcome:
    """Read a path, and return the outcome.

    size : size of the files in bytes
    seconds : limit of `alarm`; None for no limit
    output : descriptor of a file to which the standard streams of the process are redirected, if this is so
    """
    before, started = reset_peak(), time.perf_counter()
    printed = 0 if output is None else os.fstat(output).st_size
    with warnings.catch_warnings(record=True) as caught, watched() as watch:
        warnings.simplefilter("always")
        try:
            with alarm(seconds):
                target.read(path)
            outcome = Outcome(READ)
        except KeyboardInterrupt:
            raise
        except Hung as error:
            outcome = Outcome(HANG, "", frame_of(error.__traceback__))
        except BaseException as error:  # a panic of a library in Rust is not a subclass of Exception
            outcome = outcome_of(error, path, target.names_file)
    grown = peak_bytes() - before
    if outcome.kind in (READ, REFUSED):
        # Other warnings, such as those of libraries about damaged files that they can read, are for the user.
        ours = [one for one in caught if PACKAGE in Path(one.filename).parents]
        unexpected = [one for one in ours if not issubclass(one.category, RuntimeWarning | UserWarning)]
        if grown > 2 * size + SPARE_BYTES + UNPACKED_BYTES * target.expands:
            outcome = outcome._replace(kind=MEMORY, error="")
        elif watch.found:
            outcome = Outcome(WRITES, watch.found)
        elif unexpected:
            one = unexpected[0]
            place = "/".join(Path(one.filename).parts[-2:])
            outcome = Outcome(WARNING, one.category.__name__, f"{place}:{one.lineno}", str(one.message))
        elif output is not None and not target.prints and os.fstat(output).st_size > printed:
            outcome = Outcome(OUTPUT, os.pread(output, 200, printed).decode("utf-8", "replace").split(":")[0][:60])
    return outcome._replace(seconds=time.perf_counter() - started, grown=grown)


def outcome_of(error: BaseException, path: Path, names_file: bool) -> Outcome:
    """Return the outcome of a reader that raised an exception."""
    name, frame, message = type(error).__name__, frame_of(error.__traceback__), str(error)
    fault = fault_of_message(message, path, names_file and not isinstance(error, UnavailableError))
    message = message.replace(f"{path.parent}/", "")
    if not is_refusal(error):
        return Outcome(EXCEPTION, name, frame, message)
    return Outcome(MESSAGE, fault, frame, message) if fault else Outcome(REFUSED, name, frame, message)
