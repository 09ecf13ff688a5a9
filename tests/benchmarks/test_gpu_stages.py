"""Tests of the stages of the GPU check, run in the simulator with tiny sizes: results and failures are recorded."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.special

pytest.importorskip("greenlet", reason="the simulator of backend 'cuda' needs greenlet: pip install greenlet")

from support import cuda_simulator
from support.carried import only_carried_kernels
from support.engines import simulation

from benchmarks.gpu import accuracy, bits, contests, rivals, stages, without_scipy
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.measures import TimedRuntime, check_product
from benchmarks.gpu.rivals import WARMUP_STEPS, Captured, Compiled, Eager
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.stages import Stage
from fastmlp.bench.cases import SYNTHETIC, Case
from fastmlp.bench.rounds import Disagreement
from fastmlp.engines.base import PRECISIONS, EngineSpec
from fastmlp.engines.cuda.engine import TILES
from fastmlp.engines.cuda.kernels.programs import Shape
from fastmlp.engines.cuda.kernels.tiles import Tile
from fastmlp.experiments.recipes.recipe import settings_of
from fastmlp.nn.network import Network

pytestmark = pytest.mark.full

CASES = (Case((9, 6, 3), 4), Case((9, 6, 3), 12))  # a small batch and a large batch
SIZES = Sizes(
    CASES,
    data=SYNTHETIC,
    rows=15,
    rounds=2,
    device_rounds=1,
    rest=0.0,
    copied=400,
    barriers=(1, 3),
    products=((12, 9),),
    product_rows=12,
    product_launches=2,
    steps=3,
)
# The layer sizes are not multiples of the tile size, like those of bits.NETWORK, which is used on a real GPU.
TOY = Network((20, 13, 9, 5), ("relu", "silu"), dropout=(0.2, 0.0), l2=1e-3)


@pytest.fixture(autouse=True)
def toys() -> Iterator[None]:
    """Use the simulator and small training runs, and use the kernels for large batches from 9 rows on."""
    jobs = {
        label: EngineSpec(TOY, spec.optimizer, 4 if spec.batch_size == 64 else 12, spec.seed, precision=spec.precision)
        for label, spec in bits.JOBS.items()
    }
    with simulation(), only_carried_kernels(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastmlp.engines.cuda.engine.SMALL_BATCH", 8)
        patch.setattr("fastmlp.engines.cuda.engine.SHAPE", Shape(64, 8))
        patch.setitem(TILES, "float32", Tile(16, 32, 8, 4, 4, 1))
        patch.setattr(bits, "JOBS", jobs)
        patch.setattr(bits, "REPEATS", 2)
        patch.setattr(contests, "THREAD_COUNTS", (1,))
        yield


def simulated() -> Any:
    """Return a simulated GPU in which all 32 lanes of a warp run, which tensor-core instructions require."""
    return cuda_simulator.Runtime(api=cuda_simulator.ALL_LANES)


def done(name: str, runtime: Any = None) -> dict[str, Any]:
    """Run a stage and return its findings."""
    known = {stage.name: stage for stage in (*stages.stages(SIZES), stages.SANITIZED)}
    findings = Findings()
    stages.run_stage(known[name], findings, SIZES, runtime or TimedRuntime(simulated()))
    return findings.found


def numbers(value: Any) -> Iterator[float]:
    """Yield all numbers in nested lists and dicts."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield value


def check_finite(found: Any) -> None:
    assert list(numbers(found))
    assert all(math.isfinite(number) for number in numbers(found))


def test_readmes_rows_come_first() -> None:
    names = [stage.name for stage in stages.stages(Sizes())]
    assert names[:2] == ["machine", "device"]
    assert names[2:9] == [f"row: {case.label}" for case in Sizes().cases]
    assert len(set(names)) == len(names)
    assert stages.SANITIZED.name not in names


