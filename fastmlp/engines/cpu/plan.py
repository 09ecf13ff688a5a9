"""Memory layout of the CPU engine, and the division of a training step into tasks. Private to the engine.

Every layer width is padded with zeros to a multiple of 8 and of the vector length, so that no tile is partial along that
dimension. The padding always stays exactly zero. A weight matrix w of shape (K, N) is stored in panels of `lanes` columns,
where `lanes` is the vector length and K_p is K with padding:

    store[w_at + (n // lanes) * K_p * lanes + k * lanes + n % lanes] = w[k, n]

For every layer except the first, the weights are also stored transposed, in panels along k, to compute the gradient of the
layer input. The optimizer slots and the gradients are further rows of `store` with the same layout. The rows of a batch are
stored in row-major order. Their leading dimension spans an odd number of whole cache lines (plus part of a line if vectors
are shorter than a line), so that the tiles of one column do not all map to the same few sets of the cache.

A training step is a sequence of phases. Each phase consists of tasks, which may run in any order and on any thread. The first
layers are called *wide* as long as they have many weights (at least TAIL_WEIGHTS). The matrix products of wide layers are
divided by columns. Tasks of the same columns are assigned to the same thread in all phases, as far as the division allows, so
that a weight stays in the cache of the core that reads and updates it. (Reading a cache line that another core has written
takes ten times as long as reading it from the core's own cache.) All layers after the wide ones, and the output layer, are
divided by rows of the batch: a single phase computes the forward pass through these layers, the loss, and the backward pass
for one block of rows.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.philox import drop_threshold

UNIT = 8  # padded widths are multiples of this number
CHUNK_ROWS = 48  # rows of w in a gradient task: a multiple of the number of rows of every tile and of every vector length
PAIR = 2  # number of adjacent panels that a tile covers
GROUP_COLUMNS = 64  # maximum number of columns of w in a gradient task; more were slower, see benchmarks/NOTES.md
CACHE_LINE = 16  # floats per cache line
TAIL_WEIGHTS = 16_384  # minimum weights of a wide layer; with fewer (64 KiB), a separate phase costs more than it saves
TASKS_PER_THREAD = 4  # minimum in each phase with enough work, so that a slow thread delays a step only a little
FEWEST_ROWS, MOST_ROWS = 16, 64  # limits on the batch rows of a task; tasks divided by columns have no minimum

# How the activation of a layer is computed: in the epilogue of each tile (RELU, LINEAR), or afterwards, in a separate loop
# over rows that are still in the cache (BY_ROWS).
BY_ROWS, RELU, LINEAR = range(3)
FUSED = {"relu": RELU, "linear": LINEAR}

# Values of `PHASE.kind`
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
    """Layer sizes, buffer offsets and tasks of a network, in the form that the kernels read.

    The fields are arrays of the record types above. Offsets and sizes are in elements, unless noted otherwise.

    layers : LAYER records, one per weight matrix: true and padded sizes; offsets of the weights and biases in a row of
        `store`, and of the transposed weights; how the activation is computed (BY_ROWS, RELU or LINEAR) and its parameter;
        dropout threshold (0 disables dropout) and scale
    widths : WIDTH records, one for the input and one for the output of each layer: leading dimension; offsets in `arena` of
        the activations (of the pre-activations for the output layer), slopes and gradients dz; offset in `packed` of the
        packed copy of dz. The packed copy stores one pair of panels after another, and each pair as `rows` contiguous rows.
        Code that reads dz by columns uses this copy
    phases : PHASE records: kind, layer, first task and number of tasks
    tasks : TASK records: a layer, its panels [panel, panel + panels), and a range of rows. The rows are rows of w for the
        phases WEIGHTS and UPDATE, else rows of the batch. In the phase BACKWARD, panels are those of the transposed weights
    shares : (phases, threads + 1) int64: in phase p, thread t starts with the tasks [shares[p, t], shares[p, t + 1])
    rows : maximum number of rows of a batch
    row_at : (widths, rows) int64: offset in bytes of each row of activations or gradients from the first row
    """

    layers: Any
    widths: Any
    phases: Any
    tasks: Any
    shares: Any
    rows: int
    row_at: Any


class Batches(NamedTuple):
    """Data and settings of consecutive training steps.

    x : address of the rows of features, uint8 or float32
    x_at : (rows,) int64, offset in bytes from `x` to each row that is trained on, in the order of `indices`
    labels, targets : addresses of an int32 array (n,) and of a float32 array (n, outputs); one of the two is 0
    indices : (rows,) int64, the rows of the data to train on, batch after batch
    loss_weight : (rows,) float32, weight of each row in the mean loss of its batch
    shift, factor : (features,) float32; x is scaled to (x - shift) * factor
    scalars : (steps, 2, len(SCALARS)) float32, see `Optimizer.scalars_by_kind`
    batch_size : rows per batch
    step : number of updates made before these steps
    seed : seed of the dropout masks, uint64
    on_value, off_value : target values of the row's class and of the other classes, for labels
    loss_parameter : parameter of the loss, float32
    clip_norm : maximum norm of the gradient; 0 disables clipping
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
    loss_parameter: Any
    clip_norm: Any


