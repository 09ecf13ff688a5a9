"""Power failures: record the calls that change the files of a run, and build the folders that a failure may leave: `Disk`.

POSIX promises only what was synchronized: the content of a file after fsync of the file, and the names in a folder (creation,
renaming and removal) after fsync of the folder. Anything later may be lost, may have happened, or may have happened in part.
ALICE (Pillai et al., All File Systems Are Not Created Equal, OSDI 2014) checks programs in this way.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from benchmarks.durability.calls import Call, observed
from benchmarks.durability.trials import Trial, check_continues, check_earlier, damaged, differences, has_settings
from fastmlp.engines.base import Engine
from fastmlp.errors import DataError
from fastmlp.experiments.folder import CONFIG_NAME, MANIFEST_NAME, METRICS_NAME
from fastmlp.experiments.record import RunCheckpoints
from fastmlp.training.checkpoints.file import Checkpoint, files_of, read

MIXED = 2  # number of states per call in which a random part of what was not synchronized is lost


class File:
    """A file: its content, and the content that was synchronized, b"" if it never was."""

    def __init__(self, content: bytes = b"") -> None:
        self.content, self.synced = bytearray(content), bytes(content)

    def lost(self) -> bytes:
        """Only what was synchronized."""
        return self.synced

    def whole(self) -> bytes:
        """Everything."""
        return bytes(self.content)

    def torn(self) -> bytes:
        """Half of what was not synchronized."""
        kept = self.common()
        return bytes(self.content[: kept + (len(self.content) - kept) // 2])

    def zeros(self) -> bytes:
        """The new length, but zeros instead of what was not synchronized, because its blocks were not written."""
        kept = self.common()
        return bytes(self.content[:kept]) + bytes(len(self.content) - kept)

    def common(self) -> int:
        """Length of the beginning of the content that was synchronized."""
        return len(self.synced) if self.content.startswith(self.synced) else 0


CONTENTS: list[Callable[[File], bytes]] = [File.lost, File.whole, File.torn, File.zeros]
Change = tuple[str | None, str | None, Any]  # removed name, added name, and the added file or folder


class Folder:
    """A folder: its entries, those that were synchronized, and the changes since then."""

    def __init__(self) -> None:
        self.entries: dict[str, File | Folder] = {}
        self.synced: dict[str, File | Folder] = {}
        self.changes: list[Change] = []

    def change(self, removed: str | None, added: str | None, entry: Any = None) -> None:
        """Remove a name and add another one; a renaming does both at once."""
        self.changes.append((removed, added, entry))
        apply(self.entries, self.changes[-1])

    def sync(self) -> None:
        """Synchronize the names."""
        self.synced, self.changes = dict(self.entries), []

    def after(self, kept: Callable[[], bool]) -> dict[str, Any]:
        """Return the entries after those changes since the last synchronization for which `kept()` is true."""
        entries = dict(self.synced)
        for change in self.changes:
            if kept():
                apply(entries, change)
        return entries


def apply(entries: dict[str, Any], change: Change) -> None:
    """Change the entries of a folder."""
    removed, added, entry = change
    if removed is not None:
        entries.pop(removed, None)
    if added is not None:
        entries[added] = entry


Tree = dict[str, Any]  # content of files, and trees of subfolders, by name


class Disk:
    """The files in a folder, as a file system may have them after a power failure."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, loaded(root)
        self.opened: dict[int, Any] = {}

    def find(self, path: Path) -> File | Folder | None:
        """Return the file or the folder with a path, or None."""
        found: File | Folder | None = self.folder
        for name in path.relative_to(self.root).parts:
            found = found.entries.get(name) if isinstance(found, Folder) else None
        return found

    def parent(self, path: Path) -> Folder:
        found = self.find(path.parent)
        assert isinstance(found, Folder)
        return found

    def after(self, call: Call, result: Any) -> None:
        """Make the change of a call that has succeeded."""
        path, first = call.path, call.arguments[0]
        if call.name == "open":
            if self.find(path) is None:
                self.parent(path).change(None, path.name, File())
            self.opened[result] = self.find(path)
            assert not call.arguments[1] & os.O_TRUNC, "the model has no truncation at opening"
        elif call.name == "mkdir":
            self.parent(path).change(None, path.name, Folder())
        elif call.name in ("unlink", "rmdir"):
            self.parent(path).change(path.name, None)
        elif call.name in ("replace", "rename"):
            assert path.parent == call.target.parent, "the model has no renaming between folders"
            self.parent(path).change(path.name, call.target.name, self.find(path))
        elif call.name == "write":
            self.opened[first].content += bytes(call.arguments[1][:result])  # files are written from the beginning or appended
        elif call.name == "ftruncate":
            del self.opened[first].content[call.arguments[1] :]
        elif call.name == "close":
            del self.opened[first]
        else:
            sync(self.opened[first])

    def states(self, draw: random.Random) -> Iterator[tuple[str, Tree]]:
        """Yield the names and the contents of the folders that a power failure at this moment may leave."""
        for content in CONTENTS:
            yield f"names lost, contents {content.__name__}", tree(self.folder, never, content)
            yield f"names kept, contents {content.__name__}", tree(self.folder, always, content)

        def sometimes() -> bool:
            return draw.random() < 0.5

        def mixed(file: File) -> bytes:
            return draw.choice(CONTENTS)(file)

        for number in range(MIXED):
            yield f"mixed {number}", tree(self.folder, sometimes, mixed)


def always() -> bool:
    """Keep all changes of names."""
    return True


def never() -> bool:
    """Lose all changes of names that were not synchronized."""
    return False


