"""Checks of settings: numbers in a range, and names of keyword arguments with hints for those of other libraries."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

from fastmlp.errors import ConfigError, unknown_name

MOST = 2**31 - 1  # largest value of settings that are whole numbers
SHOWN = 60  # characters of an invalid value in an error message

Given = ParamSpec("Given")
Result = TypeVar("Result")


def check_number(
    name: str, given: Any, valid: Callable[[float], bool], needed: str, *, settings: Sequence[str] | None = None
) -> None:
    """Check that a setting is a real number in a range.

    Parameters
    ----------
    name : name of the setting, for the error message
    given : the value
    valid : function that returns whether a float is in the range; it must be False for NaN
    needed : description of valid values, for the error message
    settings : names of the settings to change; None for `name`

    Raises
    ------
    ConfigError : the value is not a number, or is outside the range

    Examples
    --------
    >>> check_number("dropout", "0.5", lambda value: 0 <= value < 1, "at least 0 and below 1")
    Traceback (most recent call last):
    fastmlp.errors.ConfigError: dropout must be at least 0 and below 1, not '0.5'
    """
    try:
        value = float(given) if not isinstance(given, bool) and isinstance(given, Real) else math.nan
    except OverflowError:
        value = math.nan
    if not valid(value):
        raise ConfigError(f"{name} must be {needed}, not {shown(given)}", settings=(name,) if settings is None else settings)


def check_whole(name: str, given: Any, least: int, most: int = MOST, *, settings: Sequence[str] | None = None) -> None:
    """Check that a setting is a whole number from `least` to `most`; raise ConfigError otherwise."""
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    if whole and least <= int(given) <= most:
        return
    too_large = whole and int(given) > most
    needed = f"at most {'2^64 - 1' if most == 2**64 - 1 else most}" if too_large else f"at least {least} and a whole number"
    raise ConfigError(f"{name} must be {needed}, not {shown(given)}", settings=(name,) if settings is None else settings)


def check_switch(name: str, given: Any) -> None:
    """Check that a setting is True or False; raise ConfigError otherwise."""
    if not isinstance(given, bool):
        raise ConfigError(f"{name} must be True or False, not {shown(given)}", settings=(name,))


def shown(given: Any) -> str:
    """Return a short text that represents an invalid value."""
    try:
        text = " ".join(repr(given).split())
    except ValueError:  # a whole number with thousands of digits
        text = f"a number of type {type(given).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def check_arguments(what: str, given: Iterable[str], names: Iterable[str], instead: Mapping[str, str]) -> None:
    """Check the names of keyword arguments.

    Parameters
    ----------
    what : the function or class, for error messages
    given : names of the arguments that were given
    names : names of the arguments that exist
    instead : for names of other libraries, what to write instead

    Raises
    ------
    ConfigError : an argument does not exist
    """
    known = list(names)
    for name in given:
        if name in known:
            continue
        if name in instead:
            raise ConfigError(f"{what} has no argument {name!r}; write {instead[name]}")
        raise ConfigError(unknown_name(f"argument of {what}", name, known))


def with_hints(**instead: str) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Return a decorator that calls `check_arguments` before the function."""

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        names = list(inspect.signature(function).parameters)

        @functools.wraps(function)
        def checked(*args: Given.args, **given: Given.kwargs) -> Result:
            check_arguments(f"fastmlp.{function.__name__}", given, names, instead)
            return function(*args, **given)

        return checked

    return decorate
