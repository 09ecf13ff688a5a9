"""Reader of `.csv` files as used by Kaggle: the first column is the label or target, the other columns are the features.

The reader returns `RawArrays`. Its error messages give the line and the column.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.data.checks import SourceLocation
from fastmlp.data.readers.arrays import RawArrays
from fastmlp.errors import DataError, unknown_name
from fastmlp.files import file_errors

FLOAT32_MAX = float(np.finfo(np.float32).max)


def read_csv(path: str | Path, task: str = "classification", weight: str | None = None) -> RawArrays:
    """Read a comma-separated UTF-8 table whose first column is the label or target, followed by the features.

    The first line is data if its first cell is a number. It is a header if none of its cells is a number or empty. Anything
    else is an error, so that a row of data is never mistaken for a header. If there is a header and the label in the first
    line of data is text, all labels are read as text. If all features are whole numbers from 0 to 255, x is uint8, else
    float32. Blank lines are allowed only at the end of the file. If the header names the features pixel0, pixel1, ... or
    pixel1, pixel2, ..., as in Kaggle's files, and their number is a square, the rows are read as square images.

    Parameters
    ----------
    path : CSV file
    task : "classification", or "regression", for which the first column must hold numbers
    weight : name of the column with the sample weights, in the header; None for equal weights

    Raises
    ------
    DataError : lines of different lengths, blank lines, empty cells, text, NaN, or numbers outside the range of float32; the
        message gives the line and the column

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.csv"
    ...     _ = path.write_text("label,pixel0,pixel1,pixel2,pixel3\\ncat,0,255,0,1\\ndog,3,4,5,6\\n")
    ...     arrays = read_csv(path)
    >>> arrays.y.tolist(), arrays.classes, arrays.x.dtype, arrays.image_shape
    ([0, 1], ['cat', 'dog'], dtype('uint8'), (2, 2, 1))
    """
    path = Path(path)
    first = list(itertools.islice(csv_rows(path), 2))
    if not first or not any(cell.strip() for cell in first[0]):
        raise DataError(f"{path}: line 1 is empty; a label and numbers, separated by commas, are needed")
    if len(first[0]) < 2:
        raise DataError(f"{path}: line 1 has one column; a label and numbers, separated by commas, are needed")
    header = first[0] if _is_header(path, first) else None
    skip = int(header is not None)
    label = first[skip][0].strip() if len(first) > skip and first[skip] else ""
    text = task == "classification" and header is not None and label != "" and not is_number(label)
    table, names = csv_table(path, skip, text)
    if table.shape[1] != len(first[0]):
        raise DataError(f"{path}: line 2 has {table.shape[1]} columns, but line 1 has {len(first[0])}; make them equal")
    features, weights = list(range(1, table.shape[1])), None
    if weight is not None:
        column = column_of(path, header, weight)
        features.remove(column)
        weights = table[:, column].copy()
    shape = _pixel_shape([] if header is None else [header[column] for column in features])
    x, y = _narrow(table[:, features] if weight else table[:, 1:]), table[:, 0].copy()
    locations = dict.fromkeys(("x", "y", "weight"), SourceLocation(str(path), "line", 1 + skip))
    if not text:
        return RawArrays(x, y, None, shape, locations=locations, weight=weights)
    rank = np.argsort(np.argsort(np.array(names, object)))  # the position of each name in sorted order
    return RawArrays(x, rank[y.astype(np.intp)], sorted(names), shape, locations=locations, weight=weights)


def column_of(path: Path, header: list[str] | None, name: str) -> int:
    """Return the index of the column with this name; raise DataError if there is none, or if it is the only feature."""
    names = [cell.strip() for cell in header or ()]
    if name not in names[1:]:
        missing = f"no column {name!r}, because the file has no header line; add one"
        reason = unknown_name("column", name, names[1:]) if names else missing
        raise DataError(f"{path}: {reason}", settings=("weight",))
    if len(names) < 3:
        raise DataError(f"{path}: no features other than the sample weights {name!r}", settings=("weight",))
    return names.index(name, 1)


def csv_rows(path: Path) -> Iterator[list[str]]:
    """Yield the cells of each line as text. Raise DataError if the file is not UTF-8 or not a csv file."""
    with file_errors("read", path), path.open(encoding="utf-8-sig", newline="") as handle:
        try:
            yield from csv.reader(handle, strict=True)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8 csv") from error
        except csv.Error as error:
            raise DataError(f"{path}: not a csv file ({error}); save it as comma-separated text") from error


def is_number(cell: str) -> bool:
    """Return whether NumPy's parser accepts the cell as a number.

    Python's `float` accepts more, such as 1_000 or the digits of other scripts.

    >>> [is_number(cell) for cell in (" 1e3", "nan", "1_000", "")]
    [True, True, False, False]
    """
    if "_" in cell or not cell.isascii():
        return False
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _all_good(cells: list[str]) -> bool:
    """Check quickly whether all cells of a line are finite float32 numbers. May wrongly return False, but never True."""
    line = "".join(cells)
    try:
        return line.isascii() and "_" not in line and sum(map(abs, map(float, cells))) <= FLOAT32_MAX
    except ValueError:
        return False


def _is_header(path: Path, rows: list[list[str]]) -> bool:
    """Return whether the first line is a header, by the rules given in `read_csv`.

    Raise DataError if the line is neither a header nor data.
    """
    label, features = rows[0][0].strip(), [cell.strip() for cell in rows[0][1:]]
    if not label:
        raise DataError(f"{path}: line 1, column 1 is empty; put the label first (pandas: to_csv(index=False))")
    if is_number(label):
        return False
    if all(features) and not any(map(is_number, features)):
        if re.fullmatch(r"pixel\d+", label):
            raise DataError(f"{path}: the header starts with {label!r}; put a label column first")
        return True
    raise DataError(
        f"{path}: line 1 starts with {label!r} but is neither a header nor data; "
        "add a header line of column names that are not numbers, such as label,pixel0,pixel1"
    )


def csv_table(path: Path, skip: int, text: bool) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Return a table of finite numbers (rows, columns), and the list of its text labels; the code of a label is its index.

    Parameters
    ----------
    skip : number of header lines, 0 or 1
    text : whether the first column is text, which is encoded as 0, 1, … in order of appearance

    Raises
    ------
    DataError : as in `read_csv`

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.csv"
    ...     _ = path.write_text("kind,a\\nplum,1\\nfig,2\\nplum,3\\n")
    ...     header, (table, names) = next(csv_rows(path)), csv_table(path, skip=1, text=True)
    >>> header, table.tolist(), names
    (['kind', 'a'], [[0.0, 1.0], [1.0, 2.0], [0.0, 3.0]], ['plum', 'fig'])
    """
    codes: dict[str, int] = {}

    def code(cell: str) -> int:
        if not cell.strip():
            raise ValueError("empty label")
        return codes.setdefault(cell.strip(), len(codes))

    try:
        with file_errors("read", path), path.open(encoding="utf-8-sig") as handle:
            lines = itertools.islice(_without_blank_lines(path, handle), skip, None)
            if (line := next(lines, None)) is None:  # NumPy would only warn if there are no data
                raise DataError(f"{path}: no line of data after the header; add rows")
            table: npt.NDArray[np.float32] = np.loadtxt(
                itertools.chain([line], lines),
                np.float32,
                delimiter=",",
                comments=None,
                quotechar='"',
                ndmin=2,
                converters={0: code} if text else None,
            )
    except DataError:
        raise
    except ValueError as error:
        raise DataError(_csv_fault(path, skip, text) or f"{path}: {error}") from error
    if not np.isfinite(table).all():
        raise DataError(_csv_fault(path, skip, text))
    return table, list(codes)


