"""Memory layout of the CPU engine, and the division of a step into tasks. Private to the engine.

Every width is padded with zeros to a multiple of a vector and of 8, so that there are no partial tiles along it; padding stays
exactly zero. Weights (K, N) are stored in panels as wide as a vector:

    store[w_at + (n // lanes) K_p lanes + k lanes + n % lanes] = w[k, n]

and, for every layer but the first, also transposed, in panels along k, for the gradient of the layer input. Optimiser slots
and gradients are further rows of `store` with the same layout. Rows of a batch are row-major with a leading dimension of an
odd number of cache lines (and a part of one, where vectors are shorter than a line), so that a column of tiles does not map
to few sets of the cache.

A step is a sequence of phases, each a number of tasks that may run in any order on any thread. Layers with many weights are
*wide*: their products are cut by columns, and the tasks of the same columns go to the same thread first, as far as the cuts
allow, so that a weight stays in the cache of the core that reads and updates it. (Reading a line that another core has written
takes ten times as long as reading from the core's own cache.)
Layers with few weights, from `tail` on, are cut by rows of the batch:
one phase takes a block of rows through all of them, the loss, and back.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.philox import drop_threshold

UNIT = 8  # widths are multiples of it
CHUNK_ROWS = 48  # rows of w in a gradient task: a multiple of every tile's rows and of every vector's width
PAIR = 2  # adjacent panels of a tile
GROUP_COLUMNS = 64  # maximum columns of w in a gradient task: wider ones were slower, see benchmarks/NOTES.md
CACHE_LINE = 16  # floats
TAIL_WEIGHTS = 16_384  # a layer with fewer weights is not wide: moving 64 KiB is faster than opening a phase
TASKS_PER_THREAD = 4  # of a phase, at least, so that a slow thread delays a step by little
FEWEST_ROWS, MOST_ROWS = 16, 64  # of the batch in a task of the rows phase; the most in one by columns, too

# Activations that can run as epilogues of tiles, by their numbers in plans; the others run over rows still in the cache.
BY_ROWS, RELU, LINEAR = range(3)
FUSED = {"relu": RELU, "linear": LINEAR}

# Kinds of phases
GATHER, FORWARD, ROWS, BACKWARD, WEIGHTS, UPDATE = range(6)

Ints = npt.NDArray[np.int64]


LAYER = np.dtype(
    [
        *((name, np.int64) for name in ("fan_in", "fan_in_p", "fan_out", "fan_out_p", "w_at", "b_at", "t_at", "fused")),
        ("threshold", np.uint64),
        ("parameter", np.float32),
        ("keep_scale", np.float32),
    ]
)
WIDTH = np.dtype([(name, np.int64) for name in ("ld", "y_at", "s_at", "dz_at", "packed_at")])
PHASE = np.dtype([(name, np.int64) for name in ("kind", "layer", "first", "tasks")])
TASK = np.dtype([(name, np.int64) for name in ("layer", "panel", "panels", "first", "rows")])


class StepPlan(NamedTuple):
    """Sizes of a network for the kernels: records of the types above. Offsets and sizes are in elements.

    layers : of each layer of weights its true and padded sizes, the offsets of weights and biases in a row of `store` and of
        the transposed weights, how the activation may be fused (BY_ROWS: not) with its parameter, and dropout (threshold 0
        drops nothing)
    widths : of each width (0: the input) its leading dimension, and the places of its activations (the last: output
        pre-activations), slopes and gradients in `arena`, and of the packed copy of the gradients in `packed`: rows of a pair
        of panels side by side, `rows` of them, pair after pair. Code that reads dz by columns reads this copy, which is
        contiguous
    phases : of a step: kind, layer, first task and number of tasks
    tasks : panels [panel, panel + panels) of a layer, and either rows of the batch or (WEIGHTS, UPDATE) rows of w;
        BACKWARD counts the transposed panels
    shares : (phases, threads + 1) int64: thread t begins with the tasks shares[p, t] … shares[p, t + 1] of phase p
    rows : of the largest batch
    row_at : (widths, rows) int64: bytes from a width's first row, of activations or gradients, to each
    """

    layers: Any
    widths: Any
    phases: Any
    tasks: Any
    shares: Any
    rows: int
    row_at: Any


class Batches(NamedTuple):
    """Data of a run of training steps.

    x : address of rows of features, uint8 or float32; x_at (rows,) int64: bytes from there to each row of the order
    labels, targets : addresses of (n,) int32 and of (n, outputs) float32, one of them 0
    indices (rows,) int64; loss_weight (rows,) float32: weight of each row in its batch's mean loss
    shift, factor (features,) float32: x is scaled to (x - shift) factor
    scalars (steps, 2, len(SCALARS)) float32: `Optimizer.scalars_by_kind`
    batch_size; step: updates made before; seed
    on_value, off_value, clip_norm: target of the row's class and of the others; largest gradient norm
    """

    x: int
    x_at: Any
    labels: int
    targets: int
    indices: Any
    loss_weight: Any
    shift: Any
    factor: Any
    scalars: Any
    batch_size: int
    step: int
    seed: Any
    on_value: Any
    off_value: Any
    clip_norm: Any


class Layout(NamedTuple):
    """A plan and the sizes of its buffers, in elements."""

    plan: StepPlan
    store: int
    transposed: int
    arena: int
    packed: int


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def padded_width(size: int, lanes: int) -> int:
    """A width including padding."""
    return round_up(size, max(lanes, UNIT))


def offsets(sizes: list[int]) -> tuple[Ints, int]:
    """Start of each piece when pieces follow each other, and the end."""
    ends = np.cumsum([0, *sizes])
    return ends[:-1].astype(np.int64), int(ends[-1])


def make_layout(
    network: Network,
    lanes: int,
    rows: int,
    threads: int = 1,
    clip: bool = False,
    fused: bool = True,
    gathers: bool = True,
) -> Layout:
    """Layout for batches of up to `rows` rows, on vectors of `lanes` floats.

    With `clip` updates are a separate phase after gradients. Without `fused` all activations run over rows. Without `gathers`
    inputs are read in place, and are not in the arena.
    """
    widths = [padded_width(size, lanes) for size in network.sizes]
    lds = [width + CACHE_LINE if (width // CACHE_LINE) % 2 == 0 else width for width in widths]
    pairs = list(pairwise(widths))
    w_at, end = offsets([k * n + n for k, n in pairs])
    t_at, transposed = offsets([k * n if index else 0 for index, (k, n) in enumerate(pairs)])
    inner = [rows * ld for ld in lds[1:]]
    buffers, arena = offsets([rows * lds[0] * gathers, *inner, 0, *inner, 0, *inner])
    layers = np.zeros(len(pairs), LAYER)
    layers["fan_in"], layers["fan_out"] = network.sizes[:-1], network.sizes[1:]
    layers["fan_in_p"], layers["fan_out_p"] = widths[:-1], widths[1:]
    layers["w_at"], layers["b_at"], layers["t_at"] = w_at, w_at + [k * n for k, n in pairs], t_at
    for record, layer in zip(layers, network.layers[:-1], strict=False):
        record["fused"], record["parameter"] = FUSED.get(layer.activation, BY_ROWS) if fused else BY_ROWS, layer.parameter
        record["threshold"], record["keep_scale"] = drop_threshold(layer.dropout), 1 / (1 - layer.dropout)
    places = np.zeros(len(widths), WIDTH)
    places["ld"] = lds
    places["y_at"], places["s_at"], places["dz_at"] = buffers.reshape(3, -1)
    places["packed_at"], packed = offsets([0, *(rows * round_up(width, PAIR * lanes) for width in widths[1:])])
    plan = make_plan(layers, places, make_phases(pairs, lanes, rows, threads, clip, gathers), threads, rows)
    return Layout(plan, end, transposed, arena, packed)


# ------------------------------------------------------------------------------------------------ phases and tasks


class Phase(NamedTuple):
    """A phase: its kind, its layer, and its tasks (layer, panel, panels, first, rows), in the order of their threads."""

    kind: int
    layer: int
    tasks: list[tuple[int, int, int, int, int]]


def make_phases(pairs: list[tuple[int, int]], lanes: int, rows: int, threads: int, clip: bool, gathers: bool) -> list[Phase]:
    """The phases of a step for padded layer sizes `pairs`. Without wide layers, ROWS gathers its own inputs."""
    wide = 0
    while wide < len(pairs) - 1 and pairs[wide][0] * pairs[wide][1] >= TAIL_WEIGHTS:
        wide += 1
    forward = [Phase(FORWARD, n, column_tasks(n, pairs[n][1] // lanes, rows, threads)) for n in range(wide)]
    backward = [Phase(BACKWARD, n, column_tasks(n, pairs[n][0] // lanes, rows, threads)) for n in range(wide - 1, 0, -1)]
    weights = weight_tasks(pairs, lanes, threads)
    updates = [Phase(UPDATE, 0, weights)] if clip else []
    gather = [Phase(GATHER, 0, row_tasks(rows, threads))] if wide and gathers else []
    return [*gather, *forward, Phase(ROWS, wide, row_tasks(rows, threads)), *backward, Phase(WEIGHTS, 0, weights), *updates]


def row_tasks(rows: int, threads: int) -> list[tuple[int, int, int, int, int]]:
    """Blocks of rows: few enough rows that every thread gets tasks, and enough rows to reuse each weight."""
    block = min(max(round_up(rows // (threads * TASKS_PER_THREAD), UNIT), FEWEST_ROWS), MOST_ROWS)
    return [(0, 0, 0, first, min(block, rows - first)) for first in range(0, rows, block)]


def column_tasks(layer: int, panels: int, rows: int, threads: int) -> list[tuple[int, int, int, int, int]]:
    """Blocks of columns, each a pair of panels, by blocks of rows: enough to give every thread its number of tasks.

    A thread has the same columns in all phases. All of its columns are computed for a block of rows before the next block, so
    that the rows stay in the cache.
    """
    pairs = -(-panels // PAIR)
    cuts = min(-(-threads * TASKS_PER_THREAD // pairs), -(-rows // UNIT))
    block = min(round_up(-(-rows // max(cuts, 1)), UNIT), MOST_ROWS) if rows else UNIT
    tasks = [(panel * threads // panels, first, panel) for panel in range(0, panels, PAIR) for first in range(0, rows, block)]
    return [(layer, panel, min(PAIR, panels - panel), first, min(block, rows - first)) for _, first, panel in sorted(tasks)]


def weight_tasks(pairs: list[tuple[int, int]], lanes: int, threads: int) -> list[tuple[int, int, int, int, int]]:
    """Rectangles of the weight matrices, CHUNK_ROWS high and as wide as the columns of a thread, up to GROUP_COLUMNS.

    A thread has the same columns as in the forward phases. Rectangles that read the same columns of x are consecutive, so that
    these columns stay in the cache.
    """
    tasks = []
    for layer, (k, n) in enumerate(pairs):
        panels = n // lanes
        group = max(min(GROUP_COLUMNS // lanes, panels // threads // PAIR * PAIR), PAIR)
        for first in range(0, k, CHUNK_ROWS):
            for panel in range(0, panels, group):
                owner = panel * threads // panels
                tasks.append((owner, layer, first, panel, min(group, panels - panel), min(CHUNK_ROWS, k - first)))
    return [(layer, panel, panels, first, rows) for _, layer, first, panel, panels, rows in sorted(tasks)]


def make_plan(layers: Any, widths: Any, phases: list[Phase], threads: int, rows: int) -> StepPlan:
    """The records of a plan; the tasks of each phase are divided evenly between threads, in order."""
    firsts, _ = offsets([len(phase.tasks) for phase in phases])
    heads = [(phase.kind, phase.layer, first, len(phase.tasks)) for phase, first in zip(phases, firsts, strict=True)]
    shares = [[len(phase.tasks) * t // threads for t in range(threads + 1)] for phase in phases]
    tasks = [task for phase in phases for task in phase.tasks]
    row_at = np.outer(widths["ld"] * np.dtype(np.float32).itemsize, np.arange(rows))
    return StepPlan(layers, widths, np.array(heads, PHASE), np.array(tasks, TASK), np.array(shares, np.int64), rows, row_at)


def pack(network: Network, plan: StepPlan, lanes: int, vector: FloatArray, row: npt.NDArray[np.float32]) -> None:
    """Write a flat parameter vector into a row of `store`; padding becomes zero."""
    row[:] = 0
    for layer, (w, b) in enumerate(network.views(vector)):
        w_view, b_view = packed_views(plan, lanes, row, layer)
        k, n = w.shape
        padded = np.zeros((plan.layers[layer]["fan_in_p"], plan.layers[layer]["fan_out_p"]), np.float32)
        padded[:k, :n] = w
        w_view[:] = padded.reshape(len(padded), -1, lanes).transpose(1, 0, 2)
        b_view[:n] = b


def unpack(network: Network, plan: StepPlan, lanes: int, row: npt.NDArray[np.float32]) -> FloatArray:
    """The flat parameter vector of a row of `store`."""
    vector = np.empty(network.parameters, np.float32)
    for layer, (w, b) in enumerate(network.views(vector)):
        w_view, b_view = packed_views(plan, lanes, row, layer)
        k, n = w.shape
        w[:] = w_view.transpose(1, 0, 2).reshape(w_view.shape[1], -1)[:k, :n]
        b[:] = b_view[:n]
    return vector


def pack_transposed(network: Network, plan: StepPlan, lanes: int, vector: FloatArray, out: npt.NDArray[np.float32]) -> None:
    """Write the transposed panels of every layer but the first."""
    out[:] = 0
    for layer, (w, _) in enumerate(network.views(vector)):
        if layer:
            k_p, n_p = plan.layers[layer]["fan_in_p"], plan.layers[layer]["fan_out_p"]
            padded = np.zeros((n_p, k_p), np.float32)
            padded[: w.shape[1], : w.shape[0]] = w.T
            at = plan.layers[layer]["t_at"]
            out[at : at + k_p * n_p] = padded.reshape(n_p, -1, lanes).transpose(1, 0, 2).ravel()


def packed_views(plan: StepPlan, lanes: int, row: npt.NDArray[np.float32], layer: int) -> tuple[Any, Any]:
    """Panels (panels, K_p, lanes) and bias (N_p,) of a layer in a row of `store`."""
    k_p, n_p = int(plan.layers[layer]["fan_in_p"]), int(plan.layers[layer]["fan_out_p"])
    w_at, b_at = int(plan.layers[layer]["w_at"]), int(plan.layers[layer]["b_at"])
    return row[w_at:b_at].reshape(n_p // lanes, k_p, lanes), row[b_at : b_at + n_p]