def test_the_machine_and_the_device() -> None:
    found = done("machine") | done("device")
    assert {"python", "numpy", "fastmlp", "cuda-bindings"} <= set(found["versions"])
    assert found["machine"]["cores"] >= 1
    assert (found["device"]["card"], found["device"]["multiprocessors"]) == ("simulator", 2)
    assert found["compiler"]["works"] or found["compiler"]["reason"]
    assert "errors" not in found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_a_row_of_readme_has_all_engines(case: Case) -> None:
    rows = done(f"row: {case.label}")["rows"]
    assert [(row["backend"], row["rounds"]) for row in rows] == [("cuda", 2), ("numba", 2), ("numpy", 2)]
    assert {(row["network"], row["batch"], row["rows"], row["data"]) for row in rows} == {
        (case.network, case.batch, 15, SYNTHETIC)
    }
    check_finite([row["seconds"] for row in rows])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_every_variant_is_measured(case: Case) -> None:
    found = done(f"variants: {case.label}")
    assert "errors" not in found
    assert [(row["optimizer"], row["precision"], row["pixels"]) for row in found["variants"]] == list(contests.VARIANTS)
    for row in found["variants"]:
        check_finite([row["seconds_per_epoch"], row["device_microseconds_per_step"], row["copies"]])
        assert row["device_seconds"] > 0


def test_bits_do_not_depend_on_the_grid() -> None:
    found = done("bits")
    assert "errors" not in found
    assert [row["design"] for row in found["bits"]] == list(bits.JOBS)
    for row in found["bits"]:
        assert [len(digests) for digests in row["digests"].values()] == [bits.REPEATS] * 2  # grids of one block and two
        assert len({one for digests in row["digests"].values() for one in digests}) == 1


def test_bits_that_depend_on_the_grid_and_wrong_losses_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Damaged(TimedRuntime):
        def get(self, handle: Any, first: int = 0, count: int | None = None) -> Any:
            found = super().get(handle, first, count)
            return found + self.blocks if found.dtype.kind == "f" else found

    errors = done("bits", Damaged(simulated()))["errors"]
    assert {error["type"] for error in errors} == {"Disagreement"}
    assert {error["what"] for error in errors} >= {f"bits of {label}" for label in bits.JOBS} | {"losses of small batches"}


def test_the_training_run_under_the_sanitizer() -> None:
    found = done("small")
    assert "errors" not in found
    assert len(found["small"]) == 2


def test_barriers_products_and_copies() -> None:
    found = done("barriers") | done("products") | done("copies")
    assert "errors" not in found
    assert [row["blocks"] for row in found["barriers"]] == [1, 2]
    assert [(row["engine"], row["precision"]) for row in found["products"]] == [
        ("cuda", p) for p in ("float32", "tf32", "bf16")
    ]
    assert len(found["left_out"]) == 3  # torch.mm in three precisions needs a GPU
    check_finite([found["barriers"], found["products"], found["copies"]])


def test_a_wrong_product_is_an_error() -> None:
    network, x = Network((12, 9)), cuda_simulator.np.ones((4, 12), "float32")
    start = network.initial_parameters(0)
    ((w, b),) = network.views(start)
    z = x @ w + b
    check_product(network, start, x, z, "float32")
    with pytest.raises(Disagreement):
        check_product(network, start, x, 1.0001 * z, "float32")


def test_pytorch_without_a_device_is_reported() -> None:
    for name in ("PyTorch", "torch.compile"):
        found = done(f"{name}: {CASES[0].label}")
        assert [row["what"] for row in found["left_out"]] == [f"{CASES[0].label}: PyTorch"]
        assert set(found) == {"left_out"}


# ------------------------------------------------------------------------------------------------ accuracy