class Layout(NamedTuple):
    """A plan and the sizes of the buffers that it needs, in elements (of one row for `store`)."""

    plan: StepPlan
    store: int
    transposed: int
    arena: int
    packed: int


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def padded_width(size: int, lanes: int) -> int:
    """Return a layer width with padding."""
    return round_up(size, max(lanes, UNIT))


def offsets(sizes: list[int]) -> tuple[Ints, int]:
    """Return the offsets of consecutive pieces of these sizes, and the total size."""
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
    """Return the layout for batches of up to `rows` rows and vectors of `lanes` floats.

    clip : whether the gradient is clipped; if so, the update is a separate phase after the gradient
    fused : whether activations may be computed in the epilogues of tiles; if not, all are computed in loops over rows
    gathers : whether the inputs are copied to the arena; if not, they are read in place
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
    """A phase: kind, layer, and tasks (layer, panel, panels, first, rows), sorted by the thread that should run them."""

    kind: int
    layer: int
    tasks: list[tuple[int, int, int, int, int]]


def make_phases(pairs: list[tuple[int, int]], lanes: int, rows: int, threads: int, clip: bool, gathers: bool) -> list[Phase]:
    """Return the phases of a step. `pairs` has the padded (fan_in, fan_out) of each layer.

    If no layer is wide, there is no GATHER phase; each task of the phase ROWS gathers its own inputs.
    """
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
    """Divide the batch into blocks of rows, small enough to occupy every thread and large enough to reuse cached weights."""
    block = min(max(round_up(rows // (threads * TASKS_PER_THREAD), UNIT), FEWEST_ROWS), MOST_ROWS)
    return [(0, 0, 0, first, min(block, rows - first)) for first in range(0, rows, block)]


def column_tasks(layer: int, panels: int, rows: int, threads: int) -> list[tuple[int, int, int, int, int]]:
    """Divide the output of a layer into blocks, each with the columns of a pair of panels and a range of rows of the batch.

    There are enough blocks for TASKS_PER_THREAD tasks per thread, if the batch has enough rows. Each thread is assigned the
    same columns in all phases. A thread computes all of its columns for one block of rows before the next block of rows, so
    that the rows stay in the cache.
    """
    pairs = -(-panels // PAIR)
    cuts = min(-(-threads * TASKS_PER_THREAD // pairs), -(-rows // UNIT))
    block = min(round_up(-(-rows // max(cuts, 1)), UNIT), MOST_ROWS) if rows else UNIT
    tasks = [(panel * threads // panels, first, panel) for panel in range(0, panels, PAIR) for first in range(0, rows, block)]
    return [(layer, panel, min(PAIR, panels - panel), first, min(block, rows - first)) for _, first, panel in sorted(tasks)]


def weight_tasks(pairs: list[tuple[int, int]], lanes: int, threads: int) -> list[tuple[int, int, int, int, int]]:
    """Divide the weight matrices into rectangles of CHUNK_ROWS rows and at most GROUP_COLUMNS columns.

    A rectangle is no wider than the range of columns of one thread, and at least as wide as a pair of panels. Each thread is
    assigned the same columns as in the forward phases. Rectangles that read the same columns of x are consecutive, so that
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
    """Return a plan. The tasks of each phase are divided evenly between the threads, in order."""
    firsts, _ = offsets([len(phase.tasks) for phase in phases])
    heads = [(phase.kind, phase.layer, first, len(phase.tasks)) for phase, first in zip(phases, firsts, strict=True)]
    shares = [[len(phase.tasks) * t // threads for t in range(threads + 1)] for phase in phases]
    tasks = [task for phase in phases for task in phase.tasks]
    row_at = np.outer(widths["ld"] * np.dtype(np.float32).itemsize, np.arange(rows))
    return StepPlan(layers, widths, np.array(heads, PHASE), np.array(tasks, TASK), np.array(shares, np.int64), rows, row_at)


def pack(network: Network, plan: StepPlan, lanes: int, vector: FloatArray, row: npt.NDArray[np.float32]) -> None:
    """Write a flat parameter vector to `row`, a row of `store`, and set the padding to zero."""
    row[:] = 0
    for layer, (w, b) in enumerate(network.views(vector)):
        w_view, b_view = packed_views(plan, lanes, row, layer)
        k, n = w.shape
        padded = np.zeros((plan.layers[layer]["fan_in_p"], plan.layers[layer]["fan_out_p"]), np.float32)
        padded[:k, :n] = w
        w_view[:] = padded.reshape(len(padded), -1, lanes).transpose(1, 0, 2)
        b_view[:n] = b


def unpack(network: Network, plan: StepPlan, lanes: int, row: npt.NDArray[np.float32]) -> FloatArray:
    """Return the flat parameter vector that `row`, a row of `store`, contains."""
    vector = np.empty(network.parameters, np.float32)
    for layer, (w, b) in enumerate(network.views(vector)):
        w_view, b_view = packed_views(plan, lanes, row, layer)
        k, n = w.shape
        w[:] = w_view.transpose(1, 0, 2).reshape(w_view.shape[1], -1)[:k, :n]
        b[:] = b_view[:n]
    return vector


def pack_transposed(network: Network, plan: StepPlan, lanes: int, vector: FloatArray, out: npt.NDArray[np.float32]) -> None:
    """Write the transposed weights of every layer except the first to `out`, in panels."""
    out[:] = 0
    for layer, (w, _) in enumerate(network.views(vector)):
        if layer:
            k_p, n_p = plan.layers[layer]["fan_in_p"], plan.layers[layer]["fan_out_p"]
            padded = np.zeros((n_p, k_p), np.float32)
            padded[: w.shape[1], : w.shape[0]] = w.T
            at = plan.layers[layer]["t_at"]
            out[at : at + k_p * n_p] = padded.reshape(n_p, -1, lanes).transpose(1, 0, 2).ravel()


def packed_views(plan: StepPlan, lanes: int, row: npt.NDArray[np.float32], layer: int) -> tuple[Any, Any]:
    """Return views of the weight panels (panels, K_p, lanes) and the biases (N_p,) of a layer in a row of `store`."""
    k_p, n_p = int(plan.layers[layer]["fan_in_p"]), int(plan.layers[layer]["fan_out_p"])
    w_at, b_at = int(plan.layers[layer]["w_at"]), int(plan.layers[layer]["b_at"])
    return row[w_at:b_at].reshape(n_p // lanes, k_p, lanes), row[b_at : b_at + n_p]
