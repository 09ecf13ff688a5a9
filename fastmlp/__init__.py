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
    from fastmlp.data import Dataset, load_data
    from fastmlp.evaluation import evaluate
    from fastmlp.loop import Training
    from fastmlp.many import train_many
    from fastmlp.model import Model
    from fastmlp.modelfile import load, save
    from fastmlp.network import Network
    from fastmlp.optimizers import Optimizer, Schedule
    from fastmlp.preprocess import Scaling, fit_scaling, split_rows
    from fastmlp.rows import Subset
    from fastmlp.settings import Settings
    from fastmlp.training import train

__version__ = "0.1.0"

# The module of each public name.
_HOME = {
    "Dataset": "data",
    "load_data": "data",
    "evaluate": "evaluation",
    "train_many": "many",
    "Model": "model",
    "load": "modelfile",
    "save": "modelfile",
    "Network": "network",
    "Optimizer": "optimizers",
    "Schedule": "optimizers",
    "Scaling": "preprocess",
    "fit_scaling": "preprocess",
    "split_rows": "preprocess",
    "Subset": "rows",
    "Settings": "settings",
    "Training": "loop",
    "train": "training",
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
