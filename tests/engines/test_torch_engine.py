"""Tests of the PyTorch engine beyond the contract tests: complete training runs, transfer of states, threads, errors."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import ok, refused
from support.engines import Course, engine_of, make_course, run_course, start_state
from support.extract import own_folder  # noqa: F401 - an autouse fixture
from support.processes import check_in_a_forked_child

from fastmlp.data.load import load_data
from fastmlp.data.scaling import fit_scaling
from fastmlp.engines import make_engine
from fastmlp.engines.base import EngineSpec, State
from fastmlp.errors import UnavailableError
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import RULES, Optimizer
from fastmlp.nn.schedules import Schedule
from fastmlp.training.api import train
from fastmlp.training.settings import Settings

pytestmark = pytest.mark.full

torch = pytest.importorskip("torch", reason="backend 'torch' needs PyTorch: pip install torch")

# ------------------------------------------------------------------------------------------------ curves

# Accepted relative differences of losses, for float64 and float32. The engines use the same formulas, so in float64 they differ
# by at most 2e-15. In float32, rounding causes differences of up to 2e-6 in these runs. A learning rate that is 0.1 % too high
# causes a difference of at least 1e-4, which is detected.
SAME, ROUNDED = 1e-12, 2e-5
ROWS, VALIDATION = 800, 200

# Name: loss, output, optimizer, learning rate. absolute-error and quantile are not included: their gradients jump where the
# error is 0, so rounding errors change the losses of so many steps by more than the accepted differences. Their losses and
# gradients are compared with PyTorch in test_reference.py.
TRAININGS: dict[str, tuple[str, str, Optimizer, float]] = {
    "cross-entropy": ("cross-entropy", "softmax", Optimizer("adamw", max_grad_norm=1.0), 0.002),
    "linear": ("squared-error", "linear", Optimizer("nesterov"), 0.01),
    "sigmoid": ("squared-error", "sigmoid", Optimizer("adam"), 0.002),
    "softmax": ("squared-error", "softmax", Optimizer("rmsprop", beta2=0.9), 0.0005),
    "huber": ("huber:0.3", "linear", Optimizer("momentum"), 0.01),
}


@functools.cache
def curves(kind: str, backend: str, dtype: Any = np.float32, seed: int = 0, stretch: float = 1.0) -> Any:
    """Train on the digits with dropout, label smoothing and an L2 penalty; return the losses of each epoch, (epochs, 2)."""
    loss, output, optimizer, rate = TRAININGS[kind]
    activation = ("leaky-gelu:0.1", "tanh")
    network = Network((784, 24, 16, 10), activation, dropout=0.2, loss=loss, output=output, l2=1e-4, label_smoothing=0.05)
    schedule = Schedule("inverse-time", decay=0.1)
    settings = Settings(
        dataclasses.replace(optimizer, learning_rate=rate * stretch),
        schedule,
        epochs=3,
        batch_size=32,
        seed=seed,
        backend=backend,
        dtype=dtype,
    )
    data = load_data("digits")
    (x, y), validation = ((data.x[part], data.y[part]) for part in (slice(ROWS), slice(ROWS, ROWS + VALIDATION)))
    history = train(network, (x, y), validation, settings=settings, scaling=fit_scaling("unit", x)).history
    return np.array([(row["loss"], row["val_loss"]) for row in history])


def apart(one: Any, other: Any) -> float:
    """Return the largest relative difference between the losses of two training runs."""
    return float(np.abs(one / other - 1).max())


@pytest.mark.parametrize("kind", TRAININGS)
def test_losses_lie_on_those_of_the_other_engines(kind: str, numba_backend: str) -> None:
    specified = curves(kind, "numpy", np.float64)
    assert apart(curves(kind, "torch", np.float64), specified) < SAME
    assert apart(curves(kind, "torch"), specified) < ROUNDED
    assert apart(curves(kind, "torch"), curves(kind, numba_backend)) < ROUNDED
    assert specified[-1, 0] < 0.9 * specified[0, 0]  # the loss decreases


@pytest.mark.parametrize("kind", TRAININGS)
def test_another_seed_and_another_rate_are_seen(kind: str) -> None:
    specified = curves(kind, "numpy", np.float64)
    assert apart(curves(kind, "torch", seed=1), specified) > 1e-2
    assert apart(curves(kind, "torch", stretch=1.001), specified) > 2 * ROUNDED


# ------------------------------------------------------------------------------------------------ states

JOBS = {
    name: EngineSpec(Network((13, 18, 5), l1=1e-3), Optimizer(name, max_grad_norm=1.0), batch_size=8, dtype=np.float64)
    for name in RULES
}


def relay(spec: EngineSpec, runners: tuple[str, ...], spoil: Any = lambda state: state) -> State:
    """Train with several engines in turn and return the last state; `spoil` modifies each state that is handed over."""
    course, state = make_course(spec.network, 24, epochs=len(runners), rate=0.01), start_state(spec)
    for leg, runner in enumerate(runners):
        rows, steps = slice(24 * leg, 24 * (leg + 1)), slice(3 * leg, 3 * (leg + 1))
        part = course._replace(indices=course.indices[rows], learning_rates=course.learning_rates[steps])
        state = spoil(run_course(runner, spec, state, part)[0])
    return state


@pytest.mark.parametrize("name", RULES)
def test_a_state_goes_to_another_engine_and_back(name: str) -> None:
    wanted = relay(JOBS[name], ("numpy",) * 4)
    found = relay(JOBS[name], ("numpy", "torch", "numpy", "torch"))
    np.testing.assert_allclose(found.parameters, wanted.parameters, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(found.slots, wanted.slots, rtol=1e-11, atol=1e-13)
    assert found.step == wanted.step == 12


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.slots])
def test_a_lost_slot_or_step_is_seen(name: str) -> None:
    runners = ("torch", "numpy") * 2
    right = relay(JOBS[name], runners).parameters
    lost = relay(JOBS[name], runners, lambda state: state._replace(slots=0 * state.slots)).parameters
    assert np.abs(lost - right).max() > 1e-4
    late = relay(JOBS[name], runners, lambda state: state._replace(step=state.step + 1)).parameters
    assert (np.abs(late - right).max() > 1e-5) == name.startswith("adam")


@pytest.mark.parametrize("name", ["momentum", "nesterov"])
def test_no_momentum_is_plain_descent(name: str) -> None:
    """The PyTorch engine accepts zero momentum, although PyTorch's own optimizer rejects Nesterov momentum of zero."""
    spec = EngineSpec(Network((13, 18, 5)), Optimizer(name, momentum=0.0), batch_size=8, dtype=np.float64)
    found, wanted = (relay(spec, (backend,)).parameters for backend in ("torch", "numpy"))
    np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-13)


