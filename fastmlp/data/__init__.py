"""Read and check data sets, split their rows into training, validation and test sets, and fit the scaling of the inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmlp._lazy import lazy

if TYPE_CHECKING:
    from fastmlp.data.dataset import Dataset as Dataset
    from fastmlp.data.load import load_data as load_data
    from fastmlp.data.named import fetch_data as fetch_data
    from fastmlp.data.named import list_data as list_data
    from fastmlp.data.named import verify_data as verify_data
    from fastmlp.data.rows import Subset as Subset
    from fastmlp.data.scaling import fit_scaling as fit_scaling
    from fastmlp.data.splits import split_rows as split_rows

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "dataset": ["Dataset"],
        "load": ["load_data"],
        "named": ["fetch_data", "list_data", "verify_data"],
        "rows": ["Subset"],
        "scaling": ["fit_scaling"],
        "splits": ["split_rows"],
    },
)
