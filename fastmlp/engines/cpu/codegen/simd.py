"""Vector code of the CPU engine: the micro-kernels of the matrix products, emitted as LLVM instructions.

Only this file, intrinsics.py and vector_random.py emit LLVM instructions. The generated functions do not check arguments.

The micro-kernel computes one tile of C = A B in registers. A tile has a few rows and a few vectors of `lanes` columns. For
each k, the micro-kernel broadcasts an element of A and multiplies it with vectors of B by fused multiply-add. One thread
computes the whole sum of an element of C, in the order of k, so the result depends bitwise only on A and B. The terms
micro-kernel, micro-tile and panel are used as in Van Zee & van de Geijn, "BLIS", 2015. The rows of A may be scattered in
memory: a table of int64 contains the byte offset of each row from the address of A. The rows of a batch can therefore be read
directly from the data set, in any order and without a copy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

FLOAT = ir.FloatType()
BYTE = ir.IntType(8)
INT32 = ir.IntType(32)
INT64 = ir.IntType(64)
LINE = 16  # floats per cache line
ROW_BYTES = 8  # bytes per entry of a table of row offsets, see `emit_row`


class TileShape(NamedTuple):
    """Shape of the micro-tile: `rows` x `vectors` accumulators, or `low` rows, or a single row, where fewer rows remain.

    The accumulators, the vectors of B and one broadcast element of A fit into the registers. There are enough accumulators to
    hide the latency of 8 to 10 FMAs.
    """

    rows: int
    low: int
    vectors: int = 2


# Tile shapes by vector lanes. AVX-512 and NEON have 32 vector registers, AVX2 has 16.
TILES = {16: TileShape(8, 4), 8: TileShape(6, 4), 4: TileShape(8, 4)}
SINGLE_VECTORS = 8  # vectors of a tile with a single row, whose speed is limited by the loads of B


def lanes() -> int:
    """Return the number of float32 lanes of the vector registers of the processor that Numba compiles for: 16, 8 or 4."""
    features = cpu_target.target_context.codegen()._tm_features
    if "+avx512f" in features:
        return 16
    return 8 if "+avx2" in features and "+fma" in features else 4


def processor() -> str:
    """Return LLVM's name of the processor that Numba compiles for."""
    return str(cpu_target.target_context.codegen()._get_host_cpu_name())


def address(builder: Any, base: Any, offset: Any) -> Any:
    """Return a pointer to the float that is `offset` elements after the integer address `base`."""
    byte = builder.add(base, builder.mul(offset, INT64(4)))
    return builder.inttoptr(byte, FLOAT.as_pointer())


def emit_row(builder: Any, a: Any, a_rows: Any, row: Any) -> Any:
    """Return the address of a row of A: `a` plus the byte offset in element `row` of the int64 table at `a_rows`."""
    place = builder.inttoptr(builder.add(a_rows, builder.mul(row, INT64(ROW_BYTES))), INT64.as_pointer())
    return builder.add(a, builder.load(place, align=8))


def emit_spread(builder: Any, number: Any, kind: Any) -> Any:
    """Return a vector of type `kind` with `number` in every lane."""
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, INT32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(INT32, kind.count), [0] * kind.count))


def emit_prefetch(builder: Any, pointer: Any, to_write: bool = False) -> None:
    """Emit LLVM `llvm.prefetch`, which loads the cache line at `pointer` into the L1 cache asynchronously."""
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, INT32, INT32, INT32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(function, [pointer, INT32(int(to_write)), INT32(3), INT32(1)])


class VectorBuilder:
    """Emits loads, stores and arithmetic on vectors of `width` floats with an LLVM builder."""

    def __init__(self, builder: Any, width: int) -> None:
        self.builder = builder
        self.width = width
        self.type = ir.VectorType(FLOAT, width)
        self.zero = ir.Constant(self.type, [0.0] * width)
        module = builder.module
        self.fused = cgutils.get_or_insert_function(
            module, ir.FunctionType(self.type, [self.type] * 3), f"llvm.fma.v{width}f32"
        )

    def load(self, base: Any, offset: Any) -> Any:
        pointer = self.builder.bitcast(address(self.builder, base, offset), self.type.as_pointer())
        return self.builder.load(pointer, align=4)

    def store(self, value: Any, base: Any, offset: Any) -> None:
        pointer = self.builder.bitcast(address(self.builder, base, offset), self.type.as_pointer())
        self.builder.store(value, pointer, align=4)

    def broadcast(self, base: Any, offset: Any) -> Any:
        return emit_spread(self.builder, self.builder.load(address(self.builder, base, offset), align=4), self.type)

    def prefetch(self, base: Any, offset: Any, to_write: bool = False) -> None:
        """Prefetch the cache line of the float that is `offset` elements after `base`."""
        pointer = self.builder.bitcast(address(self.builder, base, offset), BYTE.as_pointer())
        emit_prefetch(self.builder, pointer, to_write)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.builder.call(self.fused, [a, b, c])


