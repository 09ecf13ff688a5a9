"""The losses of every contestant agree with those of the reference implementation for the same training task."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.processes import ROOT

from fastmlp.bench.cases import synthetic_rows
from fastmlp.bench.contestant import OwnEngine, Task, library
from fastmlp.bench.pytorch import Torch, TorchCompiled
from fastmlp.bench.rivals import NAMES, RIVALS, Jax, Sklearn, contestants, parse_names
from fastmlp.engines.cpu.threads import available_cores
from fastmlp.errors import ConfigError, UnavailableError
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import DEFAULT_LEARNING_RATE, RULES, Optimizer

pytestmark = pytest.mark.full

ROWS, BATCH = 200, 48  # the last mini-batch is smaller than the others
TOLERANCE = 1e-4  # relative tolerance of mean losses, for float32 rounding errors over ten steps
DROPOUT = 0.4
ORDERS = [np.random.default_rng(epoch).permutation(ROWS) for epoch in range(2)]


def make_task(optimizer: str = "sgd", activation: str = "relu", dropout: float = 0.0) -> Task:
    network = Network((20, 16, 12, 10), activation=activation, dropout=dropout)
    rows = synthetic_rows(ROWS, 20, 10)
    learning_rate = 0.2 if optimizer == "sgd" else DEFAULT_LEARNING_RATE[optimizer]
    return Task(
        network, rows.x, rows.y, network.initial_parameters(3), BATCH, learning_rate, Optimizer(optimizer, momentum=0.7)
    )


def losses(contestant: Any, task: Task, orders: Any = ORDERS) -> list[float]:
    """Return the mean loss of each epoch. The loss of the second epoch depends on the updates of the first."""
    with closing(contestant):
        contestant.prepare(task)
        with contestant.limited():
            return [contestant.epoch(order) for order in orders]


def specified(task: Task) -> list[float]:
    return losses(OwnEngine("numpy", 1), task)


def agrees(contestant: Any, task: Task) -> bool:
    return bool(np.allclose(losses(contestant, task), specified(task), rtol=TOLERANCE, atol=0))


# ------------------------------------------------------------------------------------------------ in this process


@pytest.mark.parametrize("name", ["numpy", "numba", "torch", "sklearn"])
def test_contestants_agree_with_the_specification(name: str) -> None:
    need(name)
    task = make_task()
    for contestant in contestants([name], 2):
        assert agrees(contestant, task)


def need(name: str) -> None:
    package = {"torch": "torch", "torch-compile": "torch", "jax": "jax"}.get(name)
    if package and find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


# Settings that each library must reject, because it does not support them. With all other settings, its losses must agree with
# those of the reference implementation.
LACKS = {
    "torch": {"leaky-gelu"},
    "sklearn": {"rmsprop", "adamw", "leaky-relu", "gelu", "leaky-gelu", "silu", "elu"},
    "jax": {"rmsprop", "adamw", "leaky-gelu"},
}


@pytest.mark.parametrize("name", ["torch", "sklearn"])
@pytest.mark.parametrize("optimizer", RULES)
def test_optimisers_agree_or_are_unsupported(name: str, optimizer: str) -> None:
    need(name)
    agrees_or_lacks(name, optimizer, make_task(optimizer))


@pytest.mark.parametrize("name", ["torch", "sklearn"])
@pytest.mark.parametrize("activation", ["linear", "leaky-relu", "tanh", "sigmoid", "gelu", "leaky-gelu", "silu", "elu"])
def test_activations_agree_or_are_unsupported(name: str, activation: str) -> None:
    need(name)
    agrees_or_lacks(name, activation, make_task(activation=activation))


def agrees_or_lacks(name: str, what: str, task: Task) -> None:
    contestant = RIVALS[name](1)
    if what in LACKS[name]:
        with pytest.raises(UnavailableError, match=f"does not support {what}"):
            losses(contestant, task)
    else:
        assert agrees(contestant, task)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda task: replace(task, learning_rate=task.learning_rate * 1.1),
        lambda task: replace(task, start=task.start * np.float32(1.01)),
        lambda task: replace(task, batch=task.batch + 1),
        lambda task: replace(task, y=np.roll(task.y, 1)),
        lambda task: replace(task, optimizer=Optimizer("nesterov")),
    ],
)
def test_a_different_task_is_detected(wrong: Any) -> None:
    """Each difference in the task changes the losses by more than the tolerance, so the tests above would detect it."""
    task = make_task()
    assert not np.allclose(specified(wrong(task)), specified(task), rtol=TOLERANCE, atol=0)


def test_a_different_order_of_rows_is_detected() -> None:
    task = make_task()
    other = losses(OwnEngine("numpy", 1), task, [order[::-1].copy() for order in ORDERS])
    assert not np.allclose(other, specified(task), rtol=TOLERANCE, atol=0)


def has_own_masks(found: list[float]) -> bool:
    """Return whether the losses differ from those without dropout but are close to those with fastmlp's dropout masks."""
    plain, dropped = specified(make_task()), specified(make_task(dropout=DROPOUT))
    return not np.allclose(found, plain, rtol=0.01) and np.allclose(found, dropped, rtol=0.08)


def test_dropout_is_applied() -> None:
    need("torch")
    assert has_own_masks(losses(Torch(1), make_task(dropout=DROPOUT)))
    assert not has_own_masks(losses(Torch(1), make_task()))
    with pytest.raises(UnavailableError, match="does not support dropout"):
        losses(Sklearn(1), make_task(dropout=DROPOUT))


def test_scikit_learn_does_not_support_two_classes() -> None:
    task = replace(make_task(), network=Network((20, 16, 2)))
    with pytest.raises(UnavailableError, match="two classes"):
        losses(Sklearn(1), task)


