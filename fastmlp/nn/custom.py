"""User-defined scalar functions: checks, snapshots that later changes of globals cannot affect, and a hash of their code.

Engines compile a custom activation when they first need it, possibly long after it was defined, and compiled kernels are cached
on disk. So the hash must cover everything that determines the results: the bytecode, constants, default values of arguments,
and the values of all globals and closure variables, including other functions. `snapshot` therefore refuses values of types
that cannot be hashed reliably, such as arrays and modules other than math and numpy.
"""

from __future__ import annotations

import dis
import hashlib
import inspect
from collections.abc import Callable, Iterator
from numbers import Real
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from fastmlp.errors import ConfigError

MODULES = ("math", "numpy")
NUMBERS = (bool, int, float, np.number, np.bool_, type(None))
# Points at which a custom activation is evaluated. None of them is close to a multiple of 1/2, where many activations have
# kinks. Functions that overflow in float64 only do so for larger values.
POINTS = (-3.1, -1.3, -0.52, -0.11, 0.07, 0.43, 1.21, 2.9)
STEP = 1e-3  # step of the finite differences; small enough for a wave of 100 rad, large enough for values rounded to float32
TOLERANCE = 1e-2  # largest relative error of a slope

# ------------------------------------------------------------------------------------------------ snapshots


def snapshot(given: Any, where: str, arguments: int) -> FunctionType:
    """Return a copy of a function, and of all functions that it calls, with the present values of globals and closures.

    Decorators of Numba are removed, because each engine compiles the functions with its own options.

    Parameters
    ----------
    given : a Python function
    where : description of the function for error messages
    arguments : number of positional arguments with which the function is called

    Raises
    ------
    ConfigError : not a Python function, the wrong number of arguments, or a construct that is not supported
    """
    function = copied(given, where, ())
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError as error:
        has = f"the arguments {inspect.signature(function)}"
        raise ConfigError(f"{where} is called with {arguments} arguments, but has {has}: {error}") from None
    return function


def copied(given: Any, where: str, callers: tuple[FunctionType, ...]) -> FunctionType:
    """Return a copy of a function that is called by the functions `callers`, which call each other; see `snapshot`."""
    function = getattr(given, "py_func", given)  # the plain function of one that is decorated with numba.njit
    if not isinstance(function, FunctionType):
        raise ConfigError(f"{where} must be a Python function (def or lambda), not {given!r}")
    code = function.__code__
    if any(function is caller for caller in callers):
        raise ConfigError(f"{where}: {function.__name__} calls itself, directly or indirectly; use a loop")
    if any(one.opname == "RAISE_VARARGS" for one in instructions(code)):
        raise ConfigError(f"{where}: {function.__name__} contains raise or assert, but kernels cannot raise exceptions")
    if code.co_kwonlyargcount or code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
        raise ConfigError(f"{where}: {function.__name__} has keyword-only or variadic arguments")
    callers = (*callers, function)
    used = {name: function.__globals__[name] for name in global_names(code) if name in function.__globals__}
    values = {name: checked(value, f"{where} uses {name}", callers) for name, value in used.items()}
    defaults = tuple(checked(value, f"{where} has a default value", callers) for value in function.__defaults__ or ())
    try:
        held = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:
        raise ConfigError(f"{where} uses a variable that has no value yet") from None
    named = zip(code.co_freevars, held, strict=True)
    cells = tuple(CellType(checked(value, f"{where} uses {name}", callers)) for name, value in named)
    values["__name__"] = function.__module__  # Numba reads it
    copy = FunctionType(code, values, function.__name__, defaults, cells)
    copy.__qualname__ = function.__qualname__
    return copy


def checked(value: Any, where: str, callers: tuple[FunctionType, ...]) -> Any:
    """Return the copy of a value that a function uses. Raise ConfigError if its type is not supported."""
    if isinstance(value, FunctionType) or isinstance(getattr(value, "py_func", None), FunctionType):
        return copied(value, where, callers)
    if isinstance(value, tuple):
        return tuple(checked(one, where, callers) for one in value)
    if isinstance(value, (*NUMBERS, np.ufunc)) or (isinstance(value, ModuleType) and value.__name__ in MODULES):
        return value
    if isinstance(value, (BuiltinFunctionType, type)) and value.__module__ in (*MODULES, "builtins"):
        return value
    text = f"the module {value.__name__}" if isinstance(value, ModuleType) else f"a value of type {type(value).__name__}"
    raise ConfigError(
        f"{where}, {text}, but custom activations can only use numbers, tuples, functions, and the modules math and numpy"
    )


