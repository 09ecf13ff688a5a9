"""What the tests share: engines by name, random data, tolerances, and a cache folder of their own.

A tolerance is never a guess: products of K terms get c K eps |A||B|, carried through the layers; a training is
compared with the float64 reference within what rounding errors of such sums grow to in the reference itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from fastmlp.engines import BACKENDS, make_engine
from fastmlp.engines.base import Engine, Job, RowResults, State, steps_of
from fastmlp.engines.numpy_engine import NumpyEngine
from fastmlp.nn.network import Network
from fastmlp.nn.schedules import Schedule
from fastmlp.reference import ACTIVATIONS, plain_losses
from fastmlp.training.settings import Settings

EPS = float(np.finfo(np.float32).eps)
SAFETY = 1.0  # c of the tolerances: K eps is twice the proven bound of a sum of K products in any order
ELEMENTWISE = 8  # roundings of what follows a sum (activation, loss, update), counted as so many more terms

# Modules of engines that are still to be written: their cases are skipped until the module exists.
MODULES = {"numba": "fastmlp.engines.cpu.engine"}

REAL_GPU = os.environ.get("FASTMLP_TEST_GPU") == "1"  # backend "cuda" runs on a device, not in the simulator


def pytest_configure(config: pytest.Config) -> None:
    """One compilation per session, in a temporary folder that child processes inherit; before anything is compiled.

    On a real GPU kernels may have been brought along, for there may be no compiler for them: then the folder is kept.
    """
    if REAL_GPU and "FASTMLP_CACHE_DIR" in os.environ:
        return
    if hasattr(config, "workerinput"):  # a process of pytest-xdist has it from the one that started it
        return
    folder = tempfile.TemporaryDirectory(prefix="fastmlp-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    os.environ["FASTMLP_CACHE_DIR"] = folder.name


@pytest.fixture(autouse=True, scope="session")
def more_threads_than_cores() -> Iterator[None]:
    """Let engines have as many threads as a test asks for: which thread computes what must not matter on any machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastmlp.engines.cpu.engine.most_threads", lambda: 64)
        yield


@pytest.fixture(autouse=True)
def no_global_random_numbers() -> Iterator[None]:
    """Seeds are in the tests, none is global: NumPy's global generator, which nobody seeds, must stay untouched."""
    before = np.random.get_state(legacy=False)["state"]  # noqa: NPY002 - to see that nobody uses it
    yield
    after = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    assert np.array_equal(before["key"], after["key"]), "the test drew from np.random"
    assert before["pos"] == after["pos"], "the test drew from np.random"


def need_backend(name: str) -> str:
    """The name of an engine; skips the test while the engine's module, or the package it needs, is not there."""
    if name in MODULES and importlib.util.find_spec(MODULES[name]) is None:
        pytest.skip(f"the module {MODULES[name]} of backend {name!r} does not exist yet")
    if name == "cuda" and not REAL_GPU and importlib.util.find_spec("greenlet") is None:
        pytest.skip("the simulator of backend 'cuda' needs greenlet: pip install greenlet")
    if name == "torch" and importlib.util.find_spec("torch") is None:
        pytest.skip("the package of backend 'torch' is not installed: pip install torch")
    return name


