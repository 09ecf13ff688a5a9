"""The folder of checkpoints of a training run: when they are written, how many are kept, and where the run is resumed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from fastmlp.engines.base import Engine
from fastmlp.engines.environment import numerical_environment
from fastmlp.errors import ConfigError, DataError, printable
from fastmlp.files import make_folders
from fastmlp.files.locks import locked_folder
from fastmlp.files.reading import file_errors, given_path, is_file, real_path
from fastmlp.models.file import files_in
from fastmlp.nn.checks import check_number
from fastmlp.training.checkpoints.compare import activation_digests, check_environment, check_same, data_digest, settings_table
from fastmlp.training.checkpoints.file import (
    VERSION,
    Checkpoint,
    Record,
    StoredCheckpoint,
    files_of,
    read_newest,
    write,
)
from fastmlp.training.settings import Task

KEPT = 2  # number of checkpoints that are kept: if the last one is damaged, the run is resumed from the one before
DEFAULT_SECONDS = 20.0


class Checkpoints:
    """Folder of checkpoints that a training run writes, and the checkpoint from which it is resumed.

    Parameters
    ----------
    task : the training run
    folder : folder of the checkpoints, which is created; None to write none
    seconds : a checkpoint is written after an epoch if the last one is at least this old
    start : checkpoint from which the run is resumed; None to start from the beginning
    strict : whether the engine must be the one of `start`, see `check_environment`

    Raises
    ------
    ConfigError : `seconds` is invalid
    """

    def __init__(
        self,
        task: Task,
        folder: Path | None = None,
        seconds: float = DEFAULT_SECONDS,
        start: StoredCheckpoint | None = None,
        *,
        strict: bool = False,
    ) -> None:
        check_number("checkpoint_seconds", seconds, lambda value: value >= 0, "zero or a positive number of seconds")
        self.task, self.folder, self.seconds, self.start, self.strict = task, folder, seconds, start, strict
        self.written = time.monotonic()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Context manager that creates the folder and locks it against other training runs; not needed in a locked run folder.

        Raises
        ------
        ConfigError : another training run is writing to the folder
        WriteError : the folder cannot be created or locked
        """
        if self.folder is None:
            yield
            return
        make_folders(self.folder)
        with ExitStack() as stack:
            with file_errors("lock", self.folder):
                found = stack.enter_context(locked_folder(self.folder))
            if found is False:
                raise ConfigError(
                    f"checkpoints: another training run is writing to {self.folder}; wait until it has ended, or use another "
                    "folder"
                )
            yield

    def begin(self, engine: Engine) -> Checkpoint | None:
        """Create the folder, start the clock, and return the checkpoint from which the run is resumed, or None.

        Raises the exceptions of `check_same` and `check_environment`, and WriteError if the folder cannot be created.
        """
        if self.folder is not None:
            make_folders(self.folder)
        self.written = time.monotonic()
        if self.start is None:
            return None
        check_same(self.start, self.task, self.data)
        check_environment(self.start, numerical_environment(engine), strict=self.strict)
        return self.start.checkpoint

    @cached_property
    def data(self) -> str:
        """The `data_digest` of the training data, computed when it is first needed."""
        return data_digest(self.task.data)

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is at least `seconds` old."""
        return self.folder is not None and time.monotonic() - self.written >= self.seconds

    def _has(self, checkpoint: Checkpoint) -> bool:
        """Return whether nothing was trained since the run was resumed from a checkpoint in the same folder."""
        start = self.start
        return start is not None and start.path.parent == self.folder and start.checkpoint.state.step == checkpoint.state.step

    def write(self, checkpoint: Checkpoint, engine: Engine) -> None:
        """Write a checkpoint, then remove all but the newest `KEPT`; raise WriteError if it cannot be written.

        Only called if there is a folder, since a checkpoint contains copies of all weights and slots.

        Warns
        -----
        RuntimeWarning : an old checkpoint cannot be removed; this takes space, but is no reason to end a training
        """
        assert self.folder is not None
        if self._has(checkpoint):
            return
        partial = checkpoint.partial and {
            name: value for name, value in checkpoint.partial._asdict().items() if name != "metrics"
        }
        record = Record(
            VERSION,
            checkpoint.state.step,
            checkpoint.best_epoch,
            settings_table(self.task.settings),
            activation_digests(self.task),
            self.data,
            numerical_environment(engine),
            checkpoint.history,
            partial,
        )
        write(self.folder / f"step-{checkpoint.state.step:012d}.safetensors", checkpoint, record)
        try:
            for path in files_in(self.folder)[:-KEPT]:
                path.unlink(missing_ok=True)
        except OSError as error:
            text = f"{self.folder}: old checkpoints cannot be removed ({error.strerror})"
            warnings.warn(printable(text), RuntimeWarning, stacklevel=2)
        self.written = time.monotonic()


def check_newest(found: Sequence[Path], into: Path | None) -> None:
    """Raise ConfigError if a folder has checkpoints that are newer than those from which a run is resumed.

    Only the checkpoints with the most updates are kept, so each checkpoint of this run would be removed at once.
    """
    newest = files_in(into)[-1:] if into is not None else []
    if newest and real_path(newest[0]) not in [real_path(path) for path in found]:
        raise ConfigError(
            f"{into} has checkpoints of another training run, or newer ones, such as {newest[0].name}; resume from them with "
            "resume=True, or use another folder"
        )


def open_checkpoints(
    task: Task, folder: str | Path | bool | None, seconds: float, resume: str | Path | bool | None, strict: bool
) -> Checkpoints:
    """Return the checkpoints of a training run for the arguments `checkpoints`, `resume` … of `api.train`.

    Raises
    ------
    ConfigError : the arguments contradict each other, or `folder` has checkpoints of an earlier training run
    DataError : there is no checkpoint at `resume`, or it is damaged
    """
    if folder is True:
        raise ConfigError("checkpoints must be the path of a folder, not True; write checkpoints='checkpoints'")
    into = None if folder is None or folder is False else given_path("checkpoints", folder)
    if resume is True:
        if into is None:
            raise ConfigError(
                "resume=True needs the folder of the checkpoints; write checkpoints='checkpoints', or give the path of a "
                "checkpoint as resume"
            )
        found = files_in(into)
    elif resume is not None and resume is not False:
        path = given_path("resume", resume)
        found = [path] if is_file(path) else files_of(path)
        if not found:
            raise DataError(f"no checkpoint in {path}; check the path, or leave out resume to train from the beginning")
        check_newest(found, into)
    elif into is not None and files_in(into):
        raise ConfigError(
            f"{into} has checkpoints of an earlier training run; resume it with resume=True, or use another folder"
        )
    else:
        found = []
    return Checkpoints(task, into, seconds, read_newest(found) if found else None, strict=strict)
