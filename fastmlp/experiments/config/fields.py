"""Types of settings: how a value is read from text and from TOML, and how --help shows it.

train.py and extract.py define the settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from fastmlp.data.readers.dialect import parse_delimiter
from fastmlp.errors import ConfigError
from fastmlp.nn.names import canonical_name

SECONDS = {"s": 1, "m": 60, "h": 3600}
BOOLEAN_WORDS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


class ParamType(NamedTuple):
    """Type of a setting.

    expected : description of the valid values, for error messages
    metavar : placeholder for the value in --help
    read : function that converts the text of a flag or a variable to a TOML value; raises ValueError
    check : function that converts a TOML value to the final type; raises ValueError, or ConfigError with its own message
    choices : valid names, if the value must be the name of a registry entry; otherwise empty
    """

    expected: str
    metavar: str
    read: Callable[[str], Any]
    check: Callable[[Any], Any]
    choices: tuple[str, ...] = ()

    def value(self, where: str, given: Any, *, text: bool = False, settings: Sequence[str] = ()) -> Any:
        """Convert a value to its final type.

        Parameters
        ----------
        where : name of the setting, variable or key, for the error message
        given : a TOML value, or the text of a flag or a variable if `text` is true
        text : whether `given` is text that `read` must convert first
        settings : names of the settings to change, see `FastMLPError`

        Raises
        ------
        ConfigError : the value is not of this type

        Examples
        --------
        >>> INTEGERS.value("hidden", "400,250", text=True), INTEGERS.value("a.toml: hidden", [400, 250])
        ((400, 250), (400, 250))
        >>> INTEGER.value("epochs", "many", text=True)
        Traceback (most recent call last):
        fastmlp.errors.ConfigError: epochs must be a whole number, not 'many'
        """
        try:
            return self.check(self.read(given) if text else given)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}", settings=settings) from None
        except (ValueError, OverflowError):
            raise ConfigError(f"{where} must be {self.expected}, not {given!r}", settings=settings) from None


def check_string(value: Any) -> str:
    """Return the value if it is a string that is not blank; otherwise, raise ValueError."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def check_column(value: Any) -> str:
    """Return the name or the number of a column as text; raise ValueError for other values."""
    return check_string(str(value) if isinstance(value, int) and not isinstance(value, bool) else value)


def check_integer(value: Any) -> int:
    """Return the value if it is an integer and not a Boolean; otherwise, raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError
    return value


def check_float(value: Any) -> float:
    """Return the value as a float if it is a finite number and not a Boolean; otherwise, raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return float(value)


def read_boolean(text: str) -> bool:
    """Convert one of `BOOLEAN_WORDS` to a Boolean; the case of letters is ignored."""
    if text.lower() not in BOOLEAN_WORDS:
        raise ValueError
    return BOOLEAN_WORDS[text.lower()]


def check_boolean(value: Any) -> bool:
    """Return the value if it is a Boolean; otherwise, raise ValueError."""
    if not isinstance(value, bool):
        raise ValueError
    return value


def check_duration(value: Any) -> float:
    """Convert a duration, such as "2m", to seconds.

    >>> check_duration("2m"), check_duration("1.5h"), check_duration("30"), check_duration(7)
    (120.0, 5400.0, 30.0, 7.0)
    """
    if not isinstance(value, str):
        return check_float(value)
    unit = value.strip()[-1:].lower()
    number = value.strip()[:-1] if unit in SECONDS else value
    return check_float(float(number) * SECONDS.get(unit, 1))


def check_image_size(value: Any) -> tuple[int, int]:
    """Convert an image size to (height, width); a single number is used for both.

    >>> check_image_size("28,32"), check_image_size("28x32"), check_image_size([28, 32]), check_image_size(28)
    ((28, 32), (28, 32), (28, 32), (28, 28))
    """
    if isinstance(value, str):
        value = [int(side) for side in value.lower().replace("x", ",").split(",")]
    sides = value if isinstance(value, list) else [value]
    height, width = sides * 2 if len(sides) == 1 else sides
    if min(check_integer(height), check_integer(width)) < 1:
        raise ValueError
    return height, width


def parse_class_weight(text: str) -> dict[str, float] | str:
    """Convert "name=weight,..." to a dict; "balanced" is returned unchanged.

    >>> parse_class_weight("cat=2,dog=0.5"), parse_class_weight("balanced")
    ({'cat': 2.0, 'dog': 0.5}, 'balanced')
    """
    if text == "balanced":
        return text
    pairs = [part.rpartition("=") for part in text.split(",")]
    return {name.strip(): float(weight) for name, _, weight in pairs}


def check_class_weight(value: Any) -> str:
    """Return the text if it can be parsed, and all weights are positive; otherwise, raise ValueError."""
    found = parse_class_weight(check_string(value).strip())
    if not isinstance(found, str) and not all(name and check_float(weight) > 0 for name, weight in found.items()):
        raise ValueError
    return str(value).strip()


def list_of(item: ParamType, expected: str, metavar: str) -> ParamType:
    """Return the type of a list of values. Text has commas between the values; TOML has a list or a single value.

    The text "none" means an empty list.
    """

    def read(text: str) -> list[Any]:
        return [] if text.strip() in ("", "none") else [item.read(part.strip()) for part in text.split(",")]

    def check(value: Any) -> tuple[Any, ...]:
        values = read(value) if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        return tuple(item.check(one) for one in values)

    return ParamType(expected, metavar, read, check, item.choices)


def one_of(kind: str, names: Iterable[str]) -> ParamType:
    """Return the type of a name in a registry; `canonical_name` normalizes its spelling."""
    known = tuple(names)
    return ParamType("a name", "|".join(known), str, lambda value: canonical_name(kind, check_string(value), known), known)


def name_with_number(names: Iterable[str], canonical: Callable[[str], str]) -> ParamType:
    """Return the type of "name" or "name:number"; `canonical` validates the text and normalizes the name."""
    return ParamType("a name", "NAME", str, lambda value: canonical(check_string(value)), tuple(names))


STRING = ParamType("a non-empty string", "TEXT", str, check_string)
NAME = STRING._replace(metavar="NAME")
DATA_SOURCE = STRING._replace(metavar="NAME|FILE|FOLDER")
FOLDER = STRING._replace(metavar="FOLDER")
COLUMN = ParamType("the name or the number of a column", "COLUMN", str, check_column)
DELIMITER = ParamType("a character, or a name such as tab", "CHARACTER", str, parse_delimiter)
FILE = STRING._replace(metavar="FILE")
INTEGER = ParamType("a whole number", "N", int, check_integer)
FLOAT = ParamType("a finite number", "X", float, check_float)
BOOLEAN = ParamType("true or false", "", read_boolean, check_boolean)
DURATION = ParamType("a time such as 30s, 2m or 1h, or a number of seconds", "TIME", str, check_duration)
IMAGE_SIZE = ParamType("HEIGHT,WIDTH in pixels, such as 28,28", "HEIGHT,WIDTH", str, check_image_size)
CLASS_WEIGHT = ParamType("balanced, or NAME=WEIGHT,...", "balanced|NAME=WEIGHT,...", str, check_class_weight)
INTEGERS = list_of(INTEGER, "whole numbers, such as 400,250,100, or none", "N,N,...")
FLOATS = list_of(FLOAT, "finite numbers, such as 0.2 or 0.2,0.5", "X,X,...")
