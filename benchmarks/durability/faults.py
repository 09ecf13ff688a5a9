"""Fault injection: fail each call that changes a file of a run in turn: `fail_each`.

The method is that of SQLite's tests of I/O errors and of a full disk (https://sqlite.org/testing.html, section 3.2): a run is
repeated with a failure of call 1, 2, 3 … until it makes fewer calls. The failure occurs once, or from this call on.
"""

from __future__ import annotations

import errno
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.durability.calls import Call, observed, real
from benchmarks.durability.trials import Trial, check_best, check_continues, damaged, differences
from fastmlp.errors import FastMLPError

WRITING = ("open", "write", "fsync", "replace", "rename", "mkdir")
REMOVING = ("unlink", "rmdir")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EINTR)


class Fault:
    """Failure of a call, and of all later ones if it is persistent. A write that fails writes half of its data first.

    Parameters
    ----------
    number : of the call, from 1; only calls of the functions `names` are counted
    code : number of the error
    """

    def __init__(self, number: int, code: int, persistent: bool = False, names: Sequence[str] = WRITING) -> None:
        self.number, self.code, self.persistent, self.names = number, code, persistent, names
        self.calls = 0
        self.failed: Call | None = None

    def __call__(self, call: Call) -> None:
        """Count a call, and raise OSError if it fails."""
        if call.name not in self.names:
            return
        self.calls += 1
        if self.calls == self.number or (self.persistent and self.calls > self.number):
            self.failed = self.failed or call
            if call.name == "write":
                descriptor, data = call.arguments
                real.write(descriptor, data[: len(data) // 2])
            raise OSError(self.code, os.strerror(self.code), str(call.path))


class Outcome(NamedTuple):
    """What a fault did to a run: its error message, or "", its warnings, and what is wrong with its files."""

    fault: Fault
    message: str
    warned: list[str]
    wrong: list[str]


def fail_each(
    trial: Trial, folder: Path, code: int, persistent: bool = False, names: Sequence[str] = WRITING, *, step: int = 1
) -> Iterator[Outcome]:
    """Fail each call of a run in turn, or every `step`-th one, and yield the outcomes.

    Parameters
    ----------
    folder : run folder; everything else in its parent folder is removed
    code, persistent, names : see `Fault`
    """
    for number in itertools.count(1, step):
        outcome = fail(trial, folder, Fault(number, code, persistent, names))
        if outcome.fault.failed is None:
            return
        yield outcome


def fail(trial: Trial, folder: Path, fault: Fault) -> Outcome:
    """Run a trial with a fault, and check its error, the files that it leaves, and that it can be resumed."""
    trial.prepare(folder)
    message, wrong = "", []
    with observed(folder, fault), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trial.run(folder)
        except FastMLPError as error:
            message, wrong = str(error), check_error(error, folder)
    warned = [str(one.message) for one in caught]
    if fault.failed is None:
        return Outcome(fault, message, warned, wrong)
    if message:
        wrong += damaged(folder) + check_best(trial, folder, message)
        if not (folder / "config.toml").exists() and folder.exists() and any(folder.iterdir()):
            wrong.append(f"{folder} has no settings, but {sorted(path.name for path in folder.iterdir())}")
        wrong += check_continues(trial, folder)
    else:
        wrong += differences(folder, trial.reference.contents)
    name = f"{trial.name}, {errno.errorcode[fault.code]} in call {fault.number}{' and later' * fault.persistent}"
    name += f", {fault.failed.name} of {fault.failed.path.relative_to(folder.parent)}"
    return Outcome(fault, message, warned, [f"{name}: {line}" for line in wrong])


def check_error(error: FastMLPError, folder: Path) -> list[str]:
    """Check that an error has the exit code of file errors, and a message of one line that names a file of the run."""
    wrong = [] if error.exit_code == 3 else [f"exit code {error.exit_code}: {error}"]
    if "\n" in str(error) or str(folder) not in str(error):
        wrong.append(f"the message does not name the file in one line: {error}")
    return wrong
