"""The check of a machine with a GPU, over the simulator: every stage runs, failures are told, and its kernels are prebuilt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("greenlet", reason="the simulator of backend 'cuda' needs greenlet: pip install greenlet")

from support import cuda_simulator

from benchmarks import cuda_build, gpu_check, gpu_rivals
from benchmarks.gpu_measures import Ours, Sizes, Subject, Watch, check_same, measure_barriers, measure_product
from benchmarks.gpu_rivals import WARM, Captured, Compiled, Eager, measure_contest
from fastmlp.bench.cases import Case
from fastmlp.errors import FastMLPError, UnavailableError
from fastmlp.files import read_json

pytestmark = pytest.mark.full

SUBJECTS = (Subject(Case((9, 6, 3), 4)), Subject(Case((9, 6, 3), 12)), Subject(Case((6, 5, 3), 4), pixels=False))
TINY = Sizes(
    SUBJECTS,
    blocks=lambda multiprocessors: (1, multiprocessors + 1),
    rows=13,
    rounds=1,
    copied=400,
    barriers=(1, 3),
    products=((12, 9),),
    product_rows=12,
    product_launches=2,
)
STAGES = ["machine", "device", "compiler", "copies", "barriers", "products: 12-9"]
STAGES += [*(f"epochs: {subject.case.label}" for subject in SUBJECTS), "rivals"]
CONTESTS = [f"contest: {subject.case.label}" for subject in SUBJECTS]
TIME = ["--seconds", "36000"]  # enough on any machine


@pytest.fixture(autouse=True)
def both_designs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of 12 rows is large."""
    monkeypatch.setattr("fastmlp.engines.cuda.engine.SMALL_BATCH", 8)


def checked(folder: Path, *arguments: str) -> tuple[int, Any]:
    """Exit status and what was written."""
    out = folder / "gpu.json"
    status = gpu_check.main(["--out", str(out), *arguments], cuda_simulator.Runtime(), TINY)
    return status, read_json(out)


