"""Kinds of values that a setting can have: how each is read from text and from TOML, and its name in --help.

Here: `Kind` and its members. Not here: the settings themselves (train.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from fastmlp.errors import ConfigError, unknown_name

SECONDS = {"s": 1, "m": 60, "h": 3600}
FLAG_WORDS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


class Kind(NamedTuple):
    """A kind of value.

    what : what a value must be, in messages
    metavar : the same for --help, short
    read : from the text of a flag or a variable to what TOML would give; raises ValueError
    check : from what TOML gives to the final type; raises ValueError, or ConfigError with its own words
    """

    what: str
    metavar: str
    read: Callable[[str], Any]
    check: Callable[[Any], Any]

    def value(self, where: str, given: Any, *, text: bool = False) -> Any:
        """The value given, in its final type.

        Parameters
        ----------
        where : place for the message
        given : what TOML gives, or with `text` the text of a flag or a variable

        Raises
        ------
        ConfigError : it is not of this kind

        Examples
        --------
        >>> WHOLES.value("--hidden", "400,250", text=True), WHOLES.value("a.toml: hidden", [400, 250])
        ((400, 250), (400, 250))
        >>> WHOLE.value("--epochs", "many", text=True)
        Traceback (most recent call last):
        fastmlp.errors.ConfigError: --epochs must be a whole number, not 'many'
        """
        try:
            return self.check(self.read(given) if text else given)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        except (ValueError, OverflowError):
            raise ConfigError(f"{where} must be {self.what}, not {given!r}") from None


def check_text(value: Any) -> str:
    """Text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def check_whole(value: Any) -> int:
    """A whole number; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError
    return value


def check_number(value: Any) -> float:
    """A finite number as float."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return float(value)


def read_flag(text: str) -> bool:
    """True or false from the usual words."""
    if text.lower() not in FLAG_WORDS:
        raise ValueError
    return FLAG_WORDS[text.lower()]


def check_flag(value: Any) -> bool:
    """True or false and nothing else."""
    if not isinstance(value, bool):
        raise ValueError
    return value


def check_duration(value: Any) -> float:
    """Seconds.

    >>> check_duration("2m"), check_duration("1.5h"), check_duration("30"), check_duration(7)
    (120.0, 5400.0, 30.0, 7.0)
    """
    if not isinstance(value, str):
        return check_number(value)
    unit = value.strip()[-1:].lower()
    number = value.strip()[:-1] if unit in SECONDS else value
    return check_number(float(number) * SECONDS.get(unit, 1))


def check_size(value: Any) -> tuple[int, int]:
    """Height and width.

    >>> check_size("28,32"), check_size("28x32"), check_size([28, 32]), check_size(28)
    ((28, 32), (28, 32), (28, 32), (28, 28))
    """
    if isinstance(value, str):
        value = [int(side) for side in value.lower().replace("x", ",").split(",")]
    sides = value if isinstance(value, list) else [value]
    height, width = sides * 2 if len(sides) == 1 else sides
    if min(check_whole(height), check_whole(width)) < 1:
        raise ValueError
    return height, width


def list_of(item: Kind, what: str, metavar: str) -> Kind:
    """Several values: commas in text, a list or a single value in TOML; "none" is the empty list."""

    def read(text: str) -> list[Any]:
        return [] if text.strip() in ("", "none") else [item.read(part.strip()) for part in text.split(",")]

    def check(value: Any) -> tuple[Any, ...]:
        values = read(value) if isinstance(value, str) else value if isinstance(value, list) else [value]
        return tuple(item.check(one) for one in values)

    return Kind(what, metavar, read, check)


def one_of(what: str, names: Iterable[str]) -> Kind:
    """A name of a registry; an unknown one is answered with the nearest."""
    known = tuple(names)

    def check(value: Any) -> str:
        if check_text(value) not in known:
            raise ConfigError(unknown_name(what, value, known))
        return str(value)

    return Kind("a name", "|".join(known), str, check)


TEXT = Kind("a text", "TEXT", str, check_text)
NAME = TEXT._replace(metavar="NAME")
SOURCE = TEXT._replace(metavar="NAME|FILE|FOLDER")
FOLDER = TEXT._replace(metavar="FOLDER")
FILE = TEXT._replace(metavar="FILE")
WHOLE = Kind("a whole number", "N", int, check_whole)
NUMBER = Kind("a finite number", "X", float, check_number)
FLAG = Kind("true or false", "", read_flag, check_flag)
DURATION = Kind("a time such as 30s, 2m or 1h, or a number of seconds", "TIME", str, check_duration)
SIZE = Kind("HEIGHT,WIDTH in pixels, such as 28,28", "HEIGHT,WIDTH", str, check_size)
WHOLES = list_of(WHOLE, "whole numbers, such as 400,250,100, or none", "N,N,...")
NUMBERS = list_of(NUMBER, "finite numbers, such as 0.2 or 0.2,0.5", "X,X,...")
NAMES = list_of(TEXT, "names, such as relu or relu,tanh", "NAME,...")
