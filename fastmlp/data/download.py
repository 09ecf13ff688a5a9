"""Locate, download and verify the files of the data sets listed in named.py."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fastmlp.data.readers.idx import content_sha256
from fastmlp.errors import DataError, UnavailableError
from fastmlp.files import file_sha256
from fastmlp.files.locks import held, sweep, unfinished
from fastmlp.files.reading import given_path, is_file

NOT_OFFLINE = ("", "0", "false", "no", "off")  # values of FASTMLP_OFFLINE that allow downloads; any other value forbids them


class DataFile(NamedTuple):
    """Name of a gzipped file, its published SHA-256 hash, and the SHA-256 hash of its decompressed content."""

    name: str
    sha256: str
    sha256_plain: str


class DataEntry(NamedTuple):
    """A data set that can be loaded by name.

    files : the training images, the training labels, the test images and the test labels, in this order; empty for a data set
        that is part of the package
    rows : published numbers of training and test rows
    names : names that other programs use for its folder or its files, as words separated by hyphens
    archive : name and SHA-256 hash of the file in which Keras stores the whole data set
    """

    description: str
    classes: tuple[str, ...]
    folder: str = ""
    mirrors: tuple[str, ...] = ()
    files: tuple[DataFile, ...] = ()
    rows: tuple[int, int] | None = None
    names: tuple[str, ...] = ()
    archive: tuple[str, str] | None = None


class FileStatus(NamedTuple):
    """Status of a file, as returned by `verify_data`.

    `status` is "ok", "missing" or "damaged". `expected` and `found` are SHA-256 hashes; `found` is None for a missing file.
    """

    file: str
    status: str
    expected: str
    found: str | None


def is_offline() -> bool:
    """Return whether the environment variable FASTMLP_OFFLINE forbids connections: it is set, and does not mean "no"."""
    return os.environ.get("FASTMLP_OFFLINE", "").lower() not in NOT_OFFLINE


def data_folder(data_dir: str | Path | None = None) -> Path:
    """Return the folder for downloaded data sets.

    It is `data_dir` if given, else the value of the environment variable FASTMLP_DATA, else the subfolder `data` of fastmlp's
    folder in the user's cache directory.

    >>> data_folder("/data").as_posix()
    '/data'
    """
    if chosen := os.environ.get("FASTMLP_DATA") if data_dir is None else given_path("data_dir", data_dir):
        return Path(os.path.expanduser(chosen))  # noqa: PTH111 - Path.expanduser raises an error if there is no such user
    import pooch

    return Path(pooch.os_cache("fastmlp")) / "data"


def _candidates(folder: Path, file: DataFile) -> list[tuple[Path, str]]:
    """Return the two possible paths of a file with their expected SHA-256 hashes: the decompressed file, and the .gz file."""
    packed = folder / file.name
    return [(packed.with_suffix(""), file.sha256_plain), (packed, file.sha256)]


def present(folder: Path, file: DataFile) -> Path | None:
    """Return the path of the decompressed file or else of the .gz file, or None if neither exists."""
    return next((path for path, _ in _candidates(folder, file) if is_file(path)), None)


def verify_file(folder: Path, file: DataFile, found: Path | None = None) -> list[FileStatus]:
    """Return a status for each existing file, decompressed or gzipped, or a single status "missing" if neither exists.

    The content of a file determines whether it is gzipped, not its name. A file that was compressed again, so that only its
    decompressed content has the published hash, is "ok".

    found : path of the file if it has another name
    """
    rows = []
    paths = dict(_candidates(folder, file))
    for path, expected in (paths if found is None or found in paths else {found: file.sha256_plain}).items():
        actual = file_sha256(path) if is_file(path) else None
        if actual not in (None, file.sha256, file.sha256_plain) and content_sha256(path) == file.sha256_plain:
            actual = file.sha256_plain
        if actual:
            intact = actual in (file.sha256, file.sha256_plain)
            rows.append(FileStatus(str(path), "ok" if intact else "damaged", actual if intact else expected, actual))
    return rows or [FileStatus(str(folder / file.name), "missing", file.sha256, None)]


def download(entry: DataEntry, file: DataFile, folder: Path, progress: bool, found: str = "") -> None:
    """Download a file from the first mirror that works; the file is stored only if its SHA-256 hash is correct.

    found : description of files that were found instead, for error messages

    Raises
    ------
    UnavailableError : no mirror has the file, or FASTMLP_OFFLINE forbids downloading it
    DataError : the folder cannot be written
    """
    import pooch
    import requests

    remedy = f"{found}copy the files to {folder}, or set FASTMLP_DATA to the folder that contains {entry.folder}"
    if is_offline():
        raise UnavailableError(f"{file.name} is missing or damaged, and FASTMLP_OFFLINE forbids downloading it; {remedy}")
    tried = []
    with _part_file(folder, file.name) as part:
        for url in (mirror + file.name for mirror in entry.mirrors):
            try:
                with _bar(file.name, progress) as bar:
                    pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16)(url, str(part), None)
            except requests.RequestException as error:
                status = getattr(error.response, "status_code", None)
                tried.append(f"{url} ({f'HTTP {status}' if status else type(error).__name__})")
                continue
            if file_sha256(part) == file.sha256:
                part.replace(folder / file.name)
                return
            tried.append(f"{url} (wrong SHA-256)")
    raise UnavailableError(f"{file.name} cannot be downloaded; tried {', '.join(tried)}; {remedy}")


@contextmanager
def _part_file(folder: Path, name: str) -> Iterator[Path]:
    """Create the folder and yield a temporary path in it. The temporary file is always removed at the end.

    Temporary files of this name that killed processes left in the folder are removed first.
    """
    part = folder / f".{name}.{secrets.token_hex(4)}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, re.compile(rf"\.{re.escape(name)}\.[0-9a-f]+\.part"))
        unfinished.add(part)
        try:
            with held(part, wait=True):
                yield part
        finally:
            part.unlink(missing_ok=True)
            unfinished.discard(part)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{folder}: cannot be written ({reason}); choose another folder, or set FASTMLP_DATA", settings=("data_dir",)
        ) from error


class _Bar:
    """Progress bar of the package rich, with the methods that pooch calls."""

    def __init__(self, display: Any, label: str) -> None:
        self._display, self._task = display, display.add_task(label, total=None)

    def _set_total(self, total: int) -> None:
        self._display.update(self._task, total=total)

    total = property(fset=_set_total)

    def update(self, size: int) -> None:
        self._display.advance(self._task, size)

    def reset(self) -> None:
        self._display.reset(self._task)

    def close(self) -> None:
        self._display.stop()


@contextmanager
def _bar(label: str, wanted: bool) -> Iterator[_Bar | bool]:
    """Yield a progress bar on stderr if `wanted` is true, else False, which disables the progress bar of pooch."""
    if not wanted:
        yield False
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as display:
        yield _Bar(display, label)
