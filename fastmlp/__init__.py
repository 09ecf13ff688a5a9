"""fastmlp: multi-layer perceptrons trained fast, from kernels that people can read.

>>> import fastmlp
>>> network = fastmlp.Network((64, 32, 10), activation="relu", dropout=0.1)
>>> network.parameters
2410

Names are imported at their first use, so that `import fastmlp` costs nothing: no compilation, no heavy package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmlp.data.dataset import Dataset, load_data
    from fastmlp.data.rows import Subset
    from fastmlp.data.scaling import fit_scaling
    from fastmlp.data.splits import split_rows
    from fastmlp.models.file import load, save
    from fastmlp.models.metrics import evaluate
    from fastmlp.models.model import Model
    from fastmlp.nn.network import Network
    from fastmlp.nn.optimizers import Optimizer
    from fastmlp.nn.scaling import Scaling
    from fastmlp.nn.schedules import Schedule
    from fastmlp.training.loop import Training, train
    from fastmlp.training.many import train_many
    from fastmlp.training.settings import Settings

__version__ = "0.1.0"

# The module of each public name.
_HOME = {
    "Dataset": "data.dataset",
    "load_data": "data.dataset",
    "Subset": "data.rows",
    "fit_scaling": "data.scaling",
    "split_rows": "data.splits",
    "load": "models.file",
    "save": "models.file",
    "evaluate": "models.metrics",
    "Model": "models.model",
    "Network": "nn.network",
    "Optimizer": "nn.optimizers",
    "Scaling": "nn.scaling",
    "Schedule": "nn.schedules",
    "Training": "training.loop",
    "train": "training.loop",
    "train_many": "training.many",
    "Settings": "training.settings",
}

__all__ = [
    "Dataset",
    "Model",
    "Network",
    "Optimizer",
    "Scaling",
    "Schedule",
    "Settings",
    "Subset",
    "Training",
    "__version__",
    "evaluate",
    "fit_scaling",
    "load",
    "load_data",
    "save",
    "split_rows",
    "train",
    "train_many",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastmlp' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastmlp.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
