"""The command line in a process that reports its phase, and can kill itself at a chosen call:

python -m benchmarks.durability.child DESCRIPTOR FOLDER CALL PART ARGUMENT…

It calls `fastmlp.commands.main`, as the console script does, with the given arguments. The phase is written to the file that
is open as DESCRIPTOR (`Status`). Calls that change files in FOLDER are counted, unless FOLDER is "-". CALL is the number of
the call at which the process kills itself, or 0; if it is negative, only calls in the phases `SAVING` are counted. PART is
"before", "half" (of the data of a write) or "after".

The first phase is reported before `main` is called, which imports the rest of fastmlp and all other packages.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import os
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from benchmarks.durability.calls import Call


PHASES = ("interpreter", "imports and data", "compilation", "settings", "training", "checkpoint", "result", "end")
# Functions by module: the phase while they run, and the phase after them.
FUNCTIONS = {
    "fastmlp.training.loop": {"Loop.compile": ("compilation", "imports and data"), "Loop.run": ("training", "result")},
    "fastmlp.experiments.record": {
        "RunCheckpoints.begin": ("settings", "training"),
        "RunCheckpoints.write": ("checkpoint", "training"),
    },
    "fastmlp.experiments.result": {"save_result": ("result", "end")},
}
COUNTED = ("open", "write", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir")
SAVING = ("checkpoint", "result")  # phases in which a checkpoint or the files of the result are saved
FORMAT = "<BII"


class Status(NamedTuple):
    """What a process reports: its phase, and the number of calls so far that change files of the run, and while saving."""

    phase: str
    calls: int
    saving_calls: int

    @staticmethod
    def read(descriptor: int) -> Status:
        """Read the status of a child from the file that it writes."""
        size = struct.calcsize(FORMAT)
        phase, *calls = struct.unpack(FORMAT, os.pread(descriptor, size, 0).ljust(size, b"\0"))
        return Status(PHASES[phase], *calls)


class Reporter(importlib.abc.MetaPathFinder):
    """Write the status, also when the functions in `FUNCTIONS` start and end. They are wrapped when their module is imported.

    descriptor : of the status file
    number, part : the call at which the process is killed, see above
    """

    def __init__(self, descriptor: int, number: int, part: str) -> None:
        self.descriptor, self.number, self.part = descriptor, number, part
        self.phase, self.calls, self.saving_calls, self.write = PHASES[0], 0, 0, os.write

    def report(self, phase: str) -> None:
        """Write the status."""
        self.phase = phase
        os.pwrite(self.descriptor, struct.pack(FORMAT, PHASES.index(phase), self.calls, self.saving_calls), 0)

    @property
    def chosen(self) -> bool:
        """Whether the last call is the one at which the process is killed."""
        if self.number < 0:
            return self.phase in SAVING and self.saving_calls == -self.number
        return self.calls == self.number

    def before(self, call: Call) -> None:
        """Count a call, and kill the process if it is the chosen one."""
        if call.name not in COUNTED:
            return
        self.calls += 1
        self.saving_calls += self.phase in SAVING
        self.report(self.phase)
        if self.chosen and self.part != "after":
            if call.name == "write" and self.part == "half":
                descriptor, data = call.arguments
                self.write(descriptor, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    def after(self, call: Call, result: Any) -> None:
        """Kill the process if the call is the chosen one."""
        if call.name in COUNTED and self.chosen:
            os.kill(os.getpid(), signal.SIGKILL)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the specification of a module of `FUNCTIONS`, with a loader that wraps the functions."""
        if fullname not in FUNCTIONS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for name, phases in FUNCTIONS[fullname].items():
                self.wrap(module, name, *phases)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def wrap(self, module: ModuleType, name: str, during: str, then: str) -> None:
        """Report the phases of a function or of a method."""
        *owner, last = name.split(".")
        place: Any = getattr(module, owner[0]) if owner else module
        function: Callable[..., Any] = getattr(place, last)

        def reported(*given: Any, **named: Any) -> Any:
            self.report(during)
            try:
                return function(*given, **named)
            finally:
                self.report(then)

        setattr(place, last, reported)


def main() -> None:
    descriptor, folder, number, part = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    sys.argv[1:5] = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored if the campaign runs in the background of a script
    reporter = Reporter(descriptor, number, part)
    sys.meta_path.insert(0, reporter)
    with contextlib.ExitStack() as stack:
        if folder != "-":
            from benchmarks.durability.calls import observed

            stack.enter_context(observed(Path(folder), reporter.before, reporter.after))
        from fastmlp.commands import main as command  # takes about 3 ms; all other imports are in `main`

        reporter.report("imports and data")
        command()


if __name__ == "__main__":
    main()
