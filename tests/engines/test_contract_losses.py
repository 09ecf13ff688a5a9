"""Contract tests of the engines, part 4: the losses that are functions of the errors y - t of a linear output."""

from __future__ import annotations

import numpy as np
import pytest
from support.engines import LOSS_PAIRS, engine_of, make_course
from support.tolerances import check_against_reference

from fastmlp.engines.base import EngineSpec, State
from fastmlp.nn.losses import LOSSES, parse_loss
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

pytestmark = pytest.mark.usefixtures("eager_threads")

LINEAR = [loss for loss, _ in LOSS_PAIRS if [*LOSSES[parse_loss(loss)[0]]] == ["linear"]]

# For each loss: errors y - t, and the loss and its derivative for each error. All values are exact in float32.
VALUES = {
    "absolute-error": [(-2.0, 2.0, -1.0), (0.0, 0.0, 0.0), (3.0, 3.0, 1.0)],
    "huber": [(-0.5, 0.125, -0.5), (0.0, 0.0, 0.0), (4.0, 3.5, 1.0)],
    "huber:2": [(-3.0, 4.0, -2.0), (-2.0, 2.0, -2.0), (0.0, 0.0, 0.0), (1.0, 0.5, 1.0), (2.0, 2.0, 2.0), (3.0, 4.0, 2.0)],
    "quantile": [(-1.0, 0.5, -0.5), (0.0, 0.0, 0.0), (2.0, 1.0, 0.5)],
    "quantile:0.75": [(-1.0, 0.75, -0.75), (0.0, 0.0, 0.0), (2.0, 0.5, 0.25)],
}


@pytest.fixture(scope="module")
def backend(every_backend: str) -> str:
    """Run each test with every backend; without a GPU, backend "cuda" is simulated."""
    return every_backend


@pytest.mark.parametrize("loss", LINEAR)
def test_training_equals_the_reference(backend: str, loss: str) -> None:
    network = Network((7, 9, 4), "tanh", loss=loss)
    spec = EngineSpec(network, Optimizer("sgd"), batch_size=8, threads=3)
    check_against_reference(backend, spec, make_course(network, 20, targets=True))


@pytest.mark.parametrize("loss", VALUES)
def test_losses_and_derivatives_of_known_errors(backend: str, loss: str) -> None:
    """The outputs of one row have these errors. In a step with learning rate 1, each bias is reduced by a derivative."""
    errors, losses, derivatives = np.array(VALUES[loss], np.float32).T
    network = Network((1, len(errors)), loss=loss)
    spec = EngineSpec(network, Optimizer("sgd"), batch_size=1)
    x, y = np.ones((1, 1), np.float32), -errors[None]
    zero = State(np.zeros(network.parameters, np.float32), np.empty((0, network.parameters), np.float32), 0)
    with engine_of(backend, spec, zero) as engine:
        assert engine.evaluate(engine.hold(x, y)).loss.tolist() == [losses.sum()]
        assert engine.train(x, y, np.arange(1), np.ones(1)).loss.tolist() == [losses.sum()]
        ((w, b),) = network.views(engine.state().parameters)
        assert (-w[0]).tolist() == (-b).tolist() == derivatives.tolist()