@pytest.fixture
def small_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the recipe with a short training run on digits, with small mini-batches and larger evaluation batches."""
    smaller = {"data": "digits", "val_count": 150, "hidden": (6,), "epochs": 1, "batch_size": 4, "val_steps": 2}
    monkeypatch.setattr(accuracy, "settings_of", lambda name, command: {**settings_of(name, command), **smaller})


@pytest.mark.usefixtures("small_recipe")
def test_the_accuracies_of_gpu_and_cpu_agree() -> None:
    found = done("accuracy")
    assert "errors" not in found
    assert [(row["engine"], row["epochs"], row["rows"]) for row in found["accuracy"]] == [("cuda", 1, 15), ("numba", 1, 15)]


@pytest.mark.usefixtures("small_recipe")
def test_a_different_accuracy_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = accuracy.train_with

    def worse(backend: str, plan: Any) -> Any:
        row = plain("numba", plan)
        return row | {"test_accuracy": row["test_accuracy"] - 0.01 * (backend == "cuda")}

    monkeypatch.setattr(accuracy, "train_with", worse)
    (error,) = done("accuracy")["errors"]
    assert (error["type"], error["numerical"]) == ("Disagreement", True)


def test_missing_data_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("FASTMLP_DATA", str(tmp_path))
    assert [row["what"] for row in done("accuracy")["left_out"]] == ["recipe ee5179-1"]


# ------------------------------------------------------------------------------------------------ failures


def test_an_error_is_numerical_only_if_results_are_wrong() -> None:
    for error, numerical in (
        (ZeroDivisionError("planted\nin two lines"), False),
        (Disagreement("planted in two lines"), True),
    ):

        def fail(findings: Findings, sizes: Sizes, runtime: Any, error: Exception = error) -> None:
            raise error

        findings = Findings()
        stages.run_stage(Stage("planted", fail, 1, 1), findings, SIZES, None)
        (found,) = findings.found["errors"]
        assert found == {
            "what": "planted",
            "type": type(error).__name__,
            "message": "planted in two lines",
            "numerical": numerical,
        }


def test_an_engine_with_wrong_losses_is_an_error_and_the_others_are_measured() -> None:
    class Wrong(contests.OnDevice):
        def epoch(self, order: Any) -> float:
            return 1.01 * super().epoch(order)

    findings, runtime = Findings(), simulated()
    contests.contest(findings, "rows", CASES[0], SIZES, [Wrong(runtime), contests.OnDevice(runtime)])
    assert [error["type"] for error in findings.found["errors"]] == ["Disagreement"]
    assert [row["backend"] for row in findings.found["rows"]] == ["cuda"]


# ------------------------------------------------------------------------------------------------ PyTorch


class Replayed(Captured):
    """Graph capture on the CPU, which has no CUDA graphs: runs the step as often as the warm-up before a capture does."""

    def capture(self, work: Callable[[], Any]) -> Callable[[], None]:
        for _ in range(WARMUP_STEPS):
            work()
        return work


class Traced(Compiled):
    """Compiled by a backend of torch.compile that needs no C++ compiler."""

    options: ClassVar = {"backend": "aot_eager"}


class Slower(Eager):
    backend = "slower"

    def in_place(self, parameters: Any, gradients: Any) -> None:
        super().in_place(parameters, [0.5 * g for g in gradients])


class Broken(Eager):
    backend = "broken"

    def prepare(self, task: Any) -> None:
        raise TypeError("planted")


@pytest.mark.filterwarnings("ignore::RuntimeWarning:torch._dynamo.guards")  # a bug of CPython 3.13.0, see bench/test_rivals.py
def test_rivals_compute_the_same_and_are_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unavailable, wrong and crashing implementations are reported, and the others are measured; all run on the CPU."""
    pytest.importorskip("torch")
    monkeypatch.setattr(rivals, "torch_device", lambda: "cpu")
    findings = Findings()
    kinds = (Eager, Traced, Replayed, Captured, Slower, Broken)
    stages.measure_contest(kinds, CASES[0], findings, SIZES, TimedRuntime(simulated()))
    assert [row["backend"] for row in findings.found["contests"]] == ["cuda", Eager.backend, Traced.backend, Replayed.backend]
    assert {row["rows"] for row in findings.found["contests"]} == {12}  # only whole mini-batches
    assert [row["what"].rpartition(": ")[2] for row in findings.found["left_out"]] == [Captured.backend, "slower"]
    assert [(error["what"], error["message"]) for error in findings.found["errors"]] == [("broken", "planted")]


def test_torch_mm_on_the_cpu() -> None:
    pytest.importorskip("torch")
    for precision in PRECISIONS:
        check_finite(rivals.measure_mm(12, 9, SIZES, precision, "cpu")["gflops"])


def test_replacements_of_scipy() -> None:
    """The replacements agree with SciPy to 1e-13 in float64, keep float32, and are used only if SciPy is missing."""
    z = np.linspace(-20, 20, 301)
    for name in ("erfc", "expit"):
        ours, theirs = getattr(without_scipy, name), getattr(scipy.special, name)
        np.testing.assert_allclose(ours(z), theirs(z), rtol=1e-13)
        assert ours(z.astype(np.float32)).dtype == np.float32
    without_scipy.install()
    assert sys.modules["scipy.special"] is scipy.special
