"""Features of data frames, such as those of pandas and polars, whose columns are matched by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.data.readers.table import Table, plain
from fastmlp.data.tables.encoding import Column, TableEncoding, encode
from fastmlp.errors import DataError


def is_frame(x: Any) -> bool:
    """Return whether an object is a data frame."""
    return hasattr(x, "columns") and hasattr(x, "__arrow_c_stream__")


def frame_encoding(x: Any) -> TableEncoding | None:
    """Return the encoding of a data frame of numbers whose columns have distinct names; None for any other object."""
    names = list(x.columns) if is_frame(x) else []
    if not names or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        return None
    columns = tuple(Column(name, position) for position, name in enumerate(names))
    return TableEncoding(columns, "", header=True, width=len(names))


def encode_frame(frame: Any, encoding: TableEncoding, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Return the features of a data frame for a saved model, (n, features) of the dtype.

    Raises
    ------
    DataError : a column is missing, or a row has missing values that the encoding does not replace
    """
    import pyarrow as pa

    table = pa.table(frame)
    columns = [plain(column) for column in table.columns]
    found = encode(Table(Path("data frame"), table.column_names, columns, None), encoding, dtype=dtype)
    if found.incomplete.any():
        row = int(np.argmax(found.incomplete))
        raise DataError(f"data frame: row {row + 1} has missing values; remove such rows, as was done in the training data")
    return found.x
