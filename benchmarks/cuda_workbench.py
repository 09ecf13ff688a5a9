"""Access to single phases of the CUDA engine's training step, for benchmarks.

A benchmark writes its operands into the engine's device memory, and then launches the engine's own kernels for one phase of a
step. The measured time runs from the launch to the end of the kernel. It includes one launch and one synchronisation with the
device, whose cost training amortises over many steps, and the reset of the barrier's counter. Copies of data are not timed.
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

# With gradient clipping, the gradient is written to memory because its norm is needed. This phase does not update the weights.
KEEP_GRADIENT = Optimizer(max_grad_norm=1.0)


def device() -> Any:
    """Return the CUDA runtime; skip the benchmark if no GPU is available."""
    try:
        return cuda.default_runtime()
    except UnavailableError as error:
        pytest.skip(str(error))


class CudaWorkbench:
    """A CUDA engine and its device memory for one mini-batch of `rows` rows. The engine chooses its kernels by `rows`.

    The arena is one array that contains all intermediate results. The result of one kind in one layer is called a block. It is
    identified by a column of the layout's table (OUTPUT, SLOPES or GRADIENT, see kernels/layout.py) and the layer. Blocks,
    inputs, labels and parameters are initially zero.
    """

    def __init__(self, network: Network, rows: int, runtime: Any, optimizer: Optimizer | None = None) -> None:
        self.network, self.rows, self.runtime = network, rows, runtime
        spec = EngineSpec(network, optimizer or Optimizer("sgd"), batch_size=rows)
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
        """Load parameters and optimizer slots in the layout of `State`; without `slots`, all slots are zero."""
        count = len(self.engine.spec.optimizer.slots)
        self.engine.load(State(parameters, np.zeros((count, len(parameters)), np.float32) if slots is None else slots, STEP))

    def inputs(self, x: FloatArray) -> None:
        """Upload the rows of the mini-batch, (rows, features) float32."""
        self.engine.upload("x", cuda.widened(x))

    def labels(self, y: Any) -> None:
        """Upload the class labels of the rows, (rows,) int32."""
        self.engine.upload("y", y)

    def view(self, arena: FloatArray, column: int, layer: int) -> FloatArray:
        """Return a view of a block in a host copy of the arena, (rows, units) float32."""
        row = self.layout.table[layer * COLUMNS :][:COLUMNS]
        at, width = int(row[column]), int(row[OUT_WIDTH])
        return arena[at : at + self.rows * width].reshape(self.rows, width)[:, : row[FAN_OUT]]

    def fill(self, blocks: Mapping[tuple[int, int], Any]) -> None:
        """Write blocks to the arena, and zeros to the rest of the arena.

        blocks : arrays (rows, units); the keys are (column, layer)
        """
        arena = np.zeros(self.layout.arena, np.float32)
        for place, array in blocks.items():
            self.view(arena, *place)[:] = array
        self.engine.upload("arena", arena)

    def block(self, column: int, layer: int) -> FloatArray:
        """Copy a block to the host, (rows, units) float32."""
        return self.view(self.runtime.get(self.engine.handles["arena"]), column, layer)

    def vector(self, name: str) -> Any:
        """Copy an array of the engine that has no padding, such as "loss", to the host."""
        return self.runtime.get(self.engine.handles[name])

    def gradient(self) -> FloatArray:
        """Copy the gradient of all parameters to the host, (parameters,) float32. The optimizer must be `KEEP_GRADIENT`."""
        return unpad(self.network, self.vector("gradients"))

    def launch(self, first: int, end: int) -> Launch:
        """Return a launch that runs the phases `first` to `end` - 1 of a step."""
        kind = self.engine.kernel_spec(np.empty(0, np.float32), np.empty(0, np.int32))
        return self.engine.launch(kind, self.rows, first, end)

    def phases(self, first: int, end: int) -> Callable[[], None]:
        """Return a function that runs the phases `first` to `end` - 1 of a step like the engine, and waits for their end.

        Small batches use one launch. If its thread blocks synchronise with each other, the counter of the barrier is reset
        first, as before each launch in training; the reset is timed, too. Large batches use one launch per phase, and all
        launches are recorded in one CUDA graph.
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

    # The phases of a step are listed in kernels/programs.py.

    def forward(self, layer: int) -> Callable[[], None]:
        """Return a function that computes the outputs of a layer and, for a hidden layer, the activation's derivatives."""
        return self.phases(layer, layer + 1)

    def losses(self) -> Callable[[], None]:
        """Return a function that computes losses, correct predictions and dz of all rows."""
        return self.phases(len(self.network.layers), len(self.network.layers) + 1)

    def backward(self) -> Callable[[], None]:
        """Return a function that computes all input gradients, and all weight gradients with their updates."""
        layers = len(self.network.layers)
        return self.phases(layers + 1, 2 * layers + 1)

    def input_gradient(self) -> Callable[[], None]:
        """Return a function that computes dx = (dz w') f'(z) of the last layer, a phase that does not update parameters."""
        return self.phases(len(self.network.layers) + 1, len(self.network.layers) + 2)


def on_vectors(runtime: Any, name: str, kind: KernelSpec, arguments: Sequence[Any], results: Sequence[int]) -> Subject:
    """Return a subject that runs a kernel of kernels/pieces.py on vectors and waits for its end.

    arguments : arguments of the kernel; host arrays are flattened and copied to the device once
    results : indices of its output arguments
    """
    program = runtime.program(name, kind, cuda.SHAPE)
    given = [runtime.put(one) if isinstance(one, np.ndarray) else one for one in arguments]
    launch = Launch(program, cuda.SHAPE.resident * runtime.blocks, given)

    def run() -> None:
        runtime.launch(launch)
        runtime.wait()

    return on_bench(run, lambda: tuple(runtime.get(given[i]).reshape(arguments[i].shape) for i in results), None)