def instructions(code: CodeType) -> Iterator[dis.Instruction]:
    """Yield the instructions of a function and of the functions that it defines."""
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from instructions(constant)


def global_names(code: CodeType) -> list[str]:
    """Return the names of the globals and built-in functions that a function reads."""
    return sorted({str(one.argval) for one in instructions(code) if one.opname == "LOAD_GLOBAL"})


# ------------------------------------------------------------------------------------------------ hashes


def digest(*values: Any) -> str:
    """Return a hash of numbers and snapshots of functions. It is equal in different processes with the same Python version."""
    return hashlib.sha256(repr(described(values)).encode()).hexdigest()


def described(value: Any) -> Any:
    """Return nested tuples of texts, bytes and numbers that describe everything that affects the results of a function.

    Names of local variables, docstrings, annotations, files and line numbers do not affect the results. Types are included,
    because 1, 1.0 and True are equal.
    """
    if isinstance(value, FunctionType):
        known = {name: described(one) for name, one in value.__globals__.items() if name != "__name__"}
        cells = [described(cell.cell_contents) for cell in value.__closure__ or ()]
        code = described_code(value.__code__, has_docstring=value.__doc__ is not None)
        return "function", code, described(value.__defaults__), sorted(known.items()), cells
    if isinstance(value, CodeType):
        return described_code(value)
    if isinstance(value, (tuple, frozenset)):
        parts = [described(one) for one in value]
        return type(value).__name__, parts if isinstance(value, tuple) else sorted(parts, key=repr)
    if isinstance(value, ModuleType):
        return "module", value.__name__
    if isinstance(value, (BuiltinFunctionType, type)):
        return "name", str(value.__module__), value.__qualname__
    return type(value).__name__, repr(value)


def described_code(code: CodeType, *, has_docstring: bool = False) -> Any:
    """Describe a code object. Its first constant is the docstring, or None if it has no docstring."""
    constants = [described(one) for one in ((None, *code.co_consts[1:]) if has_docstring else code.co_consts)]
    return code.co_code, code.co_argcount, code.co_names, code.co_exceptiontable, constants


# ------------------------------------------------------------------------------------------------ values


def evaluated(function: Callable[..., Any], where: str, *arguments: float) -> float:
    """Call a scalar function in Python with float64 arguments. Return NaN if its result is not defined.

    Raises
    ------
    ConfigError : the function raises an exception, or its result is not a number
    """
    try:
        with np.errstate(all="ignore"):
            result = function(*map(np.float64, arguments))
    except (ArithmeticError, ValueError):  # compiled code returns NaN or infinity instead
        return float("nan")
    except Exception as error:
        raise ConfigError(f"{where} raised {type(error).__name__}: {error}") from error
    if not isinstance(result, (Real, np.bool_)):
        raise ConfigError(f"{where} must return a number, but returned {result!r}, of type {type(result).__name__}")
    return float(result)


def check_functions(where: str, value: Callable[..., Any], slope: Callable[..., Any], a: float, differentiable: bool) -> None:
    """Evaluate an activation at `POINTS`.

    If `differentiable` is True, the slope is compared with finite differences. It must lie between the difference quotients to
    the left and to the right, which differ at a kink.

    Raises
    ------
    ConfigError : a function fails, a result is not a number, or the slope is wrong
    """
    for z in POINTS:
        left, y, right = (evaluated(value, f"{where}: value", z + step, a) for step in (-STEP, 0, STEP))
        s = evaluated(slope, f"{where}: slope", z, y, a)
        quotients = sorted([(y - left) / STEP, (right - y) / STEP])
        slack = TOLERANCE * (max(map(abs, quotients)) + 0.1)
        if differentiable and np.isfinite([s, *quotients]).all() and not quotients[0] - slack <= s <= quotients[1] + slack:
            raise ConfigError(
                f"{where}: slope({z}) is {s:.6g}, but the derivative of value is about {sum(quotients) / 2:.6g}; "
                "correct it, or set differentiable=False if slope is intentionally not the derivative"
            )
