"""Features of data frames, such as those of pandas and polars, whose columns are matched by their names."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.data.readers.table import Table, plain
from fastmlp.data.tables.encoding import Column, TableEncoding, encode
from fastmlp.errors import DataError

NAME = Path("data frame")  # stands for the file in error messages


def is_frame(x: Any) -> bool:
    """Return whether an object is a data frame."""
    return hasattr(x, "columns") and hasattr(x, "__arrow_c_stream__")


def frame_encoding(x: Any) -> TableEncoding | None:
    """Return the encoding of a data frame of numbers whose columns have distinct names; None for any other object."""
    names = list(x.columns) if is_frame(x) else []
    if not names or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        return None
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

    try:
        arrow = pa.table(frame)
    except (pa.ArrowException, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{NAME}: it cannot be converted to an Arrow table ({reason}); convert its columns first") from error
    names = arrow.column_names
    needed = {column.name for column in encoding.columns}
    chosen = [index for index, name in enumerate(names) if name in needed]  # the others may have any type
    columns = [plain(arrow.column(index), NAME, names[index], None, text=names[index] in encoding.texts) for index in chosen]
    if not columns:
        columns = [pa.chunked_array([pa.nulls(len(arrow), pa.float64())])]
    table = Table(NAME, [names[index] for index in chosen] or [""], columns, None)
    found = encode(table, encoding, dtype=dtype)
    for note in found.notes:
        warnings.warn(f"{NAME}: {note}", UserWarning, stacklevel=3)
    if found.incomplete.any():
        row = int(np.argmax(found.incomplete))
        raise DataError(f"{NAME}: row {row + 1} has missing values; drop such rows, which were also dropped in training")
    return found.x
