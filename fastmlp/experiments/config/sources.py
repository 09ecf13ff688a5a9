"""Where the settings of a `train` run come from: flags, variables, a TOML file.

Here: `resolve`. Not here: the settings (train.py), and Click, which only hands over the flags (commands/options.py).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from fastmlp.errors import ConfigError, unknown_name
from fastmlp.experiments.config.fields import Kind
from fastmlp.experiments.config.train import FIELDS, Config, DataSettings, fields_of, flag

Chosen = TypeVar("Chosen", bound=DataSettings)
Kinds = Mapping[str, Kind]

# Two ways to say one thing: where a source gives one of them, it replaces the other one of the sources below.
PAIRS = {"val_fraction": "val_count", "test_fraction": "test_count"}
PAIRS |= {two: one for one, two in PAIRS.items()}
# FASTMLP_DATA is the data folder everywhere in fastmlp, so the data set needs another name.
OTHER_NAMES = {"data": "FASTMLP_DATASET", "data_dir": "FASTMLP_DATA"}


def variable(name: str) -> str:
    """The variable of a setting.

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
) -> Config:
    """The settings of a `train` run, see `resolve_as`.

    Examples
    --------
    >>> config = resolve({"hidden": "32,16"}, {"FASTMLP_LR": "0.1", "FASTMLP_HIDDEN": "8"})
    >>> config.hidden, config.lr, config.epochs
    ((32, 16), 0.1, 50)
    """
    return resolve_as(Config, flags, environment, file, recipe)


def resolve_as(
    settings: type[Chosen],
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: str | Path | None = None,
    recipe: Mapping[str, Any] = MappingProxyType({}),
) -> Chosen:
    """The settings of a command, each from its flag, else its variable, else the file, else the recipe, else the default.

    Parameters
    ----------
    flags : by name of the setting, the text given, or a bool for a flag without one; None counts as not given
    environment : variables, by the names in `VARIABLES`; an empty one counts as not given
    file : a TOML file with settings as keys
    recipe : settings of a published experiment

    Raises
    ------
    ConfigError : a value of the wrong kind, an unusable file, or settings that contradict each other
    """
    fields = fields_of(settings)
    kinds: Kinds = {name: one.metadata["kind"] for name, one in fields.items()}
    chosen: dict[str, Any] = {name: one.default for name, one in fields.items()}
    given = read_file(Path(file), kinds) if file else {}
    named = read_table(recipe, kinds, "recipe")
    for source in (named, given, read_environment(environment, kinds), read_flags(flags, kinds)):
        for name in sorted(source.keys() & PAIRS.keys()):
            if PAIRS[name] in source:
                raise ConfigError(f"{name} and {PAIRS[name]} say the same thing; give one of them")
            chosen[PAIRS[name]] = None
        chosen |= source
    return settings(**chosen)


def read_flags(flags: Mapping[str, Any], kinds: Kinds) -> dict[str, Any]:
    """The settings that the command line gives."""
    given = {name: value for name, value in flags.items() if value is not None}
    return {name: kinds[name].value(flag(name), value, text=isinstance(value, str)) for name, value in given.items()}


def read_environment(environment: Mapping[str, str], kinds: Kinds) -> dict[str, Any]:
    """The settings that variables give."""
    given = {name: environment[variable(name)] for name in kinds if environment.get(variable(name))}
    return {name: kinds[name].value(variable(name), text, text=True) for name, text in given.items()}


def read_file(path: Path, kinds: Kinds) -> dict[str, Any]:
    """The settings in a TOML file; keys may have hyphens instead of underscores.

    Raises
    ------
    ConfigError : the file is missing or not TOML, or has an unknown key or a value of the wrong kind
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path after --config") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        line = getattr(error, "lineno", None)  # from Python 3.14 on; before, only the words of the error may tell it
        place = path if line is None else f"{path}, line {line}"
        raise ConfigError(f"{place}: not TOML: {error}; correct it there") from error
    return read_table(table, kinds, str(path))


def read_table(table: Mapping[str, Any], kinds: Kinds, where: str) -> dict[str, Any]:
    """The settings in a table; raises ConfigError as `read_file`, naming where the table stands."""
    settings: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in kinds:
            raise ConfigError(f"{where}: {unknown_name('key', key, kinds)}")
        if name in settings:
            raise ConfigError(f"{where}: {name} stands there twice, as {name} and as {flag(name)[2:]}; keep one")
        settings[name] = kinds[name].value(f"{where}: {name}", value)
    return settings
