"""Reading and atomic writing of JSON, TOML and JSON Lines files; hashes of files.

Files are found and opened by reading.py, limits.py rejects decompression bombs, and locks.py locks files.

After a crash, either the complete old file or the complete new file exists, never a partial one. File-system errors are raised
as DataError, with a one-line message that contains the path and a remedy. A process that is killed leaves its temporary file;
`sweep` removes it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import tomli_w

from fastmlp.errors import DataError, FastMLPError, WriteError, escaped
from fastmlp.files.locks import held, sweep, unfinished
from fastmlp.files.reading import exists, file_errors, given_path, is_file, is_folder, library_errors, open_file, read_bytes

Kind = TypeVar("Kind")
O_BINARY = getattr(os, "O_BINARY", 0)  # without this flag, Windows converts "\n" to "\r\n"
_swept: set[Path] = set()  # folders in which this process has removed the left-over temporary files
MAX_JSON = 1 << 24  # bytes; the decoded value takes about seven times as much memory
MAX_TOML = 1 << 18  # bytes; a larger file contains no settings
MAX_DEPTH = 8  # maximum nesting depth of values; settings have lists in a table
# The strings and comments of TOML. Everything up to the end belongs to one that is not closed, so that no text is read twice.
TOML_TEXT = re.compile(
    r'''(?s:"""(?:\\.?|[^\\])*?(?:"""|\Z)"{0,2})'''
    r"""|(?s:'''.*?(?:'''|\Z)'{0,2})"""
    r"""|"(?:[^"\\\n]|\\.)*"?|'[^'\n]*'?|#[^\n]*"""
)
NOT_IN_KEYS = re.compile(r"[^\w. \t-]", re.ASCII)
RESTORE = "restore it from a backup or repeat the run"


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically: temporary file in the same folder, fsync, rename, fsync of the folder.

    The temporary file is locked until it is renamed, and the first write of a process to a folder removes the temporary files
    that killed processes left there (`sweep`). The file mode is 0666 minus the umask. An existing regular file at `path` is
    replaced. If only the last step (fsync of the folder) fails, WriteError is raised although the new file is complete and in
    place, because a power failure may still bring back the old file.

    Raises
    ------
    WriteError
        The file could not be written, or `path` exists and is not a regular file. The old file is intact unless only the last
        step failed. No temporary file is left.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_bytes(Path(folder, "a.bin"), b"123")
    ...     print(Path(folder, "a.bin").read_bytes())
    b'123'
    """
    path = given_path("path", path)
    temporary = path.with_name(f".fastmlp-{secrets.token_hex(8)}.tmp")
    with file_errors("write", path):
        if (folder := path.parent.absolute()) not in _swept:
            _swept.add(folder)
            sweep(folder)
        if exists(path) and not is_file(path):
            raise WriteError(f"cannot write {path}: it is not a regular file; choose another name")
        unfinished.add(temporary)
        try:
            with held(temporary, wait=True):
                _write_and_sync(temporary, data)
                temporary.replace(path)
        except BaseException:  # includes KeyboardInterrupt
            temporary.unlink(missing_ok=True)
            raise
        finally:
            unfinished.discard(temporary)
        _sync_folder(path.parent)


def json_bytes(value: object, indent: int = 0) -> bytes:
    r"""Return JSON text in UTF-8, with keys in the given order and a final newline.

    NaN and infinities are written as null: JSON cannot represent them, and a run whose loss diverged must still be able to
    write its results. Floats are written with full precision. Control and formatting characters in strings are written as
    escape sequences of JSON, so that the text can be printed, and a parser returns the exact strings.

    Parameters
    ----------
    value : dict, list, tuple, str, number, bool or None, possibly nested; NumPy scalars are converted to numbers, and paths to
        strings
    indent : number of spaces per level; 0 writes everything on one line

    Raises
    ------
    DataError
        A string is not valid Unicode (for example a file name in another encoding).
    TypeError
        A value has an unsupported type.

    Examples
    --------
    >>> json_bytes({"b": 0.1, "a": float("nan")})
    b'{"b":0.1,"a":null}\n'
    >>> json_bytes("\x9b\u202e")
    b'"\\u009b\\u202e"\n'
    """
    try:
        compact = msgspec.json.encode(value, enc_hook=_plain_scalar)
    except UnicodeEncodeError as error:
        message = "it is not valid Unicode, such as a file name that is not UTF-8; rename the file"
        raise DataError(f"cannot store {error.object!r} in JSON: {message}") from error
    compact = escaped(compact.decode(), _json_escape).encode()  # msgspec escapes only what JSON requires
    return (msgspec.json.format(compact, indent=indent) if indent else compact) + b"\n"


def _json_escape(char: str) -> str:
    """Return the escape sequence of a character in JSON: its UTF-16 code units."""
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[start : start + 2].hex()}" for start in range(0, len(units), 2))


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write `json_bytes(value, indent=2)` atomically; raise the same errors as `json_bytes` and `write_bytes`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(Path(folder, "a.json"), {"loss": 0.5})
    ...     print(read_json(Path(folder, "a.json")))
    {'loss': 0.5}
    """
    write_bytes(path, json_bytes(value, indent=2))