@pytest.fixture(scope="session", params=[name for name in BACKENDS if name != "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each engine in turn that runs on any machine."""
    return need_backend(request.param)


@pytest.fixture(scope="session", params=list(BACKENDS))
def every_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each engine in turn; "cuda" in the simulator, in which much work takes long."""
    name = need_backend(request.param)
    with simulation() if name == "cuda" else contextlib.nullcontext():
        yield name


@pytest.fixture(scope="session")
def numba_backend() -> str:
    """The compiled engine, for what only it promises (bits)."""
    return need_backend("numba")


@contextlib.contextmanager
def simulation() -> Iterator[None]:
    """Backend "cuda" runs in a simulator, in small blocks: no GPU is promised where tests run.

    With FASTMLP_TEST_GPU=1 it runs on the GPU that is there, in its own blocks.
    """
    if REAL_GPU:
        yield
        return
    import cuda_simulator

    from fastmlp.engines.cuda import engine as cuda
    from fastmlp.engines.cuda.kernels.programs import Shape
    from fastmlp.engines.cuda.kernels.tiles import Tile

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastmlp.engines.cuda.engine.the_runtime", cuda_simulator.Runtime)
        patch.setattr("fastmlp.engines.cuda.engine.SHAPE", Shape(16, 4))
        patch.setitem(cuda.TILES, "float32", Tile(8, 8, 4, 4, 4, 1))
        patch.setitem(cuda.TILES, "tf32", Tile(32, 16, 16, 2, 4, 1, gap=8))
        patch.setitem(cuda.TILES, "bf16", Tile(32, 16, 32, 2, 4, 1, gap=8, packed=2))
        yield


@pytest.fixture
def simulated_gpu() -> Iterator[None]:
    """The same for tests of backend "cuda" alone."""
    with simulation():
        yield


@pytest.fixture
def eager_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines hand work to their threads however little it is, so that small shapes test the sharing."""
    if importlib.util.find_spec(MODULES["numba"]) is not None:
        for least in ("MUCH_FLOPS", "SURE_FLOPS"):
            monkeypatch.setattr(f"fastmlp.engines.cpu.threads.{least}", 0)


class Course(NamedTuple):
    """One call of `Engine.train`."""

    x: Any
    y: Any
    order: Any
    rates: Any
    weights: Any = None


def make_course(
    network: Network,
    rows: int = 24,
    batch: int = 8,
    *,
    epochs: int = 2,
    rate: float = 0.05,
    targets: bool = False,
    weighted: bool = False,
    uint8: bool = False,
    seed: int = 0,
) -> Course:
    """Random data for a network and a walk over them; rates fall slowly, as those of a schedule."""
    rng = np.random.default_rng([seed, rows, batch, *network.sizes])
    features, outputs = network.sizes[0], network.sizes[-1]
    x = rng.integers(0, 256, (rows, features), np.uint8) if uint8 else rng.normal(size=(rows, features))
    if targets and network.loss == "cross-entropy":
        y = rng.dirichlet(np.ones(outputs), rows)
    elif targets:
        y = rng.normal(size=(rows, outputs))
    else:
        y = rng.integers(0, outputs, rows)
    return Course(
        x if uint8 else x.astype(np.float32),
        y.astype(np.float32 if targets else np.int32),
        np.concatenate([rng.permutation(rows) for _ in range(epochs)]),
        rate / (1 + 0.1 * np.arange(steps_of(epochs * rows, batch))),
        rng.uniform(0.5, 2, rows).astype(np.float32) if weighted else None,
    )


def start_state(job: Job, seed: int = 1) -> State:
    """Initial parameters, with biases that are not zero, and empty slots."""
    network = job.network
    parameters = network.initial_parameters(seed, job.dtype)
    rng = np.random.default_rng(seed)
    for _, b in network.views(parameters):
        b[:] = rng.normal(0, 0.1, b.shape)
    return State(parameters, np.zeros((len(job.optimizer.slots), network.parameters), job.dtype), 0)


def run_course(backend: str, job: Job, state: State, course: Course) -> tuple[State, RowResults]:
    """State and row results after training on a course in one call, by an engine made for it."""
    engine = make_engine(backend, job)
    try:
        engine.load(state)
        results = engine.train(*course)
        return engine.state(), results
    finally:
        engine.close()


@contextlib.contextmanager
def engine_of(backend: str, job: Job, state: State | None = None) -> Iterator[Engine]:
    """An engine that holds a state, closed at the end."""
    engine = make_engine(backend, job)
    try:
        engine.load(start_state(job) if state is None else state)
        yield engine
    finally:
        engine.close()


def check_in_a_forked_child(holds: Callable[[], bool], seconds: float) -> None:
    """Fail if a child of this process finds that something does not hold, or hangs longer than so many seconds."""
    child = os.fork()
    if child == 0:
        os._exit(0 if holds() else 9)
    until = time.monotonic() + seconds
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 0


# ------------------------------------------------------------------------------------------------ tolerances


def product_tolerance(a: Any, b: Any, extra: int = 0) -> Any:
    """Bound of the rounding errors of a @ b summed in float32 in any order: c K eps |A||B|, entry by entry.

    `extra` counts further roundings of each entry as more terms.
    """
    return SAFETY * (a.shape[-1] + extra) * EPS * (np.abs(a) @ np.abs(b))


def forward_tolerance(network: Network, parameters: Any, x: Any) -> Any:
    """Bound of the rounding errors of the forward pass in float32, (rows, outputs), carried layer by layer.

    An error e in y becomes e |w| in z; an activation stretches it by its steepest slope and adds its own rounding.
    """
    y, error = x.astype(np.float64), np.zeros(x.shape)
    for layer, (w, b) in zip(network.layers, network.views(parameters.astype(np.float64)), strict=True):
        own = product_tolerance(np.c_[y, np.ones(len(y))], np.r_[w, b[None]], ELEMENTWISE)
        error = error @ np.abs(w) + own
        value, slope = ACTIVATIONS[layer.activation]
        z = y @ w + b
        y = value(z, layer.parameter)
        steepest = max(1.2, np.abs(slope(z, y, layer.parameter)).max(initial=0))
        error = error * steepest + SAFETY * ELEMENTWISE * EPS * np.abs(y)
    return error


def exact_job(job: Job) -> Job:
    """The same job in float64."""
    return dataclasses.replace(job, dtype=np.float64)


def nudged(job: Job, state: State, course: Course, size: float, seed: int) -> tuple[State, RowResults]:
    """The reference in float64, each parameter moved by the relative `size`, up or down, before every batch."""
    rng = np.random.default_rng(seed)
    engine = NumpyEngine(exact_job(job))
    engine.load(state)
    parts = []
    for k, at in enumerate(range(0, len(course.order), job.batch_size)):
        now = engine.state()
        factors = 1 + size * rng.choice([-1.0, 1.0], len(now.parameters))
        engine.load(State(now.parameters * factors, now.slots, now.step))
        rows = course.order[at : at + job.batch_size]
        parts.append(engine.train(course.x, course.y, rows, course.rates[k : k + 1], course.weights))
    losses, correct = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return engine.state(), RowResults(losses, correct)


class Expected(NamedTuple):
    """What the reference gives in float64, and how far a float32 engine may be from it."""

    state: State
    results: RowResults
    parameters_tolerance: Any  # (P,)
    slots_tolerance: Any  # (slots, P)
    loss_tolerance: float


def expected(job: Job, state: State, course: Course) -> Expected:
    """The reference's course and its tolerance: c times what nudges of sqrt(K) eps before each batch do to it.

    K is the longest sum of the job; rounding errors of its terms add up like sqrt(K) (Higham & Mary, "A new approach to
    probabilistic rounding error analysis", 2019, theorem 2.4). Each array of weights or biases has one tolerance, its
    largest deviation plus the rounding of its largest entry, so that no entry hides behind another layer's.
    """
    longest = max(*job.network.sizes, min(job.batch_size, len(course.order)))
    size = (longest + ELEMENTWISE) ** 0.5 * EPS
    end, results = nudged(job, state, course, 0, 0)
    others = [nudged(job, state, course, size, seed) for seed in (1, 2, 3)]

    def per_array(vector: Any, deviants: Any) -> Any:
        deviation = np.max([np.abs(other - vector) for other in deviants], axis=0)
        views = zip(job.network.views(vector), job.network.views(deviation), strict=True)
        for arrays, spreads in views:
            for values, spread in zip(arrays, spreads, strict=True):
                spread[...] = SAFETY * (spread.max() + size * np.abs(values).max())
        return deviation

    slots = [per_array(slot, [o.slots[i] for o, _ in others]) for i, slot in enumerate(end.slots)]
    loss_deviation = max(np.abs(r.loss - results.loss).max(initial=0) for _, r in others)
    # a loss is a difference of terms of order one, however small it is itself
    loss_rounding = size * np.abs(results.loss).max(initial=0) + ELEMENTWISE * EPS
    return Expected(
        end,
        results,
        per_array(end.parameters, [o.parameters for o, _ in others]),
        np.array(slots).reshape(end.slots.shape),
        SAFETY * float(loss_deviation + loss_rounding),
    )


def excess(found: Any, wanted: Any, tolerance: Any) -> float:
    """By how much the worst entry is beyond its tolerance; 0 if none is, NaN counts as infinitely wrong."""
    beyond = np.abs(np.asarray(found, np.float64) - wanted) - tolerance
    return float(np.nan_to_num(beyond, nan=np.inf).max(initial=0.0).clip(0))


def check_course(want: Expected, state: State, results: RowResults) -> None:
    """Parameters, slots, step, row losses and correct flags of an engine against the reference."""
    assert excess(state.parameters, want.state.parameters, want.parameters_tolerance) == 0
    assert state.slots.shape == want.state.slots.shape
    assert excess(state.slots, want.state.slots, want.slots_tolerance) == 0
    assert state.step == want.state.step
    assert excess(results.loss, want.results.loss, want.loss_tolerance) == 0
    assert np.array_equal(results.correct, want.results.correct)


def same_bits(one: Any, other: Any) -> bool:
    """Whether two arrays, or tuples of arrays and numbers, agree in every bit and in type."""
    if isinstance(one, tuple):
        return len(one) == len(other) and all(same_bits(a, b) for a, b in zip(one, other, strict=True))
    a, b = np.asarray(one), np.asarray(other)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def check_against_reference(backend: str, job: Job, course: Course, step: int = 0) -> None:
    """Several steps and a forward pass of an engine against the specification in float64."""
    start = start_state(job)._replace(step=step)
    want = expected(job, start, course)
    with engine_of(backend, job, start) as engine:
        results = engine.train(*course)
        state = engine.state()
        check_course(want, state, results)
        z = engine.forward(course.x)
        check_scored(job.network, z, course.y, engine.score(z, course.y))
    exact = NumpyEngine(dataclasses.replace(job, dtype=np.float64))
    exact.load(state)
    rows = exact.rows(course.x)
    assert z.shape == (len(course.x), job.network.sizes[-1])
    assert excess(z, exact.forward(course.x), forward_tolerance(job.network, state.parameters, rows)) == 0


def check_scored(network: Network, z: Any, y: Any, scored: RowResults) -> None:
    """Losses and hits of rows against those of the same pre-activations in float64."""
    wanted = plain_losses(network, z, y)
    scale = 1 + np.abs(z).max() + (np.abs(y).max() if y.ndim == 2 else 0)  # what sums in float32 are rounded at
    tolerance = 2e-7 * z.shape[1] * scale ** (1 if network.loss == "cross-entropy" else 2)
    assert np.abs(scored.loss - wanted).max() <= tolerance
    hits = z.argmax(axis=1) == y if y.ndim == 1 else np.zeros(len(z), bool)
    assert np.array_equal(scored.correct, hits)


# ------------------------------------------------------------------------------------------------ training


def problem(rows: int = 150, seed: int = 0, noise: float = 0.0) -> tuple[Any, Any]:
    """Three classes that a line can nearly part; `noise` is the share of random labels."""
    rng = np.random.default_rng([seed, rows])
    x = rng.normal(size=(rows, 4)).astype(np.float32)
    y = (x @ np.random.default_rng(9).normal(size=(4, 3))).argmax(axis=1)
    random = rng.random(rows) < noise
    y[random] = rng.integers(0, 3, random.sum())
    return x, y


def set_up(**changes: Any) -> Settings:
    defaults: dict[str, Any] = {"schedule": Schedule(0.1), "epochs": 4, "batch_size": 16, "backend": "numpy"}
    return Settings(**{**defaults, **changes})


class Keeper:
    """A callback that keeps the parameters at the end of each epoch."""

    def __init__(self) -> None:
        self.parameters: list[Any] = []

    def __call__(self, row: dict[str, Any], engine: Engine) -> None:
        self.parameters.append(engine.state().parameters)
        assert row["epoch"] == len(self.parameters)