# Epilogues of a tile: f(v, value, extra, offset) -> value. `value` is a vector of A B; `extra` is an address of other data.
def keep(v: VectorBuilder, value: Any, extra: Any, offset: Any) -> Any:
    """C = A B."""
    return value


def add_bias(v: VectorBuilder, value: Any, extra: Any, offset: Any) -> Any:
    """C = A B + bias."""
    return v.builder.fadd(value, v.load(extra, offset))


def add_bias_relu(v: VectorBuilder, value: Any, extra: Any, offset: Any) -> Any:
    """C = max(A B + bias, 0); NaN stays NaN."""
    z = add_bias(v, value, extra, offset)
    return v.builder.select(v.builder.fcmp_ordered("<=", z, v.zero), v.zero, z)


def times(v: VectorBuilder, value: Any, extra: Any, offset: Any) -> Any:
    """C = (A B) * slopes."""
    return v.builder.fmul(value, v.load(extra, offset))


def where_positive(v: VectorBuilder, value: Any, extra: Any, offset: Any) -> Any:
    """C = A B where y > 0, else 0."""
    return v.builder.select(v.builder.fcmp_ordered(">", v.load(extra, offset), v.zero), value, v.zero)


# The epilogue is selected by its number at run time, so that a single compiled matrix product serves all epilogues.
EPILOGUES = (keep, add_bias, add_bias_relu, times, where_positive)
KEEP, BIAS, BIAS_RELU, TIMES, WHERE_POSITIVE = range(len(EPILOGUES))


def emit_sums(v: VectorBuilder, shape: Any, a: Any, b: Any, k: Any, first: Any, held: Any, ahead: int = 0) -> Any:
    """Emit the loop over k of a tile, with the builder left after the loop, and return the sums as {(row, vector): sum}.

    shape, a : (rows, vectors) of the tile; a(j) emits the location of column j of A, (address, offset) for each row
    b, k : (address, offset of each vector, stride of k) of B, and the number of terms of each sum
    first, held : if `first` is 0, the sums start with the partial sums that held() loads, else with zero
    ahead : if not 0, each iteration prefetches the cache line `ahead` elements after the first element of A that it reads

    The broadcast for each row is followed directly by the FMAs of this row. If all broadcasts came first, LLVM would keep all
    of them in registers, and there are not enough registers.
    """
    builder = v.builder
    rows, vectors = shape
    b_at, b_starts, b_k = b
    tile = [(i, p) for p in range(vectors) for i in range(rows)]
    before = builder.block
    go_on, body, after = (builder.append_basic_block(name) for name in ("go_on", "k", "sum_done"))
    builder.cbranch(builder.icmp_signed("!=", first, INT64(0)), body, go_on)
    builder.position_at_end(go_on)
    old = held()
    builder.branch(body)
    builder.position_at_end(body)
    j = builder.phi(INT64)
    sums = {at: builder.phi(v.type) for at in tile}
    b_vectors = [v.load(b_at, builder.add(builder.mul(j, b_k), start)) for start in b_starts]
    column = a(j)
    if ahead:
        a_at, offset = column[0]
        v.prefetch(a_at, builder.add(offset, INT64(ahead)))
    new = {}
    for i in range(rows):
        scalar = v.broadcast(*column[i])
        for p in range(vectors):
            new[i, p] = v.fma(scalar, b_vectors[p], sums[i, p])
    following = builder.add(j, INT64(1))
    for block, index, values in ((before, INT64(0), None), (go_on, INT64(0), old), (body, following, new)):
        j.add_incoming(index, block)
        for at in tile:
            sums[at].add_incoming(values[at] if values else v.zero, block)
    builder.cbranch(builder.icmp_signed("<", following, k), body, after)
    builder.position_at_end(after)
    return new


def starts(builder: Any, stride: Any, count: int) -> list[Any]:
    """Return the `count` offsets 0, stride, 2 * stride, …"""
    return [builder.mul(stride, INT64(i)) for i in range(count)]


