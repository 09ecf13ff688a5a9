"""What the tests of `extract` share: a folder of their own, and no pictures, which take longer than the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmlp.experiments import chain, extraction
from support.cli import forget_settings

# What draws, by the module where it is looked up.
DRAWN = [
    (module, name, getattr(module, name))
    for module, name in ((extraction, "draw_extraction"), (chain, "draw_extraction"), (chain, "draw_chain"))
]


def arrays_of(file: str | Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an .npz; its file is closed, not left to the collector, whose warning would fail another test."""
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
