"""The doors of the package and of its wings: what they offer is found, at its first use, and told to type checkers."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import fastmlp
from fastmlp._lazy import lazy

WINGS = ("nn", "data", "models", "training", "reports", "experiments", "bench")
DOORS = [fastmlp, *(importlib.import_module(f"fastmlp.{wing}") for wing in WINGS)]


def typed(door: ModuleType) -> dict[str, str]:
    """The module of each name that the door imports for type checkers."""
    (block,) = [node for node in ast.parse(Path(str(door.__file__)).read_text()).body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {str(alias.asname): str(node.module) for node in imports for alias in node.names}


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_what_a_door_offers_is_found_and_typed(door: ModuleType) -> None:
    types = typed(door)
    assert set(door.__all__) - {"__version__"} == set(types)
    assert dir(door) == door.__all__ == sorted(door.__all__)
    for name, module in types.items():
        assert getattr(door, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        door.nonsense  # noqa: B018 - the access is the test


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_no_name_of_a_door_is_that_of_a_module(door: ModuleType) -> None:
    modules = {module.name for module in pkgutil.iter_modules(door.__path__)}
    assert modules & set(door.__all__) == set()


def test_every_wing_has_a_door() -> None:
    """Those of engines and commands are functions of their own: to choose an engine, to run the program."""
    folders = {module.name for module in pkgutil.iter_modules(fastmlp.__path__) if module.ispkg}
    assert folders == {*WINGS, "engines", "commands"}


def test_a_name_is_looked_up_at_its_first_use() -> None:
    get, listed, offered = lazy("fastmlp.nn", {"nowhere": ["Lost"], "network": ["Network"]})
    assert listed() == offered == ["Lost", "Network"]
    assert get("Network") is fastmlp.Network
    with pytest.raises(ModuleNotFoundError):
        get("Lost")
