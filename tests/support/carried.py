"""Comparison of the kernels requested from the simulated GPU with the record of kernels for machines without a compiler."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.kernels import RECORD_TO, Asked, recorded, written


@contextlib.contextmanager
def asked_of_the_simulator() -> Iterator[set[Asked]]:
    """The kernels requested inside the block."""
    from support.cuda_simulator import Runtime

    found: set[Asked] = set()
    plain = Runtime.program

    def program(self: Runtime, name: str, kind: Any, shape: Any) -> Any:
        found.add(Asked.of(name, kind, shape))
        return plain(self, name, kind, shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "program", program)
        yield found


@contextlib.contextmanager
def only_carried_kernels() -> Iterator[None]:
    """Fail if a kernel is missing from the record; while recording, add it instead."""
    with asked_of_the_simulator() as asked:
        yield
    if (file := os.environ.get(RECORD_TO)) is not None:
        with Path(file).open("a", encoding="utf-8") as out:
            out.write(written(asked))
        return
    missing = asked - set(recorded())
    assert not missing, f"not in kernels.jsonl: {missing}; record them with python -m benchmarks.gpu.kernels"