@functools.cache
def make_tile(rows: int, vectors: int, width: int) -> Callable[..., None]:
    """Return the micro-kernel tile(a, a_rows, b, b_panel, c, c_row, k, first, epilogue, extra, extra_row).

    It computes C[i, v] = epilogue(sum over j < k of A[i, j] B[j, v]) for i < rows and v < vectors. A[i, j] is element j of row
    i, see `emit_row`. B[j, v] is the vector of `width` floats at b + j * width + v * b_panel, and C[i, v] is the vector at
    c + i * c_row + v * width. `epilogue` is an index into EPILOGUES, and the epilogue may read the vector at
    extra + i * extra_row + v * width. Addresses are in bytes and need only the alignment of a float; strides are in elements.
    k must be at least 1. C must not overlap any other argument except `extra`.

    A long sum may be divided into several calls, with bitwise identical results. If `first` is 0, a call continues from the
    partial sums in C; otherwise C is not read. All calls except the last must have the epilogue KEEP.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, a_rows, b, b_panel, c, c_row, k, first, epilogue, extra, extra_row = args
        v = VectorBuilder(builder, width)
        tile = [(i, p) for p in range(vectors) for i in range(rows)]
        c_rows, extra_rows = starts(builder, c_row, rows), starts(builder, extra_row, rows)
        c_at = {(i, p): builder.add(c_rows[i], INT64(p * width)) for i, p in tile}
        with builder.if_then(builder.icmp_signed(">=", epilogue, INT64(TIMES))):
            for i, p in tile:  # with other epilogues, C is usually cached, and a prefetch costs more than it saves
                v.prefetch(c, c_at[i, p], to_write=True)
                v.prefetch(extra, builder.add(extra_rows[i], INT64(p * width)))
        b_side = (b, starts(builder, b_panel, vectors), INT64(width))
        starts_of_a = [emit_row(builder, a, a_rows, INT64(i)) for i in range(rows)]

        def column(j: Any) -> Any:
            return [(row, j) for row in starts_of_a]

        sums = emit_sums(v, (rows, vectors), column, b_side, k, first, lambda: {at: v.load(c, c_at[at]) for at in tile})
        end = builder.append_basic_block("tile_done")
        cases = [builder.append_basic_block(finish.__name__) for finish in EPILOGUES]
        switch = builder.switch(epilogue, cases[KEEP])
        for number, (finish, case) in enumerate(zip(EPILOGUES, cases, strict=True)):
            switch.add_case(INT64(number), case)
            builder.position_at_end(case)
            for i, p in tile:
                v.store(finish(v, sums[i, p], extra, builder.add(extra_rows[i], INT64(p * width))), c, c_at[i, p])
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    @intrinsic
    def tile(typing, a, a_rows, b, b_panel, c, c_row, k, first, epilogue, extra, extra_row):
        return types.void(*[types.int64] * 11), build

    return tile


class Traced:
    """An LLVM vector that behaves like a number in a scalar formula: calling the formula emits vector instructions."""

    def __init__(self, v: VectorBuilder, value: Any) -> None:
        self.v = v
        self.value = value

    def __add__(self, other: Traced) -> Traced:
        return Traced(self.v, self.v.builder.fadd(self.value, other.value))

    def __sub__(self, other: Traced) -> Traced:
        return Traced(self.v, self.v.builder.fsub(self.value, other.value))

    def __mul__(self, other: Traced) -> Traced:
        return Traced(self.v, self.v.builder.fmul(self.value, other.value))

    def __truediv__(self, other: Traced) -> Traced:
        return Traced(self.v, self.v.builder.fdiv(self.value, other.value))

    def sqrt(self) -> Traced:
        kind = ir.FunctionType(self.v.type, [self.v.type])
        function = cgutils.get_or_insert_function(self.v.builder.module, kind, f"llvm.sqrt.v{self.v.width}f32")
        return Traced(self.v, self.v.builder.call(function, [self.value]))

    def sign(self) -> Traced:
        """Return 1, 0 or -1 in each lane; the sign of NaN is 0."""
        builder, zero, one = self.v.builder, self.v.zero, ir.Constant(self.v.type, [1.0] * self.v.width)
        up = builder.select(builder.fcmp_ordered(">", self.value, zero), one, zero)
        down = builder.select(builder.fcmp_ordered("<", self.value, zero), one, zero)
        return Traced(self.v, builder.fsub(up, down))


# Replacements for the module `math` and for `optimizers.sign` in traced formulas.
TRACED_NAMES = {"math": SimpleNamespace(sqrt=Traced.sqrt), "sign": Traced.sign}


class Lazy(Traced):
    """A vector in memory, which is loaded when a formula first uses it."""

    def __init__(self, v: VectorBuilder, base: Any, offset: Any) -> None:
        self.v = v
        self.place = (base, offset)

    @functools.cached_property
    def value(self) -> Any:
        return self.v.load(*self.place)


class Scalars:
    """A float array in memory; each element is loaded once and broadcast to a vector."""

    def __init__(self, v: VectorBuilder, base: Any) -> None:
        self.load = functools.cache(lambda index: Traced(v, v.broadcast(base, INT64(index))))

    def __getitem__(self, index: int) -> Traced:
        return self.load(index)


def emit_update(v: VectorBuilder, rule: Any, gradient: Any, p: Any, offset: Any, slot: Any, s: Scalars) -> None:
    """Emit the update of one vector of parameters from its gradient, see `make_gradient_tile`."""
    if rule is None:
        v.store(gradient, p, offset)
        return
    builder = v.builder
    places = [offset, builder.add(offset, slot), builder.add(offset, builder.mul(slot, INT64(2)))]
    old = [Lazy(v, p, place) for place in places]
    new = rule(old[0], Traced(v, gradient), old[1], old[2], s)
    for place, before, after in zip(places, old, new, strict=True):
        if after is not before:
            v.store(after.value, p, place)


@functools.cache
def make_gradient_tile(rows: int, vectors: int, width: int, rule: Callable[..., Any] | None) -> Callable[..., None]:
    """Return the micro-kernel tile(a, a_rows, b, b_k, c, c_panel, k, p, p_panel, slot, scalars, first, last).

    It computes the weight gradient A' B, where A' is A transposed, and then updates the parameters while the gradient is still
    in registers. `rule` is the update rule, a scalar formula (p, g, m, v, s) -> (p, m, v), which is traced with vectors. None
    stores the gradient in place of the parameters.

    Row j of A is located as in `make_tile`, and B[j, q] is the vector at b + j * b_k + q * width. The parameters P[i, q] are
    the vector at p + i * width + q * p_panel, and their optimizer slots m and v are stored `slot` and 2 * `slot` elements
    after them. The scalars s are the floats at address `scalars`. Slots that the rule does not change are not written.

    A long sum may be divided as in `make_tile`, with partial sums at c + i * width + q * c_panel. The update is made in the
    last call, where `last` is not 0.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, a_rows, b, b_k, c, c_panel, k, p, p_panel, slot, scalars, first, last = args
        v = VectorBuilder(builder, width)
        lines = [INT64(i * width) for i in range(rows)]
        c_at = {(i, q): builder.add(builder.mul(c_panel, INT64(q)), lines[i]) for q in range(vectors) for i in range(rows)}
        for q in range(vectors):
            for start in range(0, rows * width, LINE):
                v.prefetch(p, builder.add(builder.mul(p_panel, INT64(q)), INT64(start)))
        b_side = (b, [INT64(q * width) for q in range(vectors)], b_k)

        def column(j: Any) -> Any:
            row = emit_row(builder, a, a_rows, j)
            return [(row, INT64(i)) for i in range(rows)]

        sums = emit_sums(v, (rows, vectors), column, b_side, k, first, lambda: {at: v.load(c, c_at[at]) for at in c_at}, LINE)
        with builder.if_else(builder.icmp_signed("!=", last, INT64(0))) as (done, cut):
            with done:
                s = Scalars(v, scalars)
                for (i, q), gradient in sums.items():
                    offset = builder.add(builder.mul(p_panel, INT64(q)), lines[i])
                    emit_update(v, rule, gradient, p, offset, slot, s)
            with cut:
                for at, value in sums.items():
                    v.store(value, c, c_at[at])
        return context.get_dummy_value()

    @intrinsic
    def tile(typing, a, a_rows, b, b_k, c, c_panel, k, p, p_panel, slot, scalars, first, last):
        return types.void(*[types.int64] * 13), build

    return tile


@functools.cache
def make_transpose(width: int) -> Callable[..., None]:
    """Return transpose(a, a_row, c, c_row), which sets C[j, i] = A[i, j] for a square of `width` x `width` floats.

    It makes log2(width) perfect shuffles of the rows with LLVM `shufflevector`. A and C must not overlap.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, a_row, c, c_row = args
        v = VectorBuilder(builder, width)
        half = width // 2
        low = [n for i in range(half) for n in (i, i + width)]
        masks = [ir.Constant(ir.VectorType(INT32, width), [n + first for n in low]) for first in (0, half)]
        rows = [v.load(a, builder.mul(a_row, INT64(i))) for i in range(width)]
        for _ in range(width.bit_length() - 1):
            pairs = zip(rows[:half], rows[half:], strict=True)
            rows = [builder.shuffle_vector(x, y, mask) for x, y in pairs for mask in masks]
        for j, row in enumerate(rows):
            v.store(row, c, builder.mul(c_row, INT64(j)))
        return context.get_dummy_value()

    @intrinsic
    def transpose(typing, a, a_row, c, c_row):
        return types.void(*[types.int64] * 4), build

    return transpose
