"""PyTorch on the device of gpu_check.py, three ways: eager, compiled, and a step captured as a CUDA graph by hand.

All train as our engine does: float32 with TF32 off, plain SGD, the same initial weights, rows, and order of rows. They have
their rows scaled and in float32 on the device beforehand, which costs them least; ours may be uint8. Each returns the mean loss
of an epoch; ours also tells loss and hit of every row.

On tensors of the CPU the same code runs, but for the capturing of a graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from benchmarks.gpu_measures import Ours, Sizes, Subject, check_same, row_of, seconds_of_epoch
from fastmlp.bench.contestant import Order, Task, library
from fastmlp.bench.pytorch import Torch
from fastmlp.bench.rounds import RATE
from fastmlp.errors import FastMLPError, UnavailableError

WARM = 3  # steps before a graph is captured, in which libraries set themselves up

Trouble = Callable[[str, Exception], None]


class Eager(Torch):
    """As PyTorch is without a compiler."""

    backend = "torch eager"


class Summed(Torch):
    """A step adds its loss to a sum on the device, since what it gives lies in memory that the next step overwrites."""

    def prepare(self, task: Task) -> None:
        super().prepare(task)
        self.total = self.torch.zeros((), device=self.device)

    def advance(self, picked: Any) -> None:
        """One update, by the rows `picked`."""
        raise NotImplementedError

    def epoch(self, order: Order) -> float:
        batches = self.torch.from_numpy(order).to(self.device).split(self.task.batch)
        self.total.zero_()
        for picked in batches:
            self.advance(picked)
        return float(self.total) / len(batches)


class Compiled(Summed):
    """The whole step by torch.compile; parameters and rows keep their places, so that it may replay graphs of its own."""

    backend = "torch.compile reduce-overhead"
    how: dict[str, Any] = {"mode": "reduce-overhead"}  # noqa: RUF012 - replaced as a whole, never changed

    def prepare(self, task: Task) -> None:
        super().prepare(task)
        torch = self.torch
        library("torch", "torch._inductor.config").compile_threads = 1  # else a pool of processes stays behind
        torch.compiler.reset()  # what was compiled for other sizes
        self.parameters = [p.detach() for p in self.parameters]
        for tensor in (*self.parameters, self.total, self.x, self.y):
            torch._dynamo.mark_static_address(tensor)

        def step(parameters: Any, total: Any, x: Any, y: Any, picked: Any) -> None:
            gradients, loss = torch.func.grad_and_value(self.loss)(parameters, x.index_select(0, picked), y[picked])
            self.in_place(parameters, gradients)
            total.add_(loss)

        self.compiled = torch.compile(step, fullgraph=True, dynamic=False, **self.how)
        self.skips_before = self.skips()

    def advance(self, picked: Any) -> None:
        with self.torch.no_grad():
            self.compiled(self.parameters, self.total, self.x, self.y, picked)

    def skips(self) -> int:
        """How often PyTorch's compiler did without graphs, by its own count."""
        count: int = library("torch", "torch._dynamo.utils").counters["inductor"]["cudagraph_skips"]
        return count

    def close(self) -> None:
        if hasattr(self, "compiled"):
            self.torch.compiler.reset()


class Captured(Summed):
    """The eager step captured once and replayed; the numbers of its rows are copied to where it reads them."""

    backend = "torch CUDA graph"

    def prepare(self, task: Task) -> None:
        super().prepare(task)
        torch = self.torch
        self.picked = torch.zeros(task.batch, dtype=torch.int64, device=self.device)
        start = [p.detach().clone() for p in self.parameters]
        self.replay = self.capture(lambda: self.total.add_(self.step(self.picked)))
        with torch.no_grad():  # steps before the capture have trained
            for p, value in zip(self.parameters, start, strict=True):
                p.copy_(value)

    def capture(self, work: Callable[[], Any]) -> Callable[[], None]:
        """What replays the kernels that `work` starts.

        Source: PyTorch's notes on CUDA semantics, section "CUDA Graphs".
        """
        torch = self.torch
        if torch.device(self.device).type != "cuda":
            raise UnavailableError("a CUDA graph needs a CUDA device")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):
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
        self.replay = lambda: None  # the graph's memory goes with it


RIVALS: tuple[type[Torch], ...] = (Eager, Compiled, Captured)


def torch_device() -> str:
    """PyTorch's name of the GPU; TF32 is off from here on.

    Raises UnavailableError if PyTorch is missing or has no device.
    """
    torch = library("torch", "torch")
    if not torch.cuda.is_available():
        raise UnavailableError(f"PyTorch {torch.__version__} has no CUDA device")
    torch.set_float32_matmul_precision("highest")
    return "cuda"


def probe_losses(rival: Torch, ours: Ours) -> list[float]:
    """A rival's mean losses of the first steps."""
    batch = ours.batch
    return [rival.epoch(ours.probe[at : at + batch]) for at in range(0, len(ours.probe), batch)]


def admitted(
    ours: Ours, device: str, stack: contextlib.ExitStack, trouble: Trouble
) -> tuple[list[Torch], list[dict[str, Any]]]:
    """Rivals that compute the same, prepared; and those that do not, with the reason."""
    task = Task(ours.network, ours.given.scaled, ours.given.y, ours.start, ours.batch, RATE)
    wanted, found, refused = ours.probe_losses(), [], []
    for kind in RIVALS:
        rival, state = kind(None, device), "missing"
        stack.callback(rival.close)
        try:
            rival.prepare(task)
            losses = probe_losses(rival, ours)
            state = "refused"
            check_same(losses, wanted)
            found.append(rival)
        except (UnavailableError, FastMLPError) as error:
            refused.append({"engine": rival.backend, "state": state, "reason": str(error)})
        except Exception as error:  # of PyTorch or its compiler: told, and the others are measured
            trouble(rival.backend, error)
            refused.append({"engine": rival.backend, "state": "failed", "reason": f"{type(error).__name__}: {error}"[:300]})
    return found, refused


def measure_contest(
    runtime: Any, subject: Subject, sizes: Sizes, device: str, trouble: Trouble
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of our engine and of its rivals, an epoch of each in turn; and who was left out, with the reason."""
    with contextlib.ExitStack() as stack:
        ours = Ours(subject, runtime, sizes)
        stack.callback(ours.close)
        rivals, refused = admitted(ours, device, stack, trouble)
        contestants: list[Ours | Torch] = [ours, *rivals]
        seconds: dict[str, list[float]] = {one.backend: [] for one in contestants}
        for index in range(sizes.rounds + 1):
            order = ours.order(index)
            for one in contestants:
                seconds[one.backend].append(seconds_of_epoch(one, order))
        rows = [row_of("contest", ours, subject, name, times[1:]) for name, times in seconds.items()]
        for row, one in zip(rows, contestants, strict=True):
            if isinstance(one, Compiled):
                row["cudagraph_skips"] = one.skips() - one.skips_before
        key = {"network": subject.case.network, "batch": subject.case.batch}
        return rows, [key | row for row in refused]
