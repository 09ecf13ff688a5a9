"""The dialect of a text table: its compression and encoding, the delimiter, the decimal mark, and whether it has a header.

They are detected from the start of the file. `rows_of` reads the rows as text with Python's csv module; it is used to find the
line of an error. table.py reads whole files.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

from fastmlp.errors import ConfigError, DataError
from fastmlp.files.limits import is_gzipped, open_unpacked
from fastmlp.files.reading import file_errors, open_file

DELIMITERS = "\t;|,"  # in the order of preference; text often contains commas, and rarely the others in every line
DELIMITER_NAMES = {"tab": "\t", "comma": ",", "semicolon": ";", "space": " ", "pipe": "|"}
SAMPLE = 1 << 18  # characters from which the dialect is detected
FEW_ROWS = 1000  # rows of the sample
MAX_COLUMNS = 100_000
WIDE = 5  # number of columns from which a first row 0, 1, 2, … is a header
BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
# Cells that contain a missing value: those of pandas, and the question mark of the UCI data sets.
MISSING = frozenset(
    {"", "?", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"}
    | {"<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
)
# Each text has only one way to match, because trying all ways would take time for the square of its length.
POINT_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity)", re.IGNORECASE | re.ASCII)
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")  # 1,234 may be 1234 or 1.234
COMMA_NUMBER = re.compile(r"[+-]?(\d+(,\d*)?|,\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity)", re.IGNORECASE | re.ASCII)


class Dialect(NamedTuple):
    """How the rows of a text table are written.

    encoding : name of the encoding, for Python
    gzipped : whether the file is compressed
    delimiter : character between two cells
    decimal : decimal mark, "." or ","
    header : whether the first row contains the names of the columns
    """

    encoding: str
    gzipped: bool
    delimiter: str = ","
    decimal: str = "."
    header: bool = True

    @property
    def note(self) -> str:
        """Message about the dialect; empty for UTF-8 text with commas, decimal points and a header."""
        names = {mark: name for name, mark in DELIMITER_NAMES.items()}
        parts = [] if self.encoding.startswith("utf-8") else [self.encoding.upper()]
        parts += [] if self.delimiter == "," else [f"delimiter {names.get(self.delimiter, repr(self.delimiter))}"]
        parts += [] if self.decimal == "." else ["decimal comma"]
        parts += [] if self.header else ["no header"]
        return f"format: {', '.join(parts)}" if parts else ""

    def is_number(self, cell: str) -> bool:
        """Return whether a cell is a number.

        >>> [Dialect("utf-8", False).is_number(cell) for cell in ("1e3", " -2.5 ", "1,5", "1_000", "")]
        [True, True, False, False, False]
        """
        return (COMMA_NUMBER if self.decimal == "," else POINT_NUMBER).fullmatch(cell.strip()) is not None


def is_missing(cell: str) -> bool:
    """Return whether a cell contains a missing value."""
    return cell.strip() in MISSING


def looks_numeric(cell: str) -> bool:
    """Return whether a cell is a number with a decimal point or a decimal comma."""
    return any(pattern.fullmatch(cell.strip()) for pattern in (POINT_NUMBER, COMMA_NUMBER))


class Expected(NamedTuple):
    """What is known about a table from the training data of a model.

    names : names of the columns that the model needs; empty if the training table had no header
    delimiter : delimiter of the training table, which is tried first
    header : whether the training table had a header, in case this cannot be decided
    """

    names: frozenset[str] = frozenset()
    delimiter: str = ""
    header: bool | None = None


UNKNOWN = Expected()


def find_dialect(path: Path, delimiter: str | None = None, header: bool | None = None, expected: Expected = UNKNOWN) -> Dialect:
    """Return the dialect of a text table.

    Parameters
    ----------
    path : text file, which may be compressed with gzip
    delimiter : character, or a name in `DELIMITER_NAMES`; None to detect it
    header : whether the first row contains the names of the columns; None to detect it
    expected : what is known about the table

    Raises
    ------
    DataError : the file cannot be read, has no rows, or it cannot be decided whether the first row is a header
    ConfigError : the delimiter is not a single character
    """
    dialect = Dialect(*find_encoding(path))
    with open_text(path, dialect) as stream:
        text = stream.read(SAMPLE + 1)
    if len(text) > SAMPLE:  # the last line is incomplete
        text = text[: text.rfind("\n", 0, SAMPLE) + 1] or text
    if not text.strip():
        raise DataError(f"{path}: the file has no rows; a header line and rows of data are needed")
    if "\0" in text:
        raise DataError(f"{path}: not a text file; give a table as text, or as a .parquet file")
    found = find_delimiter(text, path, expected) if delimiter is None else parse_delimiter(delimiter)
    rows = [row for row in itertools.islice(lenient_rows(text, found), FEW_ROWS) if row]
    if not rows:
        raise DataError(f"{path}: the first row cannot be read with the delimiter {found!r}", settings=("delimiter",))
    check_width(path, len(rows[0]))
    dialect = dialect._replace(delimiter=found, decimal=find_decimal(rows, found))
    if header is None and expected.names and expected.names <= {cell.strip() for cell in rows[0]}:
        header = True
    return dialect._replace(header=has_header(path, rows, dialect, expected.header) if header is None else header)


def check_width(path: Path, columns: int) -> None:
    """Raise DataError if a table has more columns than `MAX_COLUMNS`. A column takes several kB, even if it has few rows."""
    if columns > MAX_COLUMNS:
        raise DataError(
            f"{path}: {columns:,} columns, more than {MAX_COLUMNS:,}; save the data as a folder of arrays (x.npy and y.npy)"
        )


def check_names(path: Path, names: Sequence[str]) -> list[str]:
    """Return the names of columns without spaces around them; raise DataError if a name occurs twice."""
    stripped = [name.strip() for name in names]
    (name, times), *_ = Counter(name for name in stripped if name).most_common(1) or [("", 0)]
    if times > 1:
        raise DataError(f"{path}: two columns have the name {name!r}; rename one of them")
    return stripped


def find_encoding(path: Path) -> tuple[str, bool]:
    """Return the encoding of a file, by its byte-order mark or its zero bytes, and whether it is compressed with gzip."""
    with open_file(path) as stream, file_errors("read", path):
        gzipped = is_gzipped(stream)
    with open_unpacked(path) as stream, file_errors("read", path):
        start = stream.read(1024)
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return encoding, gzipped
    zeros = start[0::2].count(0), start[1::2].count(0)
    if max(zeros) > len(start) // 4 and min(zeros) == 0:  # UTF-16 without a mark, mostly of ASCII characters
        return ("utf-16-be" if zeros[0] else "utf-16-le"), gzipped
    return "utf-8", gzipped


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Context manager that turns errors of decompressing and decoding a file into DataError."""
    try:
        with file_errors("read", path):
            yield
    except UnicodeDecodeError as error:
        wrong = error.object[error.start : error.start + 1].hex()
        raise DataError(f"{path}: not text in UTF-8 or UTF-16 (byte 0x{wrong}); save it as UTF-8") from error


