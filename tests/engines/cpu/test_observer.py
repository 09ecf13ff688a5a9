"""Tests of the notification of the compilation of kernels."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from fastmlp.engines.cpu.codegen import observer
from fastmlp.engines.cpu.codegen.compiler import cached


def next_number(x):  # type: ignore[no-untyped-def]
    return x + 1


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let each test start as in a new process, with an empty cache."""
    monkeypatch.setattr(observer, "announced", threading.Event())
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "kernels"))


def kernel() -> Any:
    return cached(next_number, "next number")


def test_the_first_compilation_of_a_process_is_reported_before_it_starts() -> None:
    compiled, calls = kernel(), []
    with observer.observer(lambda: calls.append(len(compiled.overloads))):
        assert compiled(3) == 4
        assert compiled(0.5) == 1.5  # another compilation
    assert calls == [0]


def test_kernels_from_the_cache_are_not_reported() -> None:
    assert kernel()(3) == 4  # without an observer, so it does not count as reported
    calls: list[str] = []
    with observer.observer(lambda: calls.append("cached")):
        assert kernel()(3) == 4
    assert calls == []
    with observer.observer(lambda: calls.append("compiled")):
        assert kernel()(0.5) == 1.5
    assert calls == ["compiled"]


def test_the_last_observer_of_the_thread_is_called_until_it_is_removed() -> None:
    calls: list[str] = []
    with observer.observer(lambda: calls.append("outer")):
        with observer.observer(lambda: calls.append("inner")):
            pass
        thread = threading.Thread(target=kernel().compile, args=("int64(int64)",))
        thread.start()
        thread.join()
        assert calls == []
        assert kernel()(0.5) == 1.5
    assert calls == ["outer"]
    observer.remove_observer(lambda: None)  # not registered
