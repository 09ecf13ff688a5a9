"""Read the settings of a command from flags, environment variables, a TOML file and a recipe.

train.py and extract.py define the settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from fastmlp.errors import ConfigError, DataError, unknown_name
from fastmlp.experiments.config.fields import ParamType
from fastmlp.experiments.config.names import NOT_IN_VARIABLES, setting_synonyms
from fastmlp.experiments.config.shared import DataSettings, fields_of
from fastmlp.experiments.config.train import FIELDS, TrainConfig
from fastmlp.files import RESTORE, read_toml
from fastmlp.files.reading import exists

Chosen = TypeVar("Chosen", bound=DataSettings)
ParamTypes = Mapping[str, ParamType]

# Mutually exclusive settings. If a source sets one of them, the other one is ignored in sources of lower precedence.
PAIRS = {"val_fraction": "val_count", "test_fraction": "test_count"}
PAIRS |= {two: one for one, two in PAIRS.items()}
# FASTMLP_DATA is the data folder everywhere in fastmlp, so `data` has the variable FASTMLP_DATASET.
OTHER_NAMES = {"data": "FASTMLP_DATASET", "data_dir": "FASTMLP_DATA"}


def variable(name: str) -> str:
    """Return the name of a setting's environment variable.

    >>> variable("batch_size"), variable("data")
    ('FASTMLP_BATCH_SIZE', 'FASTMLP_DATASET')
    """
    return OTHER_NAMES.get(name, f"FASTMLP_{name.upper()}")


VARIABLES = {name: variable(name) for name in FIELDS}


def resolve(
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: str | Path | None = None,
    recipe: Mapping[str, Any] = MappingProxyType({}),
) -> TrainConfig:
    """Return the settings of a `train` run; see `resolve_as` for the parameters.

    Examples
    --------
    >>> config = resolve({"hidden": "32,16"}, {"FASTMLP_LR": "0.1", "FASTMLP_HIDDEN": "8"})
    >>> config.hidden, config.lr, config.epochs
    ((32, 16), 0.1, 50)
    """
    return resolve_as(TrainConfig, flags, environment, file, recipe)


def resolve_as(
    settings: type[Chosen],
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: str | Path | None = None,
    recipe: Mapping[str, Any] = MappingProxyType({}),
) -> Chosen:
    """Return the settings of a command. Precedence, highest first: flag, environment variable, file, recipe, default.

    Parameters
    ----------
    settings : class of the settings
    flags : dict from setting to the text of its flag, to a bool for a flag without a value, or to None if it is not given
    environment : environment variables, see `variable`; synonyms are accepted, and empty variables are ignored
    file : TOML file with settings or their synonyms as keys
    recipe : settings of a published experiment

    Raises
    ------
    ConfigError : a value has the wrong type, the file cannot be used, or settings contradict each other
    """
    fields = fields_of(settings)
    types: ParamTypes = {name: one.metadata["type"] for name, one in fields.items()}
    chosen: dict[str, Any] = {name: one.default for name, one in fields.items()}
    given = {} if file is None else read_file(Path(file), types)
    published = read_table(recipe, types, "recipe")
    for source in (published, given, read_environment(environment, types), read_flags(flags, types)):
        for name in sorted(source.keys() & PAIRS.keys()):
            if PAIRS[name] in source:
                raise ConfigError(f"{name} and {PAIRS[name]} exclude each other; give only one", settings=(name, PAIRS[name]))
            chosen[PAIRS[name]] = None
        chosen |= source
    return settings(**chosen)


def read_flags(flags: Mapping[str, Any], types: ParamTypes) -> dict[str, Any]:
    """Return the settings that are given as flags."""
    given = {name: value for name, value in flags.items() if value is not None}
    return {
        name: types[name].value(name, value, text=isinstance(value, str), settings=(name,)) for name, value in given.items()
    }


def read_environment(environment: Mapping[str, str], types: ParamTypes) -> dict[str, Any]:
    """Return the settings given by environment variables; raise ConfigError if two variables give the same setting."""
    synonyms = {other: name for other, name in setting_synonyms(types).items() if other not in NOT_IN_VARIABLES}
    names = {variable(other): name for other, name in synonyms.items()} | {variable(name): name for name in types}
    settings: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key in (key for key in names if environment.get(key)):
        name = names[key]
        if name in origin:
            raise ConfigError(f"{origin[name]} and {key} are both set, but they mean the same setting; unset one of them")
        origin[name] = key
        settings[name] = types[name].value(key, environment[key], text=True)
    return settings


def read_config(path: Path) -> TrainConfig:
    """Read the settings of a run from the file that it wrote.

    Raises
    ------
    DataError : the file is missing or damaged, or another version of fastmlp has written it
    """
    read_toml(path)  # for its errors
    with stored_settings(path):
        config = resolve({}, {}, path)
        config.settings()  # raises the errors of invalid values
    return config


@contextmanager
def stored_settings(path: Path) -> Iterator[None]:
    """Context manager that converts a ConfigError to a DataError, because the settings are those of a file of a run."""
    try:
        yield
    except ConfigError as error:
        raise DataError(f"{path}: invalid settings ({str(error).removeprefix(f'{path}: ')}); {RESTORE}") from error


def read_file(path: Path, types: ParamTypes) -> dict[str, Any]:
    """Return the settings in a TOML file; keys may have hyphens instead of underscores, and may be synonyms.

    Raises
    ------
    ConfigError : the file is missing or is not valid TOML, or has an unknown key or a value of the wrong type
    DataError : the file is not a regular file, or is too large
    """
    if not exists(path):
        raise ConfigError(f"{path}: there is no such file; check the path", settings=("config",))
    return read_table(read_toml(path, ConfigError), types, str(path))


def read_table(table: Mapping[str, Any], types: ParamTypes, where: str) -> dict[str, Any]:
    """Return the settings in a parsed TOML table; raise ConfigError with `where` at the start of the message."""
    settings: dict[str, Any] = {}
    origin: dict[str, str] = {}
    synonyms = setting_synonyms(types)
    for key, value in table.items():
        name = key.replace("-", "_")
        name = synonyms.get(name, name)
        if name not in types:
            raise ConfigError(f"{where}: {unknown_name('key', key, types)}")
        if name in origin:
            raise ConfigError(f"{where}: {name} is set twice, as {origin[name]} and as {key}; keep one")
        origin[name] = key
        settings[name] = types[name].value(f"{where}: {name}", value)
    return settings