def test_a_gradient_is_clipped_to_the_norm_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clipped gradient has exactly the requested norm; PyTorch's own, less accurate clipping fails the same check."""
    spec = EngineSpec(Network((13, 18, 5)), Optimizer("sgd", max_grad_norm=1e-5), batch_size=24, dtype=np.float64)
    course, start = make_course(spec.network, 24, 24, epochs=1, rate=1.0), start_state(spec)

    def moved() -> float:
        return float(np.linalg.norm(run_course("torch", spec, start, course)[0].parameters - start.parameters))

    assert moved() == pytest.approx(1e-5, rel=1e-8)
    monkeypatch.setattr("fastmlp.engines.torch_engine.clip", torch.nn.utils.clip_grad_norm_)
    assert moved() < 1e-5 * (1 - 1e-7)


# ------------------------------------------------------------------------------------------------ threads


def test_the_process_keeps_its_number_of_threads() -> None:
    """PyTorch's number of threads is a global setting, so the engine reports it but never changes it."""
    before = torch.get_num_threads()
    spec = EngineSpec(Network((13, 18, 5)), Optimizer("sgd"), batch_size=8, threads=before + 3)
    with engine_of("torch", spec) as engine:
        engine.train(*make_course(spec.network))
        assert engine.threads == torch.get_num_threads() == before
    torch.set_num_threads(before + 1)
    try:
        with engine_of("torch", spec) as engine:
            assert engine.threads == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not available")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_much_work_in_a_forked_child_does_not_hang() -> None:
    network, before = Network((400, 300, 10)), torch.get_num_threads()
    x = np.random.default_rng(0).random((3000, 400), np.float32)
    torch.set_num_threads(2)
    try:
        with engine_of("torch", EngineSpec(network, Optimizer("sgd"))) as engine:
            wanted = engine.forward(x)
            check_in_a_forked_child(lambda: np.allclose(engine.forward(x), wanted, atol=1e-4), seconds=60)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", RULES)
def test_a_huge_rate_is_a_loss_that_is_not_finite(name: str, dtype: Any) -> None:
    """A huge learning rate gives losses that are not finite, even where PyTorch itself would raise an overflow error."""
    spec = EngineSpec(Network((13, 18, 5), loss="squared-error"), Optimizer(name), batch_size=8, dtype=dtype)
    for rate in (1e30, 1e37, 1e39, 1e300, np.inf):
        course = make_course(spec.network, 24, epochs=20)
        losses = run_course("torch", spec, start_state(spec), Course(*course[:3], np.full(60, rate)))[1].loss
        assert np.isfinite(losses[:8]).all()
        assert rate == 1e30 or not np.isfinite(losses[-8:]).any()


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "fastmlp.engines.torch_engine", raising=False)


MISSING = "backend 'torch' needs torch: pip install torch"


@pytest.mark.usefixtures("no_torch")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(UnavailableError, match=MISSING):
        make_engine("torch", EngineSpec(Network((3, 2)), Optimizer("sgd")))
    small = {"FASTMLP_DATASET": "digits", "FASTMLP_VAL_COUNT": "100", "FASTMLP_EPOCHS": "1"}
    assert refused(4, "train", "--recipe", "ee5179-4", "--out", "run", "-q", **small) == MISSING
    assert MISSING in refused(4, "recipes", "run", "ee5179-4", "--out", "set", "-q", **small)
    assert not Path("run").exists()


def test_it_is_taken_when_asked_for_and_never_else(numba_backend: str) -> None:
    for dtype, name in ((np.float32, numba_backend), (np.float64, "numpy")):
        with engine_of("auto", EngineSpec(Network((3, 2)), Optimizer("sgd"), dtype=dtype)) as engine:
            assert engine.name == name
    ok("train", "--hidden", "8", "--epochs", "1", "--backend", "torch", "--out", "run", "-q")
    result = json.loads(Path("run/result.json").read_text())
    assert (result["backend"], result["threads"]) == ("torch", torch.get_num_threads())
