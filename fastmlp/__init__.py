"""fastmlp: fast training of multi-layer perceptrons, with readable kernels.

>>> import fastmlp
>>> network = fastmlp.Network((64, 32, 10), activation="relu", dropout=0.1)
>>> network.parameters
2410

The public names are imported on first access, so `import fastmlp` itself is fast: it compiles nothing and imports no
third-party packages.
"""

from __future__ import annotations

from fastmlp._lazy import lazy

TYPE_CHECKING = False  # importing it from typing would take several milliseconds
if TYPE_CHECKING:
    from fastmlp.data.dataset import Dataset as Dataset
    from fastmlp.data.load import load_data as load_data
    from fastmlp.data.rows import Subset as Subset
    from fastmlp.data.scaling import fit_scaling as fit_scaling
    from fastmlp.data.splits import split_rows as split_rows
    from fastmlp.errors import ConfigError as ConfigError
    from fastmlp.errors import DataError as DataError
    from fastmlp.errors import DivergedError as DivergedError
    from fastmlp.errors import FastMLPError as FastMLPError
    from fastmlp.errors import ThresholdError as ThresholdError
    from fastmlp.errors import UnavailableError as UnavailableError
    from fastmlp.errors import WriteError as WriteError
    from fastmlp.estimators.classifier import MLPClassifier as MLPClassifier
    from fastmlp.estimators.regressor import MLPRegressor as MLPRegressor
    from fastmlp.models.model import Model as Model
    from fastmlp.models.model import load as load
    from fastmlp.nn.activations import Activation as Activation
    from fastmlp.nn.network import Network as Network
    from fastmlp.nn.optimizers import SGD as SGD
    from fastmlp.nn.optimizers import Adam as Adam
    from fastmlp.nn.optimizers import AdamW as AdamW
    from fastmlp.nn.optimizers import Optimizer as Optimizer
    from fastmlp.nn.optimizers import RMSprop as RMSprop
    from fastmlp.nn.scaling import Scaling as Scaling
    from fastmlp.nn.schedules import Constant as Constant
    from fastmlp.nn.schedules import Cosine as Cosine
    from fastmlp.nn.schedules import Exponential as Exponential
    from fastmlp.nn.schedules import InverseTime as InverseTime
    from fastmlp.nn.schedules import ReduceOnPlateau as ReduceOnPlateau
    from fastmlp.nn.schedules import Schedule as Schedule
    from fastmlp.nn.schedules import Step as Step
    from fastmlp.training.api import train as train
    from fastmlp.training.api import train_many as train_many
    from fastmlp.training.learning_rate import LearningRateCurve as LearningRateCurve
    from fastmlp.training.learning_rate import find_learning_rate as find_learning_rate
    from fastmlp.training.loop import Diverged as Diverged
    from fastmlp.training.loop import Interrupted as Interrupted
    from fastmlp.training.loop import WriteFailed as WriteFailed
    from fastmlp.training.many import ManyInterrupted as ManyInterrupted
    from fastmlp.training.result import History as History
    from fastmlp.training.result import SeedResults as SeedResults
    from fastmlp.training.result import TrainResult as TrainResult
    from fastmlp.training.settings import Settings as Settings

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "data.dataset": ["Dataset"],
        "data.load": ["load_data"],
        "data.rows": ["Subset"],
        "data.scaling": ["fit_scaling"],
        "data.splits": ["split_rows"],
        "errors": [
            "ConfigError",
            "DataError",
            "DivergedError",
            "FastMLPError",
            "ThresholdError",
            "UnavailableError",
            "WriteError",
        ],
        "estimators.classifier": ["MLPClassifier"],
        "estimators.regressor": ["MLPRegressor"],
        "models.model": ["Model", "load"],
        "nn.activations": ["Activation"],
        "nn.network": ["Network"],
        "nn.optimizers": ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop"],
        "nn.scaling": ["Scaling"],
        "nn.schedules": ["Constant", "Cosine", "Exponential", "InverseTime", "ReduceOnPlateau", "Schedule", "Step"],
        "training.api": ["train", "train_many"],
        "training.learning_rate": ["LearningRateCurve", "find_learning_rate"],
        "training.loop": ["Diverged", "Interrupted", "WriteFailed"],
        "training.many": ["ManyInterrupted"],
        "training.result": ["History", "SeedResults", "TrainResult"],
        "training.settings": ["Settings"],
    },
    extra=["__version__"],
)
