"""A check of the pickles in files of torch.save, which are parsed, but not executed; claims.py explains why.

The operations are those that torch.save writes for dicts of tensors and plain values, in the pickle protocols that PyTorch
reads with weights_only=True.
"""

from __future__ import annotations

import enum
import io
import pickletools
import re
from collections.abc import Iterator
from typing import Any

from .errors import FileError, library_errors

REMEDY = "use an intact copy, or create the file again"
DAMAGED = "not a readable PyTorch file"
PROTOCOLS = (2, 3)

# Bytes per element of the storages of tensors, and the functions that construct tensors and dicts.
SIZES = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "BFloat16": 2, "Half": 2, "Short": 2, "Bool": 1, "Byte": 1, "Char": 1}
STORAGES = {f"torch {name}Storage": size for name, size in SIZES.items()}
DICT = "collections OrderedDict"
TENSORS = frozenset({f"torch._utils {name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")})
GLOBALS = frozenset({DICT, *STORAGES, *TENSORS})
# Operations that push a number, a string, a boolean or None, and the number of values that others take from the stack.
PLAIN = re.compile("BININT|BININT1|BININT2|LONG1|BINFLOAT|BINUNICODE|SHORT_BINSTRING|NONE|NEWTRUE|NEWFALSE")
TAKEN = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "BUILD": 1, "BINPERSID": 1, "REDUCE": 2}
MARKED = ("TUPLE", "APPENDS", "SETITEMS")  # operations that take all values since the last MARK
PUT = ("BINPUT", "LONG_BINPUT")
GET = ("BINGET", "LONG_BINGET")


class Kind(enum.Enum):
    """Objects on the stack that are neither plain values nor tuples."""

    TENSOR = 1
    STORAGE = 2
    CONTAINER = 3  # a list or a dict


class Function(str):
    """The name of a function or a class on the stack."""


def storage_sizes(stream: io.BytesIO, name: str) -> dict[str, int]:
    """Return the size in bytes of each storage in a pickle, by key. The pickle is parsed, but not executed.

    Parameters
    ----------
    stream : stream at the start of the pickle; afterwards, it is at its end
    name : name of the file, for error messages

    Raises
    ------
    FileError : the pickle is damaged, contains other objects than tensors and plain values, or contains the same list, tuple
        or dict twice. The same tensor may occur several times, since it contains no other object
    """
    stack = Stack(name)
    for operation, argument in operations(stream, name):
        stack.run(operation, argument)
    return stack.sizes


def operations(stream: io.BytesIO, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the operations of a pickle as (name, argument); raise FileError if they cannot be parsed."""
    parsed = pickletools.genops(stream)
    while True:
        with library_errors(FileError, f"{name}: {DAMAGED}", REMEDY):
            operation = next(parsed, None)
        if operation is None:
            return
        yield operation[0].name, operation[1]


class Stack:
    """The stack of the unpickler of PyTorch, with the kinds of the objects instead of the objects.

    name : name of the file, for error messages
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: list[Any] = []  # since the last MARK
        self.below: list[list[Any]] = []  # the values before each MARK
        self.memo: dict[int, Any] = {}
        self.sizes: dict[str, int] = {}  # bytes of each storage

    def run(self, operation: str, argument: Any) -> None:
        """Follow an operation of the pickle; raise the errors of `storage_sizes`."""
        if operation in PUT:
            self.memo[argument] = self.top()
        elif operation == "MARK":
            self.below.append(self.values)
            self.values = []
        elif operation in TAKEN or operation in MARKED:
            self.combine(operation, self.taken(operation))
        elif operation == "PROTO" and argument not in PROTOCOLS:
            problem = f"it has pickle protocol {argument}, but weights are read only with {PROTOCOLS[0]} or {PROTOCOLS[-1]}"
            raise FileError(f"{self.name}: {problem}; save the weights with torch.save without pickle_protocol")
        elif operation not in ("PROTO", "STOP"):
            self.values.append(self.pushed(operation, argument))

    def top(self) -> Any:
        """Return the value on top of the stack."""
        if not self.values:
            raise self.damaged("an operation of the pickle has no value")
        return self.values[-1]

    def taken(self, operation: str) -> list[Any]:
        """Take the values of an operation from the stack."""
        if operation in MARKED:
            if not self.below:
                raise self.damaged("an operation of the pickle has no mark")
            taken, self.values = self.values, self.below.pop()
            return taken
        count = TAKEN[operation]
        if len(self.values) < count:
            raise self.damaged("an operation of the pickle has too few values")
        taken = self.values[-count:]
        del self.values[-count:]
        return taken

    def combine(self, operation: str, taken: list[Any]) -> None:
        """Follow an operation that takes values from the stack: it creates an object, or adds them to a list or dict."""
        if operation.startswith("TUPLE"):
            self.values.append(tuple(taken))
        elif operation == "BINPERSID":
            key, size = storage_size(taken[0], self.name)
            self.sizes[key] = size
            self.values.append(Kind.STORAGE)
        elif operation == "REDUCE":
            function = taken[0]
            if not isinstance(function, Function) or function in STORAGES:
                raise self.other("a call of another object")
            self.values.append(Kind.TENSOR if function in TENSORS else Kind.CONTAINER)
        elif self.top() is not Kind.CONTAINER:
            raise self.damaged("an operation of the pickle is not for a list or dict")

    def pushed(self, operation: str, argument: Any) -> Any:
        """Return what an operation pushes; the name of the operation stands for None and Booleans."""
        if operation in GET:
            found = self.memo.get(argument)
            if found is None or isinstance(found, tuple) or found in (Kind.CONTAINER, Kind.STORAGE):
                problem = "two entries share one list, tuple or dict, which is not supported"
                raise FileError(f"{self.name}: {problem}; copy the entries before torch.save")
            return found
        if operation == "GLOBAL" and argument in GLOBALS:
            return Function(argument)
        if operation == "EMPTY_TUPLE":
            return ()
        if operation in ("EMPTY_LIST", "EMPTY_DICT"):
            return Kind.CONTAINER
        if PLAIN.fullmatch(operation):
            return operation if argument is None else argument
        raise self.other(argument if operation == "GLOBAL" else operation if argument is None else f"{operation} {argument!r}")

    def damaged(self, problem: str) -> FileError:
        """Return the error for a pickle that no program writes."""
        return FileError(f"{self.name}: {DAMAGED} ({problem}); {REMEDY}")

    def other(self, found: str) -> FileError:
        """Return the error for an object that is neither a tensor nor a plain value."""
        problem = f"contains objects other than tensors, numbers and strings ({found[:60]})"
        return FileError(f"{self.name}: {problem}; save the state dict with torch.save(model.state_dict(), file)")


def storage_size(arguments: Any, name: str) -> tuple[str, int]:
    """Return the key and the size in bytes of a storage from its description, ("storage", type, key, device, numel, …)."""
    match arguments[:5] if isinstance(arguments, tuple) else ():
        case ("storage", Function() as kind, str(key), str(), int(count)) if kind in STORAGES and count >= 0:
            return key, count * STORAGES[kind]
    raise FileError(f"{name}: {DAMAGED} (a tensor storage has an invalid type or size); {REMEDY}")
