"""Settings that `train` and `extract` share, those of the data and their splits, and how a setting is described."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from fastmlp.data.dataset import TASKS
from fastmlp.data.named import DATASETS
from fastmlp.errors import ConfigError
from fastmlp.experiments.config.fields import (
    BOOLEAN,
    DATA_SOURCE,
    FLOAT,
    FOLDER,
    IMAGE_SIZE,
    INTEGER,
    ParamType,
    one_of,
)
from fastmlp.files import escape_toml
from fastmlp.nn.scaling import SCALINGS
from fastmlp.training.settings import DEFAULT_SCALING


def setting(group: str, type: ParamType, default: Any, text: str, *, common: bool = False) -> Any:
    """Return a dataclass field that describes a setting.

    Parameters
    ----------
    group : heading in --help under which the setting is listed
    type : type of the value
    default : default value; None means that the setting is not set, or that `text` describes the default
    text : text for --help; names of settings in backticks are shown as flags
    common : whether --help shows the setting; --help-all shows all settings
    """
    return field(default=default, metadata={"group": group, "type": type, "help": text, "common": common})


data_setting = functools.partial(setting, "Data")
network_setting = functools.partial(setting, "Network")
training_setting = functools.partial(setting, "Training")
result_setting = functools.partial(setting, "Engine and result")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Settings of the data and their splits, which `train` and `extract` share.

    Raises
    ------
    ConfigError : a name is unknown, or a fraction or a number of rows is out of range
    """

    data: str = data_setting(
        DATA_SOURCE,
        "digits",
        "Name of a data set; table (.csv, .tsv, .parquet); .npz, .pt or .safetensors file; folder with x.npy and y.npy; or "
        "folder with a folder of images per class.",
        common=True,
    )
    data_dir: str | None = data_setting(FOLDER, None, "Folder with the named data sets [default: in the user's cache].")
    image_size: tuple[int, int] | None = data_setting(IMAGE_SIZE, None, "Resize the images of an image folder.")
    skip_bad: bool = data_setting(BOOLEAN, False, "Leave out the unreadable files of an image folder.")
    max_decompressed: float | None = data_setting(
        FLOAT,
        None,
        "Maximum size of a decompressed data file in GiB [default: 1]; up to 50 times the file size is always accepted.",
    )
    task: str | None = data_setting(
        one_of("task", TASKS), None, "Type of the task [default: inferred from the targets].", common=True
    )
    val_fraction: float | None = data_setting(FLOAT, 0.2, "Fraction of the rows for validation; 0 disables it.", common=True)
    val_count: int | None = data_setting(INTEGER, None, "Number of validation rows, instead of `val_fraction`.")
    test_fraction: float | None = data_setting(
        FLOAT, 0.2, "Fraction of the rows used as the test split, if the data do not have one.", common=True
    )
    test_count: int | None = data_setting(INTEGER, None, "Number of test rows, instead of `test_fraction`.")
    stratify: bool = data_setting(BOOLEAN, False, "Preserve the class proportions in every split.")
    scale: str = data_setting(
        one_of("scaling", SCALINGS), DEFAULT_SCALING, "Scaling of the inputs, fitted to the training split."
    )
    seed: int = data_setting(
        INTEGER, 0, "Random seed for splits, initial weights, shuffling, dropout and augmentation.", common=True
    )
    split_seed: int | None = data_setting(INTEGER, None, "Random seed for the splits, if it differs from `seed`.")

    def __post_init__(self) -> None:
        for name, one in fields_of(type(self)).items():
            if one.metadata["type"].choices and (value := getattr(self, name)) is not None:
                # A normal assignment is not possible, because the dataclass is frozen.
                object.__setattr__(self, name, one.metadata["type"].value(name, value, settings=(name,)))
        if self.data in DATASETS:
            self.complete({"task": "classification"})
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ConfigError(f"{name} must be between 0 and 1, not {getattr(self, name)}", settings=(name,))
        for name in ("val_count", "test_count"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} must be 0 or more, not {getattr(self, name)}", settings=(name,))

    def split_sizes(self) -> dict[str, Any]:
        """Return the arguments of `data.splits.split` other than the data set."""
        validation = self.val_count if self.val_count is not None else self.val_fraction or 0
        test = self.test_count if self.test_count is not None else self.test_fraction or 0
        seed = self.seed if self.split_seed is None else self.split_seed
        return {"validation": validation, "test": test, "stratify": self.stratify, "seed": seed}

    def table(self) -> dict[str, Any]:
        """Return the settings that are not None, with the types of TOML; `resolve` can read them."""
        table = {name: getattr(self, name) for name in fields_of(type(self)) if getattr(self, name) is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in table.items()}

    def text(self) -> str:
        """Return the settings that are not None, as TOML text.

        >>> print(DataSettings(seed=7).text().splitlines()[0])
        data = "digits"
        """
        return escape_toml(tomli_w.dumps(self.table()))

    def complete(self, values: dict[str, Any]) -> None:
        """Replace settings that are None with the given values. Only __post_init__ may call this."""
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)


def fields_of(settings: type[DataSettings]) -> dict[str, dataclasses.Field[Any]]:
    """Return the dataclass fields of a settings class, by name."""
    return {one.name: one for one in dataclasses.fields(settings)}


def check_intervals(config: DataSettings) -> None:
    """Raise ConfigError if the interval at which a run saves per-class metrics or models is not positive."""
    for name in ("per_class_every", "save_every"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise ConfigError(f"{name} must be 1 or more, not {value}; leave it out to disable it", settings=(name,))