def _without_blank_lines(path: Path, lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines without blank lines at the end. Raise DataError for other blank lines, which NumPy would skip."""
    blank = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            blank = blank or number
        elif blank:
            raise DataError(f"{path}: line {blank} is blank; remove it")
        else:
            yield line


def _csv_fault(path: Path, skip: int, text: bool) -> str:
    """Return a message about the first invalid line. It is slow, so it is called only after an error has been detected."""
    width = 0
    for number, cells in enumerate(csv_rows(path), 1):
        if not cells:  # a blank line at the end; blank lines elsewhere have already been rejected
            continue
        width = width or len(cells)
        if len(cells) != width:
            return f"{path}: line {number} has {len(cells)} columns, but line 1 has {width}; make them equal"
        if number <= skip or (_all_good(cells[text:]) and not (text and not cells[0].strip())):
            continue
        for column, cell in enumerate(cells, 1):
            location = f"{path}: line {number}, column {column}"
            if not cell.strip():
                return f"{location} is empty; fill it or remove the line"
            if text and column == 1:
                continue
            if not is_number(cell):
                return f"{location}: {cell!r} is not a number; correct it or remove the line"
            if not abs(float(cell)) <= FLOAT32_MAX:
                return f"{location}: {cell!r} is not a finite float32 number; correct it or remove the line"
    return ""


def _narrow(x: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Convert x to uint8 if all values are whole numbers from 0 to 255, such as pixels; otherwise return x unchanged."""
    if x.min() >= 0 and x.max() <= 255:
        pixels = x.astype(np.uint8)
        if np.array_equal(pixels, x):
            return pixels
    return x


def _pixel_shape(header: list[str]) -> tuple[int, int, int] | None:
    """Return the shape of square images if the features have names of pixels as described in `read_csv`, else None."""
    names = [cell.strip() for cell in header]
    side = math.isqrt(len(names))
    kaggle = any(names == [f"pixel{i + start}" for i in range(len(names))] for start in (0, 1))
    return (side, side, 1) if names and kaggle and side * side == len(names) else None