def read_json(path: str | os.PathLike[str], most: int = MAX_JSON) -> Any:
    """Return the contents of a JSON file.

    most : maximum number of bytes that such a file can have

    Raises
    ------
    DataError : the file is missing, unreadable, truncated, larger than `most`, or not valid JSON in UTF-8

    Examples
    --------
    >>> read_json("no-such.json")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fastmlp.errors.DataError: cannot read no-such.json: ...; check the path
    """
    return decoded(path, read_bytes(path, most))


def decoded(path: str | os.PathLike[str], text: bytes | str) -> Any:
    """Return the value of JSON text from a file; raise DataError if the text is not valid JSON in UTF-8."""
    with library_errors(path, "not valid JSON", RESTORE):
        return msgspec.json.decode(text)


def read_toml(path: str | os.PathLike[str], kind: type[FastMLPError] = DataError) -> dict[str, Any]:
    """Return the contents of a TOML file with settings.

    kind : type of the error if it is not valid TOML

    Raises
    ------
    DataError : the file is missing, unreadable, not a regular file, or larger than `MAX_TOML`
    """
    data = read_bytes(path, MAX_TOML)
    with library_errors(path, "not valid TOML", "correct the file", kind):
        text = data.decode()
    if (number := deep_key(text)) is not None:
        raise kind(f"{os.fspath(path)}: line {number}: a key has more than {MAX_DEPTH} dots; correct the file")
    with library_errors(path, "not valid TOML", "correct the file", kind):
        table = tomllib.loads(text)
    check_values(path, table, kind)
    return table


def deep_key(text: str) -> int | None:
    """Return the number of the first line of a TOML document in which a key has more than `MAX_DEPTH` dots; None without one.

    The time and the memory that tomllib takes are quadratic in the number of dots of a key. Such a key leads to a value that
    `check_values` rejects in any case. Dots in comments, strings and numbers are not counted.

    >>> deep_key("a = 1  # ........."), deep_key("a = 1\\nb.c.d.e.f.g.h.i.j.k = 1")
    (None, 2)
    """
    keys = TOML_TEXT.sub(lambda found: "\n" * found[0].count("\n") or "_", text)
    for number, line in enumerate(keys.split("\n"), start=1):
        if any(part.count(".") > MAX_DEPTH for part in NOT_IN_KEYS.split(line)):
            return number
    return None


def check_values(path: str | os.PathLike[str], table: dict[str, Any], kind: type[FastMLPError]) -> None:
    """Raise an error of type `kind` if a table has values that no setting takes, and whose `repr` Python cannot compute.

    These are values that are nested more than `MAX_DEPTH` levels deep, and integers that do not fit into 64 bits.
    """
    level: list[Any] = [table]
    for _ in range(MAX_DEPTH):
        inner = [value for one in level for value in (one.values() if isinstance(one, dict) else one)]
        if any(isinstance(value, int) and not -(2**63) <= value < 2**64 for value in inner):
            raise kind(f"{os.fspath(path)}: an integer does not fit into 64 bits; use a smaller one")
        level = [value for value in inner if isinstance(value, dict | list)]
    if level:
        raise kind(f"{os.fspath(path)}: values are nested more than {MAX_DEPTH} levels deep; correct the file")


