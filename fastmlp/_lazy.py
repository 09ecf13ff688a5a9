"""Lazy imports: the public names of a package are imported on first access (PEP 562)."""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # importing it from typing would take several milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any


def lazy(
    package: str, exports: Mapping[str, Sequence[str]], extra: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package.

    Parameters
    ----------
    package : name of the package
    exports : maps each submodule to the public names that it defines; a public name must differ from the names of all
        submodules, because importing a submodule sets an attribute of the package with the submodule's name
    extra : public names that the package itself defines
    """
    public = sorted([*(name for names in exports.values() for name in names), *extra])
    module_of = {name: f"{package}.{module}" for module, names in exports.items() for name in names}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(module_of[name]), name)

    return get, lambda: public, public
