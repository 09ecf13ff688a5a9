"""The CPU engine: an implementation of `base.Engine` with compiled kernels.

This file manages the buffers and the threads. The kernels, which do the arithmetic, are in kernels/.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.engines.base import EngineSpec, HeldRows, RowMetrics, State, evaluate_blocks, loss_weights
from fastmlp.engines.cpu.codegen.fork import compiled_in_fork
from fastmlp.engines.cpu.codegen.simd import lanes as host_lanes
from fastmlp.engines.cpu.kernels.formulas import NO_KERNELS, KernelTable, prediction_table, training_table
from fastmlp.engines.cpu.kernels.losses import loss_block, loss_function
from fastmlp.engines.cpu.kernels.passes import GRADIENT, PARAMETERS, SLOT_M, SLOT_V, scratch_size
from fastmlp.engines.cpu.kernels.programs import predict_kernel, train_kernel
from fastmlp.engines.cpu.kernels.sync import CALLER, SHARES, STRIDE, TURN
from fastmlp.engines.cpu.plan import (
    MOST_ROWS,
    Batches,
    Layout,
    make_layout,
    pack,
    pack_transposed,
    padded_width,
    round_up,
    unpack,
)
from fastmlp.engines.cpu.threads import Team, ThreadTuner, available_cores, tuner_for
from fastmlp.errors import ConfigError, UnavailableError
from fastmlp.nn.blocks import RowSource
from fastmlp.nn.network import FloatArray

ALIGNMENT = 64  # bytes: the size of a cache line and of the widest vector register
HUGE_PAGE = 2**21  # bytes
# Maximum number of outputs of the first layer for which training reads input rows in place, by vector lanes. The gradient of
# the first layer reads every row several times, once per block of columns. Scattered rows map to few sets of the L1 cache, so
# repeated reads miss the cache. With longer vectors, each row is read fewer times.
IN_PLACE_WIDTHS = {16: math.inf, 8: 32, 4: 32}
# Single-threaded calls with at least this many operations take turns at running Python, see kernels/sync.py.
TURN_FLOPS = 5_000_000
INTERPRETER = np.zeros(1, np.int64)  # id of the thread whose turn it is to run Python (kernels/sync.py); one per process
INTERPRETER_AT = INTERPRETER.ctypes.data  # stored because NumPy takes a microsecond to return the address

ROW_NUMBERS = np.arange(MOST_ROWS)
NO_OUTPUTS = np.empty((0, 1), np.float32)

SLOT_ROWS = {"m": SLOT_M, "v": SLOT_V}


class NumbaEngine:
    """Engine that runs compiled kernels on its own threads; the methods are documented in `base.Engine`.

    Results are bitwise identical for any number of threads. For small steps the engine therefore measures which number of
    threads is fastest. If several Python threads call the engine, the calls run one after another.

    Raises
    ------
    ConfigError : if the dtype of the spec is not float32
    """

    name = "numba"
    fused = True  # whether activations and updates may run as epilogues of the matrix products; False is slower
    in_place = True  # whether input rows that need no scaling may be read in place; False is slower

    def __init__(self, spec: EngineSpec) -> None:
        if np.dtype(spec.dtype) != np.float32:
            raise ConfigError(f"backend 'numba' computes in float32, not {np.dtype(spec.dtype)}; use backend 'numpy'")
        network = spec.network
        self.spec = spec
        self.lanes = host_lanes()
        self.threads = min(spec.threads or available_cores(), most_threads())
        self.team = Team(self.threads)
        self.lock = threading.Lock()
        self.process = os.getpid()
        self.tables: dict[tuple[np.dtype[Any], bool, bool], KernelTable] = {}
        self.tuners: dict[tuple[str, int, int], ThreadTuner] = {}
        self.layouts: dict[int, Layout] = {}  # by number of threads
        self.rows, self.gathers = 0, True  # capacity of the buffers in rows, and whether they have room for the inputs
        self.clip = spec.optimizer.max_grad_norm > 0
        self.layout = make_layout(network, self.lanes, 0, fused=self.fused)
        self.store = aligned((GRADIENT + 1, self.layout.store))
        self.transposed = aligned((max(self.layout.transposed, 1),))
        self.scratch = aligned((self.threads, round_up(scratch_size() + loss_block(network, self.lanes), ALIGNMENT // 4)))
        self.shared = aligned((SHARES + STRIDE * self.threads,), np.int64)
        self.shared_at = self.shared.ctypes.data
        self.predicting = make_layout(network, self.lanes, MOST_ROWS, fused=self.fused)
        self.predict_arena = aligned((self.threads, self.predicting.arena))
        features = network.sizes[0]
        scaling = spec.scaling
        self.shift = np.zeros(features, np.float32) if scaling is None else vector(scaling.shift, features)
        self.factor = np.ones(features, np.float32) if scaling is None else vector(scaling.factor, features)

    def kernel_table(self, pixels: npt.DTypeLike, training: bool, scaled: bool = True) -> KernelTable:
        """Return the kernels for input rows of dtype `pixels`; kernels that are not in the cache are compiled."""
        key = np.dtype(pixels), training, scaled
        if key not in self.tables:
            network, rule = self.spec.network, self.spec.optimizer.name
            self.tables[key] = (
                training_table(network, rule, self.clip, pixels, self.lanes, self.fused, scaled)
                if training
                else prediction_table(network, pixels, self.lanes, self.fused, scaled)
            )
        return self.tables[key]

    def load(self, state: State) -> None:
        network = self.spec.network
        with self.exclusive():
            pack(network, self.layout.plan, self.lanes, state.parameters, self.store[PARAMETERS])
            pack_transposed(network, self.layout.plan, self.lanes, state.parameters, self.transposed)
            for name, slot in zip(self.spec.optimizer.slots, state.slots, strict=False):
                pack(network, self.layout.plan, self.lanes, slot, self.store[SLOT_ROWS[name]])
            self.step = state.step

    def state(self, slots: bool = True) -> State:
        network = self.spec.network
        with self.exclusive():
            rows = [PARAMETERS, *(SLOT_ROWS[name] for name in self.spec.optimizer.slots if slots)]
            vectors = [unpack(network, self.layout.plan, self.lanes, self.store[row]) for row in rows]
        return State(vectors[0], np.array(vectors[1:], np.float32).reshape(-1, network.parameters), self.step)

    def train(
        self,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        indices: npt.NDArray[np.int64],
        learning_rates: npt.NDArray[np.float64],
        weights: FloatArray | None = None,
    ) -> RowMetrics:
        batch = max(1, min(self.spec.batch_size, len(indices)))
        flops = self.spec.network.flops_per_row
        results = RowMetrics(np.empty(len(indices), np.float32), np.zeros(len(indices), bool))
        with self.exclusive():
            x, y = with_plain_rows(x), plain_targets(y)
            gathers = not self.reads_in_place(x, training=True)
            tuner = self.tuner_of("train", len(indices), self.threads, batch, flops * batch)
            threads = tuner.next()
            self.reserve(batch, threads, gathers)
            self.reset_sync(threads, flops * len(indices))
            batches = self.batches(x, y, indices, learning_rates, weights)
            buffers = self.store, self.transposed, self.arena, self.packed, self.scratch, self.shared_at
            given = self.layout.plan, batches, *buffers, *results
            kernel = train_kernel(self.lanes)
            if self.threads > 1 and not kernel.overloads:
                self.compile_in_fork(x, (0, NO_KERNELS, *given))
            table = self.kernel_table(x.dtype, training=True, scaled=gathers)
            # Updated before the call: the kernel completes all steps, even if KeyboardInterrupt is raised when it returns.
            self.step += len(learning_rates)
            tuner.begin()
            self.team.run(kernel, table, *given, threads=threads)
            tuner.end(threads, len(indices))
        return results

    def compile_in_fork(self, x: npt.NDArray[Any], args: tuple[Any, ...]) -> None:
        """Compile the training kernel in a forked process and, at the same time, the other kernels in this process.

        Does nothing if the training kernel is already cached or if a fork is not possible.
        """
        with compiled_in_fork(train_kernel(self.lanes), args) as forked:
            if forked:
                self.kernel_table(x.dtype, training=True, scaled=not self.reads_in_place(x, training=True))
                kernel, given = predict_kernel(self.lanes), self.given_to_predict(x, ROW_NUMBERS, NO_OUTPUTS)
                kernel.compile(tuple(map(kernel.typeof_pyval, (0, *given))))

    def tuner_of(self, method: str, rows: int, most: int, at_once: int, flops: int) -> ThreadTuner:
        """Return the tuner that chooses the number of threads for calls with about `rows` rows.

        most : maximum number of threads
        at_once, flops : rows and floating-point operations of one step of the call
        """
        key = method, rows.bit_length(), most
        if key not in self.tuners:
            self.tuners[key] = tuner_for(most, at_once, flops)
        return self.tuners[key]

    def batches(
        self,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        indices: npt.NDArray[np.int64],
        learning_rates: npt.NDArray[np.float64],
        weights: FloatArray | None,
    ) -> Batches:
        """Return the data of a call to `train` in the form that the kernel reads.

        x and y must be the results of `with_plain_rows` and `plain_targets`.
        """
        spec, network = self.spec, self.spec.network
        labels, targets = addresses_of(y)
        share = network.label_smoothing / network.sizes[-1]
        return Batches(
            x=x.ctypes.data,
            x_at=np.asarray(indices, np.int64) * x.strides[0],
            labels=labels,
            targets=targets,
            indices=writable(np.ascontiguousarray(indices, np.int64)),
            loss_weight=loss_weights(indices, spec.batch_size, weights).astype(np.float32),
            shift=self.shift,
            factor=self.factor,
            scalars=spec.optimizer.scalars_by_kind(learning_rates, self.step, network.l1, network.l2),
            batch_size=spec.batch_size,
            step=self.step,
            seed=np.uint64(spec.seed),
            on_value=np.float32(1 - network.label_smoothing + share),
            off_value=np.float32(share),
            loss_parameter=np.float32(network.loss_parameter),
            clip_norm=spec.optimizer.max_grad_norm,
        )

    def forward(self, x: npt.NDArray[Any]) -> FloatArray:
        network = self.spec.network
        z = np.empty((len(x), network.sizes[-1]), np.float32)
        flops = network.flops_per_row // 3 * len(x)
        with self.exclusive():
            blocks = max(1, -(-len(x) // MOST_ROWS))  # blocks are not divided between threads
            tuner = self.tuner_of("forward", len(x), min(self.threads, blocks), len(x), flops)
            threads = tuner.next()
            self.reset_sync(threads, flops)
            x = with_plain_rows(x)
            x_rows = x.strides[0] * ROW_NUMBERS
            given = self.given_to_predict(x, x_rows, z)
            tuner.begin()
            self.team.run(predict_kernel(self.lanes), *given, threads=threads)
            tuner.end(threads, len(x))
        return z

    def given_to_predict(
        self, x: npt.NDArray[Any], x_rows: npt.NDArray[np.int64], z: npt.NDArray[np.float32]
    ) -> tuple[Any, ...]:
        """Return the arguments of the prediction kernel, except the thread index. The caller must keep x and x_rows alive."""
        return (
            self.kernel_table(x.dtype, training=False, scaled=not self.reads_in_place(x, training=False)),
            self.predicting.plan,
            MOST_ROWS,
            x.ctypes.data,
            x.strides[0],
            x_rows.ctypes.data,
            self.shift,
            self.factor,
            self.store,
            self.predict_arena,
            self.shared_at,
            z,
        )

    def hold(self, x: RowSource, y: npt.NDArray[Any]) -> HeldRows:
        return HeldRows(x, y)

    def evaluate(self, held: HeldRows, z: FloatArray | None = None) -> RowMetrics:
        return evaluate_blocks(held, z, self.spec.network.sizes[-1], self.forward, self.row_metrics)

    def row_metrics(self, z: FloatArray, y: npt.NDArray[Any]) -> RowMetrics:
        """Compute the metrics of rows from the pre-activations z of the output layer, with the compiled loss kernel."""
        network = self.spec.network
        results = RowMetrics(np.empty(len(z), np.float32), np.zeros(len(z), bool))
        block = np.empty(loss_block(network, self.lanes), np.float32)
        z, y = np.ascontiguousarray(z, np.float32), plain_targets(y)
        given = block.ctypes.data, z.ctypes.data, 0, network.sizes[-1], len(z), 0, *addresses_of(y), 0
        found = results.loss.ctypes.data, results.correct.ctypes.data
        loss_function(network, self.lanes)(*given, *found, 1.0, 0.0, network.loss_parameter)
        return results

    def exclusive(self) -> threading.Lock:
        """Return the lock that admits one caller at a time.

        Raises UnavailableError in a child process that was forked while another thread held the lock.
        """
        if self.process != os.getpid():
            if self.lock.locked():
                raise UnavailableError("this process was forked while the engine was running; create a new engine instead")
            self.process = os.getpid()
        return self.lock

    def reset_sync(self, threads: int, flops: int) -> None:
        """Reset the synchronization variables before a call with `flops` operations, so that no task is claimed.

        A large call on one thread also takes turns at running Python with other threads, see kernels/sync.py.
        """
        self.shared[:] = 0
        if threads == 1 and flops >= TURN_FLOPS:
            self.shared[TURN], self.shared[CALLER] = INTERPRETER_AT, threading.get_ident()

    def reads_in_place(self, x: npt.NDArray[Any], training: bool) -> bool:
        """Return whether kernels read the rows of x in place instead of copying them.

        The gradient reads rows of the padded width, so training reads in place only if the width needs no padding.
        """
        features, outputs = self.spec.network.sizes[:2]
        if training and (features != padded_width(features, self.lanes) or outputs > IN_PLACE_WIDTHS[self.lanes]):
            return False
        return self.in_place and self.spec.scaling is None and x.dtype == np.float32 and x.strides[0] % x.itemsize == 0

    def reserve(self, rows: int, threads: int, gathers: bool) -> None:
        """Grow the buffers, if needed, to hold batches of `rows` rows. Their old contents are not kept."""
        grows = rows > self.rows or gathers != self.gathers
        if grows:
            self.rows, self.gathers = max(rows, self.rows), gathers
            self.layouts.clear()
        if threads not in self.layouts:
            planned = self.rows, threads, self.clip, self.fused, gathers
            self.layouts[threads] = make_layout(self.spec.network, self.lanes, *planned)
        self.layout = self.layouts[threads]
        if grows:
            self.arena = aligned((self.layout.arena,))
            self.packed = aligned((self.layout.packed,))

    def close(self) -> None:
        self.team.close()


def most_threads() -> int:
    """Return the maximum number of threads: one per available core, to avoid oversubscription."""
    return available_cores()


def aligned(shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Return an array of zeros that is aligned to a cache line.

    Large arrays are aligned to a huge page if the system supports huge pages, which reduces TLB misses.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size >= HUGE_PAGE // 2 and hasattr(mmap, "MADV_HUGEPAGE"):
        memory = mmap.mmap(-1, round_up(size, HUGE_PAGE) + HUGE_PAGE)
        memory.madvise(mmap.MADV_HUGEPAGE)
        raw, alignment = np.frombuffer(memory, np.uint8), HUGE_PAGE
    else:
        raw, alignment = np.zeros(size + ALIGNMENT, np.uint8), ALIGNMENT
    start = -raw.ctypes.data % alignment
    return raw[start : start + size].view(dtype).reshape(shape)


def vector(values: npt.NDArray[Any], features: int) -> npt.NDArray[np.float32]:
    """Broadcast `values`, one value per feature or a single value, to a float32 array of shape (features,)."""
    return np.array(np.broadcast_to(values, (features,)), np.float32)


def plain_targets(y: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return labels (1-D) as contiguous int32 or targets (2-D) as contiguous float32. Copies only if necessary."""
    return np.ascontiguousarray(y, np.int32 if y.ndim == 1 else np.float32)


def addresses_of(y: npt.NDArray[Any]) -> tuple[int, int]:
    """Return the address of the labels and the address of the targets; y is one of the two, and the other address is 0.

    The caller must keep y alive.
    """
    return (y.ctypes.data, 0) if y.ndim == 1 else (0, y.ctypes.data)


def with_plain_rows(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return x with each row contiguous, as the kernels require. Copies only if necessary."""
    return x if x.strides[1] == x.itemsize else np.ascontiguousarray(x)


def writable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a view of the same memory without NumPy's read-only flag.

    Numba would compile every kernel again for read-only arrays. Kernels never write to this memory. The caller must keep the
    array alive.
    """
    if array.flags.writeable:
        return array
    if array.size == 0:
        return array.copy()
    memory = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
    return np.ctypeslib.as_array(memory).view(array.dtype).reshape(array.shape)