def test_the_number_of_threads_is_set_and_restored() -> None:
    need("torch")
    import torch

    before = torch.get_num_threads()
    contestant = Torch(before + 1)
    contestant.prepare(make_task())
    with contestant.limited():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


# ------------------------------------------------------------------------------------------------ in a child process

# JAX and torch.compile run in a child process, because they leave threads and signal handlers that would affect later tests.
CHILD = """
import sys
sys.path[:0] = sys.argv[1:3]
import json
from bench.test_rivals import *
from fastmlp.bench.rivals import contestants
name, threads, cases = sys.argv[3], int(sys.argv[4]), json.loads(sys.argv[5])
for case in cases:
    task = make_task(*case)
    try:
        print(json.dumps([losses(RIVALS[name](threads), task), specified(task)]))
    except UnavailableError as error:
        print(json.dumps(str(error)))
"""


Case = tuple[str, str, float]
SLOW_GUARDS = "ignore::RuntimeWarning:torch._dynamo.guards"  # on CPython 3.13.0, PyTorch warns of slow compiled code


def in_child(name: str, threads: int, cases: list[Case], **variables: str) -> list[Any]:
    """Run cases (optimizer, activation, dropout) in a child process.

    For each case, return the losses of the contestant and of the reference implementation, or the message of the error.
    """
    command = [sys.executable, "-W", "error", "-W", SLOW_GUARDS, "-c", CHILD, str(ROOT), str(ROOT / "tests")]
    done = subprocess.run(
        [*command, name, str(threads), json.dumps(cases)],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_jax_agrees_with_the_specification() -> None:
    need("jax")
    cases = [*((rule, "relu", 0.0) for rule in RULES), ("sgd", "elu", 0.0), ("sgd", "leaky-gelu", 0.0)]
    *found, dropped = in_child("jax", available_cores(), [*cases, ("sgd", "relu", DROPOUT)])
    for case, row in zip(cases, found, strict=True):
        if set(case) & LACKS["jax"]:
            assert "JAX does not support" in row
        else:
            np.testing.assert_allclose(*row, rtol=TOLERANCE)
    assert has_own_masks(dropped[0])


def test_compiled_pytorch_agrees_with_the_specification() -> None:
    need("torch-compile")
    if shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")) is None:
        pytest.skip("this machine has no C++ compiler")
    *found, dropped = in_child("torch-compile", 1, [("sgd", "relu", 0.0), ("adam", "relu", 0.0), ("sgd", "relu", DROPOUT)])
    for row in found:
        np.testing.assert_allclose(*row, rtol=TOLERANCE)
    assert has_own_masks(dropped[0])


def test_a_missing_compiler_is_reported(tmp_path: Path) -> None:
    need("torch-compile")
    (reason,) = in_child("torch-compile", 1, [("sgd", "relu", 0.0)], CXX="/none", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert reason.startswith("torch.compile does not work on this machine: ")


def test_only_the_first_paragraph_of_a_compiler_error_is_reported() -> None:
    class Refused(Exception):
        pass

    def refuse(*given: Any) -> None:
        raise Refused("\nno compiler:\n  planted\n\nSet this.\n\nAnd that.")

    contestant: Any = TorchCompiled(1)
    contestant.torch = SimpleNamespace(
        _dynamo=SimpleNamespace(exc=SimpleNamespace(TorchDynamoException=Refused)),
        no_grad=nullcontext,
        arange=range,
        get_num_threads=lambda: 1,
        set_num_threads=lambda number: None,
    )
    contestant.compiled, contestant.task, contestant.parameters = refuse, make_task(), []
    contestant.x = contestant.y = np.zeros(3)
    with pytest.raises(UnavailableError, match=r"^torch\.compile does not work on this machine: no compiler: planted$"):
        contestant.try_compiler()


# ------------------------------------------------------------------------------------------------ by name


def test_names_are_those_of_engines_and_libraries() -> None:
    assert NAMES == ("numpy", "numba", "cuda", "torch", "torch-compile", "sklearn", "jax")
    assert [type(one) for one in contestants(["torch", "numba"], 1)] == [Torch, OwnEngine]  # not fastmlp's engine "torch"
    assert parse_names(None) == NAMES
    assert parse_names("numba,jax,numba") == ("numba", "jax")
    with pytest.raises(ConfigError, match="did you mean 'sklearn'"):
        contestants(["sklern"])


def test_numbers_of_threads() -> None:
    assert [(one.backend, one.threads) for one in contestants(["numba", "torch"], 1)] == [("numba", 1), ("torch", 1)]
    assert {one.threads for one in contestants(["torch"])} == {1, available_cores()}


def test_an_engine_on_a_device_has_no_number_of_threads() -> None:
    (found,) = contestants(["cuda"], 2)
    assert (found.backend, found.threads) == ("cuda", None)


def test_an_epoch_may_cover_fewer_rows() -> None:
    """Training on a subset of the rows, as in the probe, gives the reference losses, also with a smaller last mini-batch."""
    task = make_task()
    for rows in (2 * BATCH, BATCH + 1):
        few = [ORDERS[0][:rows], ORDERS[1]]
        for name in ("numba", "sklearn", *(["torch"] if find_spec("torch") else [])):
            (contestant,) = contestants([name], 1)
            np.testing.assert_allclose(losses(contestant, task, few), losses(OwnEngine("numpy", 1), task, few), rtol=TOLERANCE)


def test_jax_refuses_another_number_of_threads() -> None:
    with pytest.raises(UnavailableError, match="one thread per core"):
        Jax(available_cores() + 1).prepare(make_task())


def test_a_missing_package_is_named() -> None:
    with pytest.raises(UnavailableError, match="no_such_package is not installed: pip install pretty-name"):
        library("pretty-name", "no_such_package")
