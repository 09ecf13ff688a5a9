"""The run folder: create it, clear the logs of an earlier run, and write and check the manifest of SHA-256 hashes.

files/ writes individual files; record.py and result.py define their contents.
"""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from fastmlp.errors import ConfigError, DataError, printable
from fastmlp.files import RESTORE, converted, file_sha256, make_folders, read_json, read_lines, sync, write_json
from fastmlp.files.locks import held, locked_folder, sweep, unfinished
from fastmlp.files.reading import entries, exists, file_errors, files_matching, is_file, is_folder, modified
from fastmlp.models.file import check_format_version
from fastmlp.training.result import EpochLog, EpochMetrics

MANIFEST_NAME = "manifest.json"
MANIFEST_FILES = ("model.safetensors", "config.toml", "result.json")
METRICS_NAME = "metrics.jsonl"
TIMINGS_NAME = "timings.jsonl"
CLASSES_NAME = "classes.jsonl"
LOGS = (METRICS_NAME, TIMINGS_NAME, CLASSES_NAME)
MODELS_NAME = "models"  # subfolder of the models that are saved at intervals
CONFIG_NAME = "config.toml"
DATA_NAME = "data.json"
RESULT_NAME = "result.json"
DATA_VERSION = 1  # format version of data.json
SEED_FOLDER = "seed-"  # start of the names of the run folders of `--seeds`
LATEST = "latest"  # name of a path that is replaced with the newest run in its folder
MAX_RESULT = 1 << 26  # bytes of result.json; an entry of a confusion matrix of more than 200 classes takes about 50 bytes
RESULT_VERSION = 1  # format version of result.json and of cnn.json, the result of a recipe without an MLP
MANIFEST_VERSION = 1


class _Images(msgspec.Struct):
    sha256: str


class _Extracted(msgspec.Struct):
    images: _Images
    settings: dict[str, Any]


class RunData(msgspec.Struct):
    """Fields of data.json, and of "data" in result.json, that fastmlp uses; other fields are ignored."""

    name: str
    sha256: str | None
    features: int
    classes: list[str]
    extracted: _Extracted | None = None


class _Settings(msgspec.Struct):
    seed: int


class _Network(msgspec.Struct):
    label: str


class StoredResult(msgspec.Struct):
    """Fields of result.json that fastmlp uses, whose types are checked by `read_run_result`; other fields are ignored."""

    data: RunData
    settings: _Settings
    network: _Network
    parameters: int
    best_epoch: int
    epochs: int
    seconds: float
    backend: str
    stopped: str
    train: dict[str, Any] | None
    validation: dict[str, Any] | None
    test: dict[str, Any] | None


def new_run_folder(out: str | os.PathLike[str] | None, data: str, network: str, now: datetime, *, force: bool = False) -> Path:
    """Create the folder of a run, and return its path.

    Without `out`, the folder is `runs/DATE-data-network` below the current folder; if it exists, -2, -3, ... is appended to
    the name. Two processes never get the same folder.

    With `out`, that folder is used. It must be empty or not exist, unless `force` is true. The files of an earlier run stay
    until the training starts.

    Parameters
    ----------
    out : path of the folder, or None
    data : name or path of the data set; from a path, the file name without its extension is used
    network : short description such as 784x128x10
    now : date and time for the name of the folder
    force : whether `out` may contain files

    Raises
    ------
    ConfigError
        `out` is a file, is not empty (without `force`), or has a name that `check_name` rejects.
    DataError
        The folder cannot be created.

    Examples
    --------
    >>> import contextlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    ...     for _ in range(2):
    ...         print(new_run_folder(None, "digits", "784x128x10", datetime(2026, 11, 20, 13, 5)).as_posix())
    runs/2026-11-20_130500-digits-784x128x10
    runs/2026-11-20_130500-digits-784x128x10-2
    """
    if out is None:
        name = f"{now:%Y-%m-%d_%H%M%S}-{_slug(Path(data).stem, 40)}-{_slug(network, 60)}"
        return _make_numbered(Path("runs"), name)
    folder = Path(out)
    check_name(folder)
    make_folder(folder)
    check_free(folder, force)
    return folder


