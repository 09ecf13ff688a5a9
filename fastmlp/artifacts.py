"""Files of a run: written so that a crash leaves the old file or the new one, never a torn one.

Here: atomic writing, JSON and TOML, the line-by-line metrics file, the run folder, and its manifest of hashes. Not here: what
the files mean. Every failure of the file system becomes a DataError of one line that names the file and the remedy.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from fastmlp.errors import ConfigError, DataError

MANIFEST_NAME = "manifest.json"
MANIFEST_FILES = ("model.safetensors", "config.toml", "result.json")
METRICS_NAME = "metrics.jsonl"
CLASSES_NAME = "classes.jsonl"
CHECKPOINTS_NAME = "checkpoints"

_RESTORE = "restore it from a copy or repeat the run"
_REMEDIES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) or choose another folder",
    errno.EACCES: "check the rights or choose another folder",
    errno.EPERM: "check the rights or choose another folder",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.ENOENT: "check the path; its folder must exist",
    errno.ENOTDIR: "check the path; a part of it is a file, not a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all: temporary file beside it, fsync, rename, fsync of the folder.

    The mode is 0666 less the umask, as for any new file. What is at `path` is replaced, unless it is not a
    regular file. If the last step fails (fsync of the folder) the new file is in place and complete, but a
    power failure may bring the old one back; this is an error too.

    Raises
    ------
    DataError
        The file could not be written; what was there is intact, and no temporary file is left behind.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_bytes(Path(folder, "a.bin"), b"123")
    ...     print(Path(folder, "a.bin").read_bytes())
    b'123'
    """
    path = Path(path)
    temporary = path.with_name(f".fastmlp-{secrets.token_hex(8)}.tmp")
    with one_line_error("write", path):
        if path.exists() and not path.is_file():
            raise DataError(f"cannot write {path}: it is not a regular file; choose another name")
        try:
            _write_and_sync(temporary, data)
            temporary.replace(path)
        except BaseException:  # also Ctrl-C must not leave the temporary file behind
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def json_bytes(value: object, indent: int = 0) -> bytes:
    r"""JSON text in UTF-8, keys in the order given, with a final newline.

    NaN and the infinities become null: JSON has no word for them, a reader in any language must be able to
    read the file, and a diverged loss must not make the record of a run impossible. Floats keep every digit.

    Parameters
    ----------
    value : dict, list, tuple, str, number, bool, None, nested; NumPy scalars become numbers, paths strings
    indent : spaces per level; 0 puts all on one line

    Raises
    ------
    DataError
        A string is not valid Unicode (a file name in another encoding).
    TypeError
        A value of another type: a bug of the caller.

    Examples
    --------
    >>> json_bytes({"b": 0.1, "a": float("nan")})
    b'{"b":0.1,"a":null}\n'
    """
    try:
        compact = msgspec.json.encode(value, enc_hook=_plain_scalar)
    except UnicodeEncodeError as error:
        raise DataError(f"cannot write {error.object!r} as JSON: it is not valid Unicode; rename it") from error
    return (msgspec.json.format(compact, indent=indent) if indent else compact) + b"\n"


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write `json_bytes(value, indent=2)` as `write_bytes` does; raises what these two raise.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(Path(folder, "a.json"), {"loss": 0.5})
    ...     print(read_json(Path(folder, "a.json")))
    {'loss': 0.5}
    """
    write_bytes(path, json_bytes(value, indent=2))


def read_json(path: str | os.PathLike[str]) -> Any:
    """Contents of a JSON file.

    Raises
    ------
    DataError
        The file is missing, unreadable, truncated, or not JSON in UTF-8.

    Examples
    --------
    >>> read_json("no-such.json")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fastmlp.errors.DataError: cannot read no-such.json: No such file or directory; check the path; ...
    """
    try:
        with one_line_error("read", path):
            return msgspec.json.decode(Path(path).read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{os.fspath(path)} is not valid JSON ({error}); {_RESTORE}") from error


def write_toml(path: str | os.PathLike[str], table: Mapping[str, object]) -> None:
    """Write a TOML file as `write_bytes` does; keys whose value is None are left out, since TOML has no null.

    NaN and the infinities are legal in TOML and stay. NumPy scalars become numbers, paths become strings.

    Raises
    ------
    DataError
        As `write_bytes`, or a string is not valid Unicode.
    TypeError
        A value has no form in TOML: a bug of the caller.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_toml(Path(folder, "a.toml"), {"rate": 0.1, "max_time": None})
    ...     print(Path(folder, "a.toml").read_text().strip())
    rate = 0.1
    """
    text = tomli_w.dumps(_without_none(table))
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        raise DataError(f"cannot write {path}: line {line} is not valid Unicode; rename the file in it") from error
    write_bytes(path, data)


def append_line(path: str | os.PathLike[str], value: object) -> None:
    r"""Append one JSON object as one line; the line is with the operating system when this returns.

    A kill of the process therefore loses no line. There is no fsync (it would cost more than an epoch of a
    small network), so a power failure may lose the last lines. A line that does not fit (disk full) is taken
    back whole. The file is made if it does not exist; `value` is as for `json_bytes`.

    Raises
    ------
    DataError
        The file could not be written; its earlier lines are intact.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     append_line(Path(folder, "metrics.jsonl"), {"epoch": 1})
    ...     append_line(Path(folder, "metrics.jsonl"), {"epoch": 2})
    ...     print(Path(folder, "metrics.jsonl").read_text().split())
    ['{"epoch":1}', '{"epoch":2}']
    """
    line = json_bytes(value)
    with one_line_error("write", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            try:
                _write_all(descriptor, line)
            except BaseException:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)


def new_run_folder(out: str | os.PathLike[str] | None, data: str, network: str, now: datetime, *, force: bool = False) -> Path:
    """Make the folder of a run and return its path.

    Without `out`: `runs/DATE-data-network` under the current folder, with -2, -3, ... where that exists; two processes never
    get the same one. With `out`: that folder, which must be absent or empty, unless `force`: then its files stay until the new
    run replaces them, except those that `clear_course` takes away.

    Parameters
    ----------
    out : folder asked for, or None
    data : name or path of the data set; of a path, the last part without its ending is used
    network : short description such as 784x128x10
    now : time that goes into the name

    Raises
    ------
    ConfigError
        `out` is a file, is not empty (without `force`), or its name cannot be printed.
    DataError
        The folder could not be made.

    Examples
    --------
    >>> import tempfile
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
    if not str(folder).isprintable():  # also true of the stand-ins for bytes that are not Unicode
        raise ConfigError(f"out: the name {str(folder)!r} cannot be printed; choose another --out")
    try:
        with one_line_error("make the folder", folder):
            folder.mkdir(parents=True, exist_ok=True)
            if force:
                clear_course(folder)
    except DataError as error:
        if isinstance(error.__cause__, FileExistsError | NotADirectoryError):
            raise ConfigError(f"out: {folder} is a file or lies under one; choose another --out") from error
        raise
    check_free(folder, force)
    return folder


