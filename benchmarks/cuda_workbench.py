"""Pieces of the CUDA engine called one by one: its memory on the device filled by hand, its kernels launched for one phase.

What is timed is the engine's own kernels, from a launch to its end: each time includes a launch and a wait for the device,
which training spreads over many steps. Copies of data are not timed; resetting the barrier's counter is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from benchmarks.measuring import Subject
from benchmarks.workbench import LEARNING_RATE, STEP, on_bench
from fastmlp.engines.base import EngineSpec, State
from fastmlp.engines.cuda import engine as cuda
from fastmlp.engines.cuda.kernels.layout import COLUMNS, FAN_OUT, OUT_WIDTH, unpad
from fastmlp.engines.cuda.kernels.programs import KernelSpec, Shape
from fastmlp.engines.cuda.runtime import Launch
from fastmlp.errors import UnavailableError
from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.optimizers import Optimizer

KEEP_GRADIENT = Optimizer(
    clip_norm=1.0
)  # with it a gradient is written to memory, for its norm, and no weight changes in that phase


def device() -> Any:
    """The runtime of the device; skips the benchmark where there is none."""
    try:
        return cuda.default_runtime()
    except UnavailableError as error:
        pytest.skip(str(error))


class CudaWorkbench:
    """The memory of a CUDA engine for one batch of `rows` rows, of the design that the engine takes for so many.

    A block of the arena is identified by a layer and a column of its table (OUTPUT, SLOPES, GRADIENT of kernels/layout.py).
    Blocks, inputs, classes and parameters are zeros at first.
    """

    def __init__(self, network: Network, rows: int, runtime: Any, optimizer: Optimizer | None = None) -> None:
        self.network, self.rows, self.runtime = network, rows, runtime
        spec = EngineSpec(network, optimizer or Optimizer(), batch_size=rows)
        self.engine = engine = cuda.CudaEngine(spec, runtime)
        engine.reserve(rows)
        self.layout = engine.layout
        self.load(np.zeros(network.parameters, np.float32))
        self.inputs(np.zeros((rows, network.sizes[0]), np.float32))
        self.labels(np.zeros(rows, np.int32))
        for name, array in {
            "indices": np.arange(rows, dtype=np.int32),
            "loss_weight": np.full(rows, 1 / rows, np.float32),
            "loss": np.full(rows, np.nan, np.float32),
            "correct": np.zeros(rows, np.bool_),
            "scalars": spec.optimizer.scalars_by_kind(np.array([LEARNING_RATE]), STEP),
            "clock": np.full(1, STEP),
        }.items():
            engine.upload(name, array)

    def load(self, parameters: FloatArray, slots: FloatArray | None = None) -> None:
        """Parameters and slots, as in `State`; None for zeros."""
        count = len(self.engine.spec.optimizer.slots)
        self.engine.load(State(parameters, np.zeros((count, len(parameters)), np.float32) if slots is None else slots, STEP))

    def inputs(self, x: FloatArray) -> None:
        """The rows of the batch, (rows, features) float32."""
        self.engine.upload("x", cuda.widened(x))

    def labels(self, y: Any) -> None:
        """Their classes, (rows,) int32."""
        self.engine.upload("y", y)

    def view(self, arena: FloatArray, column: int, layer: int) -> FloatArray:
        """The rows of a block in a copy of the arena, (rows, units) float32."""
        row = self.layout.table[layer * COLUMNS :][:COLUMNS]
        at, width = int(row[column]), int(row[OUT_WIDTH])
        return arena[at : at + self.rows * width].reshape(self.rows, width)[:, : row[FAN_OUT]]

    def fill(self, blocks: Mapping[tuple[int, int], Any]) -> None:
        """Overwrite the arena: with these blocks, (rows, units) each, by column and layer, and zeros elsewhere."""
        arena = np.zeros(self.layout.arena, np.float32)
        for place, array in blocks.items():
            self.view(arena, *place)[:] = array
        self.engine.upload("arena", arena)

    def block(self, column: int, layer: int) -> FloatArray:
        """A block as it lies on the device, (rows, units) float32."""
        return self.view(self.runtime.get(self.engine.handles["arena"]), column, layer)

    def vector(self, name: str) -> Any:
        """An array of the engine's that has no padding, such as "loss", as it lies on the device."""
        return self.runtime.get(self.engine.handles[name])

    def gradient(self) -> FloatArray:
        """The flat gradient, (parameters,) float32; of a workbench with the optimiser `KEEP_GRADIENT`."""
        return unpad(self.network, self.vector("gradients"))

    def launch(self, first: int, end: int) -> Launch:
        """Phases `first` to before `end` of a step in one launch."""
        kind = self.engine.kernel_spec(np.empty(0, np.float32), np.empty(0, np.int32))
        return self.engine.launch(kind, self.rows, first, end)

    def phases(self, first: int, end: int) -> Callable[[], None]:
        """A call of phases `first` to before `end` of a step, launched as the engine does, that returns when they have ended.

        Small batches: in one launch, and if its blocks wait for each other, their counter is set to 0 before: that is timed
        too, as it is before each launch in training. Large ones: a launch for each phase, in one graph.
        """
        runtime, counter = self.runtime, self.engine.handles["counter"]
        if not isinstance(self.engine.shape(self.rows), Shape):
            graph = runtime.record([self.launch(phase, phase + 1) for phase in range(first, end)])

            def run() -> None:
                graph()
                runtime.wait()

            return run
        launch, zero = self.launch(first, end), np.zeros(1, counter.dtype)

        def run_at_once() -> None:
            if launch.together:
                runtime.fill(counter, zero)
            runtime.launch(launch)
            runtime.wait()

        return run_at_once

    # programs.py lists the phases of a step of L layers.

    def forward(self, layer: int) -> Callable[[], None]:
        """A call of the forward product of a layer with `store_activation`: outputs, and slopes of a hidden layer."""
        return self.phases(layer, layer + 1)

    def losses(self) -> Callable[[], None]:
        """A call of the losses, correctness and dz of all rows."""
        return self.phases(len(self.network.layers), len(self.network.layers) + 1)

    def backward(self) -> Callable[[], None]:
        """A call of all input gradients, and of all weight gradients with the updates that end them."""
        layers = len(self.network.layers)
        return self.phases(layers + 1, 2 * layers + 1)

    def input_gradient(self) -> Callable[[], None]:
        """A call of dx = (dz w') f'(z) of the last layer, of two or more: the one phase of the way back without an update."""
        return self.phases(len(self.network.layers) + 1, len(self.network.layers) + 2)


def on_vectors(runtime: Any, name: str, kind: KernelSpec, arguments: Sequence[Any], results: Sequence[int]) -> Subject:
    """A kernel of kernels/pieces.py over vectors, on the device; a run waits for its end.

    arguments : its own; arrays of the host are copied to the device once, flat
    results : indices of its output arguments
    """
    program = runtime.program(name, kind, cuda.SHAPE)
    given = [runtime.put(one) if isinstance(one, np.ndarray) else one for one in arguments]
    launch = Launch(program, cuda.SHAPE.resident * runtime.blocks, given)

    def run() -> None:
        runtime.launch(launch)
        runtime.wait()

    return on_bench(run, lambda: tuple(runtime.get(given[i]).reshape(arguments[i].shape) for i in results), None)