def resolve_run(path: str | os.PathLike[str]) -> Path:
    """Return a path of a run or of a file in it, in which FOLDER/latest is replaced with the newest run in the folder.

    If FOLDER/latest exists, the path is not changed. The newest run, finished or not, is the one that was started or resumed
    last, which is when its config.toml was written; among equal times, it is the last one by name. The runs of several seeds
    count as one run, whose folder is returned.

    Raises
    ------
    DataError : FOLDER has no run, or cannot be read

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a", "b"):
    ...         (Path(folder) / name).mkdir()
    ...         _ = (Path(folder) / name / "config.toml").write_text("seed = 0")
    ...     os.utime(Path(folder) / "a" / "config.toml", (0, 0))
    ...     resolve_run(f"{folder}/latest").name, resolve_run("runs/a").as_posix()
    ('b', 'runs/a')
    """
    path = Path(path)
    latest = next((one for one in (path, *path.parents) if one.name == LATEST and not os.path.lexists(one)), None)
    if latest is None:
        return path
    times: dict[Path, int] = {}
    for folder in filter(is_folder, files_matching(latest.parent, "*")):
        found = [inner / CONFIG_NAME for inner in (folder, *files_matching(folder, f"{SEED_FOLDER}*"))]
        if written := [modified(file) for file in found if exists(file)]:
            times[folder] = max(written)
    if not times:
        raise DataError(f"{latest}: there is no run in {latest.parent}; give the path of a run, or train one")
    return max(times, key=lambda folder: (times[folder], folder.name)) / path.relative_to(latest)


def check_name(folder: Path) -> None:
    """Raise ConfigError if a run folder's path has control characters or lone surrogates; others are escaped when printed."""
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in str(folder)):
        raise ConfigError(f"out: {str(folder)!r} has control characters or invalid Unicode; choose another", settings=("out",))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create a run folder if it does not exist, and lock it against other runs until the context exits.

    The lock is that of the folder itself. It ends with the process, even if the process is killed. Windows has no such locks.
    Temporary files that a killed run left in the folder are removed.

    Raises
    ------
    ConfigError : another run is writing to the folder, or the path cannot be a folder
    DataError : the folder cannot be created or locked
    """
    check_name(folder)
    make_folder(folder)
    with ExitStack() as stack:
        with file_errors("lock", folder):
            found = stack.enter_context(locked_folder(folder))
        check_lock(found, folder)
        sweep(folder)
        yield


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Lock a file that a run will write, in a folder that other runs may use too, until the context exits.

    The lock is that of an empty file next to it, which is removed on exit, since the file itself will be replaced. It ends with
    the process, even if the process is killed. Windows has no such locks.

    Raises
    ------
    ConfigError : another run is writing the file
    DataError : the file next to it cannot be created
    """
    beside = path.with_name(f".{path.name}.fastmlp-lock")
    with ExitStack() as stack:
        with file_errors("lock", path):
            found = stack.enter_context(held(beside))
        check_lock(found, path)
        unfinished.add(beside)
        try:
            yield
        finally:
            unfinished.discard(beside)
            beside.unlink(missing_ok=True)  # before the lock ends: afterwards, it could be the file of another run


def check_lock(found: bool | None, path: Path) -> None:
    """Raise ConfigError if another process holds the lock of a folder or file; warn if the file system has no locks.

    found : result of `locks.lock`
    """
    if found is False:
        message = f"out: another run is writing to {path}; wait until it has ended, or choose another path"
        raise ConfigError(message, settings=("out",))
    if found is None and os.name == "posix":
        text = f"{path} cannot be locked against other runs: its file system has no locks"
        warnings.warn(printable(text), RuntimeWarning, stacklevel=4)


@contextmanager
def run_folder(
    out: str | os.PathLike[str] | None, data: str, network: str, now: datetime, *, force: bool = False
) -> Iterator[Path]:
    """Create the folder of a run and lock it; on exit, remove it if it was created here and is still empty.

    A folder of a run that is resumed is given as `out`, with `force`.

    The parameters and the exceptions are those of `new_run_folder` and `locked`.
    """
    existed = out is not None and exists(Path(out))
    with ExitStack() as stack:
        if out is not None:  # lock it before its old files are removed
            stack.enter_context(locked(Path(out)))
            if not existed:
                stack.enter_context(removed_if_empty(Path(out)))
        folder = new_run_folder(out, data, network, now, force=force)
        if out is None:
            stack.enter_context(locked(folder))
            stack.enter_context(removed_if_empty(folder))
        yield folder


@contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """Context manager that removes a folder at the end if it is empty, also if a signal ends the command line."""
    unfinished.add(folder)
    try:
        yield
    finally:
        if is_folder(folder) and not any(entries(folder)):
            folder.rmdir()
        unfinished.discard(folder)


def make_folder(folder: Path) -> None:
    """Create a folder if it does not exist, so that it survives a power failure.

    Raises ConfigError if the path or one of its parents is a file, and DataError if the folder cannot be created.
    """
    try:
        make_folders(folder)
    except DataError as error:
        if isinstance(error.__cause__, FileExistsError | NotADirectoryError):
            raise ConfigError(f"out: {folder} or one of its parents is a file; choose another", settings=("out",)) from error
        raise


def remove_files(folder: Path, patterns: Sequence[str]) -> None:
    """Delete the files in a folder that match any of the glob patterns."""
    with file_errors("clear the folder", folder):
        for path in [path for pattern in patterns for path in files_matching(folder, pattern)]:
            path.unlink(missing_ok=True)


