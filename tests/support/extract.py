"""Fixtures for tests of `fastmlp extract`: a temporary working directory, and no plots, since plotting is slow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmlp.experiments.features import chain, pictures
from support.cli import forget_settings

# Plotting functions, with the modules in which they are replaced.
DRAWN = [
    (module, name, getattr(module, name))
    for module, name in ((pictures, "draw_extraction"), (chain, "draw_extraction"), (chain, "draw_chain"))
]


def arrays_of(file: str | Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of an .npz file and close it; an open file would cause a ResourceWarning in a later test."""
    with np.load(file) as archive:
        return dict(archive)


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="module")
def without_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, name, _ in DRAWN:
            patch.setattr(module, name, lambda *given: None)
        yield
