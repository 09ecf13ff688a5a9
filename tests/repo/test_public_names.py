"""The public names of the package and its subpackages can be imported, are imported lazily, and have types."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import fastmlp
from fastmlp._lazy import lazy

SUBPACKAGES = ("nn", "data", "models", "estimators", "training", "reports", "experiments", "bench")
PACKAGES = [fastmlp, *(importlib.import_module(f"fastmlp.{name}") for name in SUBPACKAGES)]


def typed_names(package: ModuleType) -> dict[str, str]:
    """Return the names that a package imports under `TYPE_CHECKING`, with the modules that define them."""
    (block,) = [node for node in ast.parse(Path(str(package.__file__)).read_text()).body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {str(alias.asname): str(node.module) for node in imports for alias in node.names}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_public_names_are_importable_and_typed(package: ModuleType) -> None:
    types = typed_names(package)
    assert set(package.__all__) - {"__version__"} == set(types)
    assert dir(package) == package.__all__ == sorted(package.__all__)
    for name, module in types.items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        package.nonsense  # noqa: B018 - the attribute access must raise


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_no_public_name_is_that_of_a_submodule(package: ModuleType) -> None:
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert modules & set(package.__all__) == set()


def test_every_subpackage_has_public_names() -> None:
    """All subpackages import public names lazily, except engines, files and commands, which define functions in `__init__`."""
    folders = {module.name for module in pkgutil.iter_modules(fastmlp.__path__) if module.ispkg}
    assert folders == {*SUBPACKAGES, "engines", "files", "commands"}


def test_a_name_is_imported_on_first_access() -> None:
    get, listed, public = lazy("fastmlp.nn", {"nowhere": ["Lost"], "network": ["Network"]})
    assert listed() == public == ["Lost", "Network"]
    assert get("Network") is fastmlp.Network
    with pytest.raises(ModuleNotFoundError):
        get("Lost")
