"""Forking a process with an engine: parent and child both can train, or the child raises an error, and nothing hangs."""

from __future__ import annotations

import os

import pytest
from support.cpu import run_script

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not available"), pytest.mark.full]

FORK = """
import hashlib, os, sys, warnings
import numpy as np
from fastmlp.engines.cpu import engine as cpu
from fastmlp.engines.cpu import threads as cpu_threads
from fastmlp.engines.base import EngineSpec, State
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks with threads
cpu_threads.MUCH_FLOPS, cpu_threads.SURE_FLOPS, cpu.most_threads = 0, 0, lambda: 64
network = Network((13, 21, 9, 5), ["relu", "linear"])
engine = cpu.NumbaEngine(EngineSpec(network, Optimizer("sgd"), batch_size=7, threads=3))
engine.load(State(network.initial_parameters(0), np.zeros((0, network.parameters), np.float32), 0))
rng = np.random.default_rng(0)
x, y = rng.normal(size=(30, 13)).astype(np.float32), rng.integers(0, 5, 30).astype(np.int32)

def train():
    loss = engine.train(x, y, rng.permutation(30), np.full(5, 0.1)).loss
    return hashlib.sha256(loss.tobytes() + engine.state().parameters.tobytes() + engine.forward(x).tobytes()).hexdigest()

if sys.argv[1] == "fork":
    first = train()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, " ".join([train(), train()]).encode())
        os._exit(0)
    print(first, train(), train(), "child", os.read(reader, 1000).decode(), os.waitpid(child, 0)[1])
else:
    print(train(), train(), train())
"""


def test_parent_and_child_both_train_on_after_a_fork() -> None:
    first, *rest = run_script(FORK, "alone").split()
    assert len({first, *rest}) == 3  # each training call changes the results
    assert run_script(FORK, "fork").split() == [first, *rest, "child", *rest, "0"]


FORKED = """
import os, threading, warnings
import numpy as np
from fastmlp.engines.base import EngineSpec, State
from fastmlp.engines.cpu.engine import NumbaEngine
from fastmlp.errors import UnavailableError
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks with threads
network = Network((3, 4, 2))
engine = NumbaEngine(EngineSpec(network, Optimizer("sgd")))
engine.load(State(network.initial_parameters(0), np.empty((0, network.parameters), np.float32), 0))
holds, go = threading.Event(), threading.Event()

def work():
    with engine.exclusive():
        holds.set()
        go.wait()

thread = threading.Thread(target=work)
thread.start()
holds.wait()
child = os.fork()
if child == 0:
    try:
        engine.state()
    except UnavailableError as error:
        os._exit(7 if "forked" in str(error) else 1)
    os._exit(1)
go.set()
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), engine.state().step)
"""


def test_a_child_forked_while_the_engine_works_is_refused_and_does_not_hang() -> None:
    assert run_script(FORKED).split() == ["7", "0"]