def sync(node: File | Folder) -> None:
    if isinstance(node, Folder):
        node.sync()
    else:
        node.synced = bytes(node.content)


def loaded(path: Path) -> Folder:
    """Return a folder with the files of a folder on the disk, all synchronized."""
    folder = Folder()
    for entry in path.iterdir():
        folder.change(None, entry.name, loaded(entry) if entry.is_dir() else File(entry.read_bytes()))
    folder.sync()
    return folder


def tree(folder: Folder, kept: Callable[[], bool], content: Callable[[File], bytes]) -> Tree:
    """Return the contents of a folder with its subfolders, see `Folder.after` and `File`."""
    return {
        name: tree(node, kept, content) if isinstance(node, Folder) else content(node)
        for name, node in folder.after(kept).items()
    }


def write_tree(found: Tree, folder: Path) -> None:
    """Write the files of a tree into a new folder."""
    folder.mkdir()
    for name, content in found.items():
        if isinstance(content, dict):
            write_tree(content, folder / name)
        else:
            (folder / name).write_bytes(content)


def digest(found: Tree) -> str:
    """Return a hash of a tree. The random names of temporary files are left out."""
    total = hashlib.sha256()
    for name, content in sorted(found.items(), key=lambda item: item[0]):
        inner = digest(content).encode() if isinstance(content, dict) else content
        total.update(f"{'temporary' if name.endswith('.tmp') else name} {len(inner)}\n".encode() + inner)
    return total.hexdigest()


# ------------------------------------------------------------------------------------------------ runs


class State(NamedTuple):
    """A folder that a power failure may leave.

    call : number of the call after which the power fails
    moment : the call and the state in words
    tree : the files in the parent folder of the run
    done : what the run had completed, see `Done`
    """

    call: int
    moment: str
    tree: Tree
    done: Done


class Done(NamedTuple):
    """What a run has completed: writing its settings, the number of epochs in its newest checkpoint, and everything."""

    settings: bool
    epochs: int
    all: bool = False


class Recorder:
    """Record the calls of a run, and collect the different states that a power failure after each of them may leave."""

    def __init__(self, trial: Trial, folder: Path, seed: int) -> None:
        self.trial, self.folder, self.draw = trial, folder, random.Random(seed)
        self.disk, self.calls = Disk(folder.parent), 0
        self.done = Done(trial.name == "resumed", epochs_of(folder) if trial.name == "resumed" else 0)
        self.states: dict[tuple[str, Done], State] = {}

    def after(self, call: Call, result: Any) -> None:
        """Make the change of a call, and collect the states."""
        self.disk.after(call, result)
        if call.name == "write" and call.path == self.folder / METRICS_NAME:
            self.done = self.done._replace(settings=True)
        if call.name != "close":
            self.calls += 1
            self.collect(f"{call.name} of {call.path.relative_to(self.disk.root)}")

    def collect(self, moment: str) -> None:
        """Collect the states after the last call."""
        for name, found in self.disk.states(self.draw):
            state = State(self.calls, f"{self.trial.name}, call {self.calls}, {moment}: {name}", found, self.done)
            self.states.setdefault((digest(found), self.done), state)


def record(trial: Trial, folder: Path, seed: int = 0) -> list[State]:
    """Run a trial, and return the different states that a power failure after each of its calls may leave.

    Raises
    ------
    AssertionError : the run has changed files by calls that are not observed
    """
    trial.prepare(folder)
    recorder, write = Recorder(trial, folder, seed), RunCheckpoints.write

    def write_and_note(checkpoints: RunCheckpoints, checkpoint: Checkpoint, engine: Engine) -> None:
        write(checkpoints, checkpoint, engine)
        recorder.done = recorder.done._replace(epochs=len(checkpoint.history))

    with (
        observed(folder.parent, lambda call: None, recorder.after),
        mock.patch.object(RunCheckpoints, "write", write_and_note),
    ):
        trial.run(folder)
    recorder.done = recorder.done._replace(all=True)
    recorder.collect("end")
    actual = tree(loaded(folder.parent), always, File.whole)
    assert tree(recorder.disk.folder, always, File.whole) == actual, "files were changed by calls that are not observed"
    return list(recorder.states.values())


def check_state(trial: Trial, folder: Path, state: State) -> list[str]:
    """Build a state, and return a message for each file that is lost, and for a run that cannot be continued.

    A run with a manifest must be complete.
    """
    shutil.rmtree(folder.parent)
    write_tree(state.tree, folder.parent)
    wrong = damaged(folder, torn_logs=True, temporaries=True) if folder.exists() else []
    if state.done.settings and not has_settings(trial, folder):
        wrong.append("the settings are lost")
    if (found := epochs_of(folder)) < state.done.epochs:
        wrong.append(f"the checkpoint of epoch {state.done.epochs} is lost; the newest one has {found} epochs")
    if state.done.all or ((folder / MANIFEST_NAME).exists() and has_settings(trial, folder)):
        wrong += differences(folder, trial.reference.contents)
    if (folder / CONFIG_NAME).exists() and not has_settings(trial, folder):
        wrong += check_earlier(trial, folder)
    wrong += check_continues(trial._replace(name="forced"), folder)
    return [f"{state.moment}: {line}" for line in wrong]


def epochs_of(folder: Path) -> int:
    """Return the number of epochs in the newest checkpoint of a run; 0 if it has none or if the newest one is damaged."""
    try:
        return len(read(files_of(folder)[-1]).checkpoint.history)
    except (DataError, IndexError):
        return 0
