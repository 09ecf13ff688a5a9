"""Features of data frames, such as those of pandas and polars, whose columns are matched by their names."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.data.readers.table import Table, plain
from fastmlp.data.tables.encoding import Column, TableEncoding, encode, listing
from fastmlp.errors import DataError

NAME = Path("data frame")  # stands for the file in error messages


def is_frame(x: Any) -> bool:
    """Return whether an object is a data frame."""
    return hasattr(x, "columns") and hasattr(x, "__arrow_c_stream__")


def frame_encoding(x: Any) -> TableEncoding | None:
    """Return the encoding of a data frame of numbers whose columns have distinct names; None for any other object.

    Raises
    ------
    DataError : a name is not valid Unicode, so that it cannot be stored in a model file
    """
    names = list(x.columns) if is_frame(x) else []
    if not names or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        return None
    for number, name in enumerate(names, start=1):
        if re.search("[\ud800-\udfff]", name):
            raise DataError(f"{NAME}: the name of column {number}, {name!r}, is not valid Unicode; rename the column")
    columns = tuple(Column(name, position) for position, name in enumerate(names))
    return TableEncoding(columns, "", header=True, n_columns=len(names))


def encode_frame(frame: Any, encoding: TableEncoding, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Return the features of a data frame for a saved model, (n, features) of the dtype.

    Warns
    -----
    UserWarning : a column has categories that do not occur in the training data, which are encoded as zeros

    Raises
    ------
    DataError : a column is missing or has an unsupported type, or a row has missing values that are not replaced
    """
    import pyarrow as pa

    if not encoding.header:
        raise DataError(f"{NAME}: the training table had no names of columns; pass an array with the same columns")
    needed = {column.name for column in encoding.columns}
    names = {str(name).strip(): name for name in frame.columns if str(name).strip() in needed}
    if lacking := sorted(needed - names.keys()):
        raise DataError(f"{NAME}: missing columns that the model needs: {listing([*map(repr, lacking)])}")
    try:
        arrow = pa.table(frame[list(names.values())])
    except (pa.ArrowException, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{NAME}: it cannot be converted to an Arrow table ({reason}); convert its columns first") from error
    texts = encoding.text_columns(len(names))
    columns = [plain(arrow[str(name)], NAME, key, None, text=key in texts) for key, name in names.items()]
    table = Table(NAME, [*names], columns, None)
    found = encode(table, encoding, dtype=dtype)
    for note in found.notes:
        warnings.warn(f"{NAME}: {note}", UserWarning, stacklevel=3)
    if found.incomplete.any():
        row = int(np.argmax(found.incomplete))
        raise DataError(f"{NAME}: row {row + 1} has missing values; drop such rows, which were also dropped in training")
    return found.x
