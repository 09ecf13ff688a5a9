"""Compare the kernels that the simulator runs with the list of kernels packed for machines without a compiler."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.kernels import RECORD_TO, KernelRequest, read_record, record_text


@contextlib.contextmanager
def requested_kernels() -> Iterator[set[KernelRequest]]:
    """Collect the kernels requested inside the block."""
    from support.cuda_simulator import Runtime

    found: set[KernelRequest] = set()
    plain = Runtime.program

    def program(self: Runtime, name: str, kind: Any, shape: Any) -> Any:
        found.add(KernelRequest.of(name, kind, shape))
        return plain(self, name, kind, shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "program", program)
        yield found


@contextlib.contextmanager
def only_carried_kernels() -> Iterator[None]:
    """Fail if a requested kernel is not in the record; with `RECORD_TO` set, append requested kernels to that file."""
    with requested_kernels() as requests:
        yield
    if (file := os.environ.get(RECORD_TO)) is not None:
        with Path(file).open("a", encoding="utf-8") as out:
            out.write(record_text(requests))
        return
    missing = requests - set(read_record())
    assert not missing, f"not in kernels.jsonl: {missing}; record them with python -m benchmarks.gpu.kernels"