def clear_course(folder: Path) -> None:
    """Take away what an earlier run kept while it trained: its files would grow on, its checkpoints lie among new ones."""
    for path in (folder / METRICS_NAME, folder / CLASSES_NAME, *(folder / CHECKPOINTS_NAME).glob("epoch-*.safetensors")):
        path.unlink(missing_ok=True)


def check_free(folder: Path, force: bool) -> None:
    """Raise ConfigError if a folder is in use, unless it may be written into all the same, or if it is a file."""
    with one_line_error("read", folder):
        if any(path.is_file() for path in (folder, *folder.parents)):
            raise ConfigError(f"out: {folder} is a file or lies under one; choose another --out")
        if not force and folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"out: the folder {folder} is not empty; use --force to write into it, or another --out")


def write_manifest(folder: str | os.PathLike[str], names: Sequence[str] = MANIFEST_FILES) -> None:
    """Write `manifest.json` with the SHA-256 of the named files of a run folder; do it last.

    Raises DataError if one of the files is missing or cannot be read, or the manifest cannot be written.
    """
    folder = Path(folder)
    hashes = {name: file_sha256(folder / name) for name in names}
    write_json(folder / MANIFEST_NAME, {"version": 1, "sha256": hashes})


def check_manifest(folder: str | os.PathLike[str], names: Sequence[str] = MANIFEST_FILES) -> None:
    """Check the named files of a run folder against `manifest.json`.

    Raises
    ------
    DataError
        The manifest is missing, damaged or does not list one of the files; or a file is missing or differs
        from its SHA-256, by as little as one bit. The message names the file.

    Examples
    --------
    >>> import tempfile
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
    hashes = manifest.get("sha256") if isinstance(manifest, dict) and manifest.get("version") == 1 else None
    if not isinstance(hashes, dict):
        raise DataError(f"{folder / MANIFEST_NAME} is not a manifest of version 1; {_RESTORE}")
    for name in names:
        if name not in hashes:
            raise DataError(f"{folder / MANIFEST_NAME} does not list {name}; {_RESTORE}")
        if file_sha256(folder / name) != hashes[name]:
            raise DataError(
                f"{folder / name} differs from its SHA-256 in {MANIFEST_NAME}: one of the two was changed or"
                f" damaged; {_RESTORE}"
            )


@contextlib.contextmanager
def one_line_error(verb: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError into one line that names the file, what went wrong, and what to do."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the disk and the path")
        raise DataError(f"cannot {verb} {os.fspath(path)}: {error.strerror or error}; {remedy}") from error


def _write_and_sync(path: Path, data: bytes) -> None:
    """Make a new file with these bytes and wait until they are on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    """os.write until nothing is left: it may take fewer bytes than given."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: Path) -> None:
    """Wait until the folder's list of names is on the disk."""
    if os.name != "posix":  # Windows cannot open a folder, and keeps a journal of renames
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # this file system cannot fsync folders: nothing more can be done
            raise
    finally:
        os.close(descriptor)


def _plain_scalar(value: Any) -> object:
    """Python value of a NumPy scalar or a path; anything else is a bug of the caller."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    item: Callable[[], object] | None = getattr(value, "item", None)
    if item is None or getattr(value, "ndim", 1) != 0:
        raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written to a file")
    return item()


def _without_none(value: object) -> Any:
    """The same nested value of plain Python types, without the keys whose value is None."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value if isinstance(value, str | bool | int | float) else _plain_scalar(value)


def _slug(text: str, longest: int) -> str:
    """A text as part of a file name: all but letters, digits, dot, hyphen and underscore become a hyphen."""
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in text)[:longest].strip(".-")
    return safe or "data"


def _make_numbered(parent: Path, name: str) -> Path:
    """Make parent/name, or parent/name-2, parent/name-3, ...: mkdir itself decides who is first."""
    with one_line_error("make the folder", parent / name):
        parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = parent / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                return folder


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with one_line_error("read", path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