def numbers(value: Any) -> Iterator[float]:
    """All numbers in nested lists and objects."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield value


def test_every_stage_runs(tmp_path: Path) -> None:
    status, found = checked(tmp_path, *TIME)
    assert (status, found["errors"]) == (0, [])
    assert [stage["name"] for stage in found["stages"]] == STAGES
    assert {stage["state"] for stage in found["stages"]} == {"done"}
    assert [row["stage"] for row in found["left_out"]] == ["tests", *CONTESTS]
    ((engine, state),) = {(row["engine"], row["state"]) for row in found["rivals"]}
    assert (engine, state) == ("torch", "missing")
    assert {"python", "numpy", "fastmlp"} <= set(found["versions"])
    assert found["device"]["card"] == "simulator"
    figures = [found["copies"], found["barriers"], found["products"], found["rows"]]
    assert all(figures)
    assert all(math.isfinite(number) for number in numbers(figures))
    for row, subject in zip(found["rows"], SUBJECTS, strict=True):
        assert (row["network"], row["batch"], row["steps"]) == (subject.case.network, subject.case.batch, 13 // row["batch"])
        assert row["microseconds_per_step"] == pytest.approx(1e6 * row["seconds_per_epoch"] / row["steps"])
        assert sum(row["transfers"][way] for way in ("in", "out")) > 0
        assert row["device_seconds_per_epoch"] > 0


def test_a_stage_that_fails_is_told_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(*arguments: Any) -> None:
        raise ZeroDivisionError("planted\nin two lines")

    monkeypatch.setattr(gpu_check, "measure_barriers", planted)
    for slow in ("try_compiler", "find_rivals"):
        monkeypatch.setattr(gpu_check, slow, lambda check: None)
    status, found = checked(tmp_path, *TIME)
    assert status == 1
    assert found["errors"] == [{"stage": "barriers", "type": "ZeroDivisionError", "message": "planted in two lines"}]
    states = {stage["name"]: stage["state"] for stage in found["stages"]}
    assert states == dict.fromkeys(STAGES, "done") | {"barriers": "failed"}


def test_without_time_all_is_left_out(tmp_path: Path) -> None:
    status, found = checked(tmp_path, "--seconds", "0")
    assert (status, found["stages"], found["rows"]) == (0, [], [])
    assert [row["stage"] for row in found["left_out"] if row["stage"] != "tests"] == [*STAGES, *CONTESTS]


def test_without_a_device_the_machine_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise UnavailableError("no GPU")

    monkeypatch.setattr("fastmlp.engines.cuda.engine.the_runtime", missing)
    out = tmp_path / "gpu.json"
    assert gpu_check.main(["--out", str(out), *TIME], None, TINY) == 1
    found = read_json(out)
    assert [error["stage"] for error in found["errors"]] == ["device"]
    reasons = {row["stage"]: row["reason"] for row in found["left_out"]}
    assert {reasons[stage] for stage in STAGES[2:]} == {"there is no device"}
    assert found["machine"]


def test_kernels_of_the_check_are_prebuilt() -> None:
    """Those that any of its networks asks for, with the shapes that they have here."""
    watch = Watch(cuda_simulator.Runtime())
    measure_barriers(watch, TINY)
    measure_product(watch, 12, 9, TINY)
    for subject in (SUBJECTS[0], SUBJECTS[1], SUBJECTS[2], SUBJECTS[2]._replace(case=Case((6, 5, 3), 12))):
        Ours(subject, watch, TINY).probe_losses()
    wanted = {(one.name, one.kind, type(one.shape)) for one in cuda_build.kernels_of_check()}
    asked = {(name, kind, type(shape)) for name, kind, shape in watch.kernels}
    assert len(asked) == 6
    assert asked <= wanted


def test_another_training_is_refused() -> None:
    check_same([2.0, 1.0], [2.0001, 1.0])
    for losses in ([2.0, 1.01], [2.0, float("nan")]):
        with pytest.raises(FastMLPError, match="does not compute the same"):
            check_same(losses, [2.0, 1.0])


def test_tests_are_counted_that_ran_before_the_time_was_up() -> None:
    text = "a.py::one PASSED  [ 1%]\na.py::two[x y] FAILED [ 2%]\na.py::three SKIPPED (none) [ 3%]\na.py::four"
    assert gpu_check.counted(text) == {"passed": 1, "skipped": 1, "failed": ["a.py::two[x y]"]}


# ------------------------------------------------------------------------------------------------ rivals


class Played(Captured):
    """A graph on a device without graphs: the step is done, as often as a capture does it."""

    def capture(self, work: Callable[[], Any]) -> Callable[[], None]:
        for _ in range(WARM):
            work()
        return work


class Traced(Compiled):
    """Compiled as far as it takes no C++ compiler."""

    how: ClassVar = {"backend": "aot_eager"}


@pytest.mark.filterwarnings("ignore::RuntimeWarning:torch._dynamo.guards")  # of CPython 3.13.0, see bench/test_rivals.py
def test_rivals_compute_the_same_and_are_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU; one that cannot, one that does otherwise and one that errs are told, and the others go on."""
    pytest.importorskip("torch")

    class Slower(Eager):
        backend = "slower"

        def in_place(self, parameters: Any, gradients: Any) -> None:
            super().in_place(parameters, [0.5 * g for g in gradients])

    class Broken(Eager):
        backend = "broken"

        def prepare(self, task: Any) -> None:
            raise TypeError("planted")

    told: list[str] = []
    monkeypatch.setattr(gpu_rivals, "RIVALS", (Eager, Traced, Played, Captured, Slower, Broken))
    rows, refused = measure_contest(
        cuda_simulator.Runtime(), SUBJECTS[0], TINY, "cpu", lambda who, error: told.append(f"{who}: {error}")
    )
    assert [row["engine"] for row in rows] == ["cuda", Eager.backend, Traced.backend, Played.backend]
    assert {row["stage"] for row in rows} == {"contest"}
    assert [(row["engine"], row["state"]) for row in refused] == [
        (Captured.backend, "missing"),
        ("slower", "refused"),
        ("broken", "failed"),
    ]
    assert told == ["broken: planted"]
