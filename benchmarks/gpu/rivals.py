"""Training with PyTorch on the GPU, for comparison: eager, with torch.compile, and captured as a CUDA graph; also torch.mm.

All variants train like fastmlp's engine: in float32 with TF32 disabled, by plain SGD, and with the same initial weights, rows
and row order. The rows are copied to the GPU in advance. As in fastmlp, the row order is copied in each epoch. Each variant
returns the mean loss of an epoch, whereas fastmlp also returns the loss of each row and whether it was classified correctly.

Everything except graph capture also runs on the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.measures import seconds_of
from benchmarks.gpu.sizes import Sizes
from fastmlp.bench.contestant import Order, Task, library
from fastmlp.bench.pytorch import Torch
from fastmlp.bench.rounds import min_median_max
from fastmlp.errors import UnavailableError

WARMUP_STEPS = 3  # number of steps before the capture


class Eager(Torch):
    """PyTorch without a compiler."""

    backend = "torch eager"

    def __init__(self, device: str) -> None:
        super().__init__(None, device)

    def limited(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: a GPU has no number of threads to limit."""
        return contextlib.nullcontext()


class Summed(Eager):
    """Base class that adds the loss of each step to a sum on the GPU, since the next step overwrites the output buffer."""

    def prepare(self, task: Task) -> None:
        super().prepare(task)
        self.total = self.torch.zeros((), device=self.device)

    def advance(self, picked: Any) -> None:
        """Update the parameters with the mini-batch of row indices `picked`."""
        raise NotImplementedError

    def epoch(self, order: Order) -> float:
        batches = self.torch.from_numpy(order).to(self.device).split(self.task.batch)
        self.total.zero_()
        for picked in batches:
            self.advance(picked)
        return float(self.total) / len(batches)


class Compiled(Summed):
    """A whole step compiled by torch.compile. Parameters and rows have static addresses, so that CUDA graphs can be used."""

    backend = "torch.compile reduce-overhead"
    options: dict[str, Any] = {"mode": "reduce-overhead"}  # noqa: RUF012 - replaced as a whole, never mutated
    compiled: Any = None  # None before `prepare`

    def prepare(self, task: Task) -> None:
        super().prepare(task)
        torch = self.torch
        library("torch", "torch._inductor.config").compile_threads = 1  # otherwise a pool of processes keeps running
        torch.compiler.reset()  # drop code compiled for other sizes
        self.parameters = [p.detach() for p in self.parameters]
        for tensor in (*self.parameters, self.total, self.x, self.y):
            torch._dynamo.mark_static_address(tensor)

        def step(parameters: Any, total: Any, x: Any, y: Any, picked: Any) -> None:
            gradients, loss = torch.func.grad_and_value(self.loss)(parameters, x.index_select(0, picked), y[picked])
            self.in_place(parameters, gradients)
            total.add_(loss)

        self.skips_before = self.skips()
        self.compiled = torch.compile(step, fullgraph=True, dynamic=False, **self.options)

    def advance(self, picked: Any) -> None:
        with self.torch.no_grad():
            self.compiled(self.parameters, self.total, self.x, self.y, picked)

    def skips(self) -> int:
        """Return how often PyTorch's compiler did not use a CUDA graph, according to its own counter."""
        count: int = library("torch", "torch._dynamo.utils").counters["inductor"]["cudagraph_skips"]
        return count

    def close(self) -> None:
        if self.compiled is not None:
            self.torch.compiler.reset()


class Captured(Summed):
    """The eager step, captured once as a CUDA graph and replayed for each mini-batch.

    The row indices of a mini-batch are copied into the static input of the graph.
    """

    backend = "torch CUDA graph"

    def prepare(self, task: Task) -> None:
        super().prepare(task)
        torch = self.torch
        self.picked = torch.zeros(task.batch, dtype=torch.int64, device=self.device)
        start = [p.detach().clone() for p in self.parameters]
        self.replay = self.capture(lambda: self.total.add_(self.step(self.picked)))
        with torch.no_grad():  # the warm-up steps have changed the parameters
            for p, value in zip(self.parameters, start, strict=True):
                p.copy_(value)

    def capture(self, work: Callable[[], Any]) -> Callable[[], None]:
        """Capture the kernels launched by `work` as a CUDA graph; return a function that replays it.

        Source: PyTorch's notes on CUDA semantics, section "CUDA Graphs".
        """
        torch = self.torch
        if torch.device(self.device).type != "cuda":
            raise UnavailableError("a CUDA graph needs a CUDA device")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP_STEPS):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        replay: Callable[[], None] = graph.replay
        return replay

    def advance(self, picked: Any) -> None:
        self.picked.copy_(picked)
        self.replay()

    def close(self) -> None:
        self.replay = lambda: None  # releases the graph and its memory


def torch_device() -> str:
    """Disable TF32 and return the name of the GPU in PyTorch.

    Raises
    ------
    UnavailableError : PyTorch is missing or has no CUDA device
    """
    torch = library("torch", "torch")
    if not torch.cuda.is_available():
        raise UnavailableError(f"PyTorch {torch.__version__} has no CUDA device")
    torch.set_float32_matmul_precision("highest")
    return "cuda"


def measure_mm(inputs: int, outputs: int, sizes: Sizes, precision: str, device: str = "cuda") -> dict[str, Any]:
    """Measure the GFLOP/s of torch.mm on tensors in device memory: in float32 with or without TF32, or in bfloat16."""
    torch = library("torch", "torch")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    x, w = (
        torch.rand(*shape, device=device, dtype=dtype, generator=generator)
        for shape in ((sizes.product_rows, inputs), (inputs, outputs))
    )
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:

        def multiply() -> None:
            for _ in range(sizes.product_launches):
                torch.mm(x, w)
            wait()

        flop = 2 * sizes.product_rows * inputs * outputs * sizes.product_launches
        rates = [flop / one / 1e9 for one in seconds_of(multiply, sizes.device_rounds)]
    finally:
        torch.set_float32_matmul_precision("highest")
    what = {"rows": sizes.product_rows, "inputs": inputs, "outputs": outputs, "precision": precision}
    return what | {"engine": "torch.mm", "gflops": min_median_max(rates)}