def check_free(folder: Path, force: bool) -> None:
    """Raise ConfigError if the folder is not empty and `force` is false, or if it or one of its parents is a file."""
    if any(is_file(path) for path in (folder, *folder.parents)):
        raise ConfigError(f"out: {folder} or one of its parents is a file; choose another", settings=("out",))
    if not force and exists(folder) and any(entries(folder)):
        raise ConfigError(
            f"out: the folder {folder} is not empty; set force to write into it, or choose another folder",
            settings=("out", "force"),
        )


def read_result(path: Path) -> dict[str, Any]:
    """Read the file result.json of a run.

    Raises
    ------
    DataError : the file is missing, damaged or larger than `MAX_RESULT`, or has another format version
    """
    result = read_json(path, MAX_RESULT)
    check_format_version(path, result, RESULT_VERSION)
    return dict(result)


def read_run_result(folder: Path) -> dict[str, Any]:
    """Read the file result.json of a training run; raise DataError also if an item of `StoredResult` is missing."""
    result = read_result(folder / RESULT_NAME)
    converted(folder / RESULT_NAME, result, StoredResult)
    return result


def read_data(folder: Path) -> dict[str, Any]:
    """Read the file data.json of a run; raises the same exceptions as `read_run_result`."""
    data = read_json(folder / DATA_NAME)
    check_format_version(folder / DATA_NAME, data, DATA_VERSION)
    converted(folder / DATA_NAME, data, RunData)
    return dict(data)


def read_history(folder: Path) -> list[EpochLog]:
    """Read the file metrics.jsonl of a run; raise DataError if it is missing or damaged."""
    path = folder / METRICS_NAME
    rows = read_lines(path)
    epochs = [converted(path, row, EpochMetrics).epoch for row in rows]
    if epochs != list(range(1, len(epochs) + 1)):
        raise DataError(f"{path}: damaged (the epochs are not 1 to {len(epochs)}); {RESTORE}")
    return rows


def write_manifest(folder: str | os.PathLike[str], names: Sequence[str] = MANIFEST_FILES) -> None:
    """Write `manifest.json` with the SHA-256 hashes of the named files, which must not change afterwards.

    Raises DataError if one of the files is missing or cannot be read, or if the manifest cannot be written.
    """
    folder = Path(folder)
    hashes = {name: file_sha256(folder / name) for name in names}
    write_json(folder / MANIFEST_NAME, {"format_version": MANIFEST_VERSION, "sha256": hashes})


def check_manifest(folder: str | os.PathLike[str], names: Sequence[str] = MANIFEST_FILES) -> None:
    """Check the named files of a run folder against the hashes in `manifest.json`.

    Raises
    ------
    DataError : the manifest is missing or damaged or does not list one of the files, or a file is missing or does not match
        its SHA-256 hash; the message names the file

    Examples
    --------
    >>> import tempfile
    >>> from fastmlp.files import write_bytes
    >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +ELLIPSIS
    ...     write_bytes(Path(folder, "config.toml"), b"seed = 0")
    ...     write_manifest(folder, ["config.toml"])
    ...     check_manifest(folder, ["config.toml"])
    ...     write_bytes(Path(folder, "config.toml"), b"seed = 1")
    ...     check_manifest(folder, ["config.toml"])
    Traceback (most recent call last):
    fastmlp.errors.DataError: ...config.toml differs from its SHA-256 in manifest.json...
    """
    folder = Path(folder)
    manifest = read_json(folder / MANIFEST_NAME)
    check_format_version(folder / MANIFEST_NAME, manifest, MANIFEST_VERSION)
    if not isinstance(hashes := manifest.get("sha256"), dict):
        raise DataError(f"{folder / MANIFEST_NAME} lists no hashes; {RESTORE}")
    for name in names:
        if name not in hashes:
            raise DataError(f"{folder / MANIFEST_NAME} does not list {name}; {RESTORE}")
        if file_sha256(folder / name) != hashes[name]:
            raise DataError(
                f"{folder / name} differs from its SHA-256 in {MANIFEST_NAME}: one of the two was changed or damaged; {RESTORE}"
            )


def _slug(text: str, longest: int) -> str:
    """Make text safe for a file name: replace all but letters, digits, dots, hyphens and underscores with hyphens."""
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in text)[:longest].strip(".-")
    return safe or "data"


def _make_numbered(parent: Path, name: str) -> Path:
    """Create parent/name or, if it exists, the first of parent/name-2, parent/name-3, ... that does not exist."""
    make_folders(parent)
    with file_errors("make the folder", parent / name):
        number = 1
        while True:
            folder = parent / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                sync(parent)
                return folder