def write_toml(path: str | os.PathLike[str], table: Mapping[str, object]) -> None:
    """Write a TOML file atomically. Keys whose value is None are omitted, because TOML has no null value.

    NaN and infinities are written as such, since TOML supports them. NumPy scalars are converted to numbers, and paths to
    strings. Characters are escaped as in `escape_toml`.

    Raises
    ------
    WriteError : the file could not be written, see `write_bytes`
    DataError : a string is not valid Unicode
    TypeError : a value has a type that TOML does not support

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_toml(Path(folder, "a.toml"), {"lr": 0.1, "max_time": None})
    ...     print(Path(folder, "a.toml").read_text().strip())
    lr = 0.1
    """
    text = tomli_w.dumps(_without_none(table))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line = text.split("\n")[text.count("\n", 0, error.start)]
        raise DataError(f"cannot write {path}: the value in {line!r} is not valid Unicode; rename that file") from error
    write_bytes(path, escape_toml(text).encode())


def escape_toml(text: str) -> str:
    r"""Return a TOML document in which control and formatting characters in strings are escape sequences of TOML.

    It can be printed, and a parser returns the exact strings. A lone surrogate becomes an escape sequence that TOML forbids.

    >>> escape_toml('name = "a\tb\x9b"\n')
    'name = "a\\u0009b\\u009b"\n'
    """
    return "\n".join(escaped(line, _toml_escape) for line in text.split("\n"))


def _toml_escape(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 1 << 16 else f"\\U{ord(char):08x}"


def read_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the objects in a file written by `append_line`; raise the errors of `iterate_lines`."""
    return list(iterate_lines(path))


def iterate_lines(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects in a file written by `append_line`, without keeping them in memory.

    Raise DataError if the file is missing or unreadable, or if a line is not a JSON object.
    """
    with open_file(path) as file, file_errors("read", path):
        for line in file:
            with library_errors(path, "damaged", RESTORE):
                found = msgspec.json.decode(line, type=dict[str, Any])
            yield found


def converted(path: str | os.PathLike[str], value: Any, kind: type[Kind]) -> Kind:
    """Return a decoded value as a type of msgspec, see `msgspec.convert`; raise DataError if it does not have this type.

    path : the file from which the value was read, for the error message
    """
    with library_errors(path, "damaged", RESTORE):
        return msgspec.convert(value, kind)


def append_line(path: str | os.PathLike[str], value: object) -> None:
    r"""Append a JSON object to a file, as one line. The file is created if it does not exist.

    The line is passed to the operating system before this function returns, so it is not lost if the process is killed. A
    power failure may lose the last lines: there is no fsync, which would take longer than an epoch of a small network. If
    writing fails (for example because the disk is full), the partial line is removed. `json_bytes` describes the types that
    `value` may have.

    Raises
    ------
    WriteError : the line could not be written; the lines before it are intact

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
    with file_errors("write", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | O_BINARY, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            try:
                _write_all(descriptor, line)
            except BaseException:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)


def _write_and_sync(path: Path, data: bytes) -> None:
    """Write the bytes to a new or empty file, and return when they are on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | O_BINARY, 0o666)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes. `os.write` is called repeatedly, because a call may write only some of them."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync(path: Path) -> None:
    """Return when a file and its name, or the names in a folder, are on the disk; raise WriteError if this fails."""
    with file_errors("write", path):
        if is_folder(path):
            _sync_folder(path)
            return
        descriptor = os.open(path, os.O_WRONLY | O_BINARY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Call fsync on a folder, so that renames in it survive a power failure."""
    if os.name != "posix":  # Windows cannot open folders, and NTFS journals renames itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: the file system does not support fsync of folders
            raise
    finally:
        os.close(descriptor)


def make_folders(folder: Path) -> None:
    """Create a folder and its missing parents so that they survive a power failure; raise WriteError if this fails."""
    with file_errors("make the folder", folder):
        missing = [path for path in (folder, *folder.parents) if not exists(path)]
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            _sync_folder(path.parent)


def _plain_scalar(value: Any) -> object:
    """Return the Python value of a NumPy scalar, or the text of a path; raise TypeError for other types."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    item: Callable[[], object] | None = getattr(value, "item", None)
    if item is None or getattr(value, "ndim", 1) != 0:
        raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written to a file")
    return item()


def _without_none(value: object) -> Any:
    """Return a copy of a nested value with plain Python types only. Keys whose value is None are omitted."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value if isinstance(value, str | bool | int | float) else _plain_scalar(value)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as a hexadecimal string."""
    with open_file(path) as file, file_errors("read", path):
        return hashlib.file_digest(file, "sha256").hexdigest()