@contextmanager
def open_text(path: Path, dialect: Dialect) -> Iterator[TextIO]:
    """Open a file with the compression and the encoding of a dialect; raise DataError if it cannot be read or decoded."""
    with open_unpacked(path) as stream, decoding(path):
        yield io.TextIOWrapper(stream, encoding=dialect.encoding, newline="")


def rows_of(path: Path, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line and the cells of each row, without blank lines.

    Raise DataError if the file cannot be read, or a quotation mark is not closed.
    """
    with open_text(path, dialect) as stream:
        reader = csv.reader(stream, delimiter=dialect.delimiter, strict=True)
        line = 1
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise DataError(f"{path}: line {line}: {error}; check the quotation marks") from error
            if row is None:
                return
            if row:
                yield line, row
            line = reader.line_num + 1


def lenient_rows(text: str, delimiter: str) -> Iterator[list[str]]:
    """Yield the cells of each line of a text, which may contain an unclosed quotation mark."""
    try:
        yield from csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    except csv.Error:  # a very long cell: the quotation marks do not belong together
        return


def parse_delimiter(given: str) -> str:
    """Return the delimiter for a character or a name, such as "tab"; raise ConfigError for any other text."""
    found = DELIMITER_NAMES.get(given.lower(), "\t" if given == r"\t" else given)
    if len(found) != 1 or found in '"\r\n' or not found.isascii():
        names = ", ".join(DELIMITER_NAMES)
        text = f"delimiter must be a single ASCII character, or one of {names}, not {given!r}"
        raise ConfigError(text, settings=("delimiter",))
    return found


def find_delimiter(text: str, path: Path, expected: Expected = UNKNOWN) -> str:
    """Return the delimiter with which most rows have the same number of cells, which must be larger than one.

    If the model needs one column only, or the number of columns is not known, the table may have one column.

    >>> find_delimiter("a;b\\n1,5;2,5\\n", Path("a.csv"))
    ';'
    """
    shares = {}
    for one in dict.fromkeys(expected.delimiter + DELIMITERS):
        widths = [len(row) for row in itertools.islice(lenient_rows(text, one), FEW_ROWS) if row]
        (width, times), *_ = Counter(widths).most_common(1) or [(1, 0)]
        shares[one] = times / len(widths) if width > 1 else 0.0
    best = max(shares, key=lambda one: shares[one])
    if not shares[best] and not expected.delimiter:
        raise DataError(f"{path}: only one column was found; set the delimiter", settings=("delimiter",))
    return best if shares[best] else expected.delimiter


def find_decimal(rows: list[list[str]], delimiter: str) -> str:
    """Return the decimal mark: a comma if there are numbers such as 1,5, and none such as 1.5."""
    if delimiter == ",":
        return "."
    cells = [cell.strip() for row in rows for cell in row]
    commas = [cell for cell in cells if "," in cell and COMMA_NUMBER.fullmatch(cell)]
    comma = any(not THOUSANDS.fullmatch(cell) for cell in commas)
    return "," if comma and not any("." in cell and POINT_NUMBER.fullmatch(cell) for cell in cells) else "."


def has_header(path: Path, rows: list[list[str]], dialect: Dialect, otherwise: bool | None = None) -> bool:
    """Return whether the first row is a header.

    - A first row 0, 1, 2, …, as pandas writes for columns without names, is a header, see `are_column_numbers`.
    - A first row of numbers and missing values is data.
    - A first row of numbers and texts is data if each text recurs in its column.
    - A first row of texts is a header if there is a column of numbers, or `otherwise`, or if no text recurs in its column.

    Parameters
    ----------
    rows : the first rows of the table
    otherwise : whether there is a header if the first row does not show it; None if this is not known

    Raises
    ------
    DataError : there are numbers, and texts that do not recur
    """
    first, below = [cell.strip() for cell in rows[0]], [row for row in rows[1:] if len(row) == len(rows[0])]
    columns = [[cell.strip() for cell in column if not is_missing(cell)] for column in zip(*below, strict=True)]
    columns = columns or [[] for _ in first]
    numbers = [cell for cell in first if dialect.is_number(cell)]
    if are_column_numbers(first):
        return True
    texts = [number for number, cell in enumerate(first) if not (is_missing(cell) or dialect.is_number(cell))]
    if not texts:
        return False
    if numbers:
        if all(first[number] in columns[number] for number in texts):
            return False
        if otherwise is not None:
            return otherwise
        raise DataError(
            f"{path}: line 1 starts with {rows[0][0]!r} and could be a header or data; set header to true or false",
            settings=("header",),
        )
    if any(column and all(map(dialect.is_number, column)) for column in columns):
        return True
    if otherwise is not None:
        return otherwise
    return not any(first[number] in columns[number] for number in texts)


def are_column_numbers(names: list[str]) -> bool:
    """Return whether names are the numbers of the columns, as pandas writes them, also after the name of one other column.

    >>> are_column_numbers(["", "0", "1"]), are_column_numbers(["label", "1", "2", "3", "4"]), are_column_numbers(["0", "1"])
    (True, True, False)
    """
    first, rest = names[0], names[1:]
    counted = [[str(number + start) for number in range(len(rest))] for start in (0, 1)]
    if not POINT_NUMBER.fullmatch(first) and rest in counted:
        return first == "" or len(names) >= WIDE
    return len(names) >= WIDE and names == [*map(str, range(len(names)))]
