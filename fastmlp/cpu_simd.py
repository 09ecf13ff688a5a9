"""The vector layer of the CPU engine: the matrix micro-kernel, atomics, and pauses, as LLVM instructions.

Only this file speaks LLVM. Everything takes addresses as int64 and strides in elements, checks nothing and cannot raise.

The micro-kernel computes one tile of C = A B in registers: a few rows by a few vectors of `lanes` columns, all of K, each
element of A broadcast against vectors of B, fused multiply-add. Every element of C is one sum in the order of k by one
thread, so its bits depend on nothing but A and B. Terms (micro-kernel, micro-tile, panel) as in Van Zee & van de Geijn,
"BLIS", 2015.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

FLOAT = ir.FloatType()
INT32 = ir.IntType(32)
INT64 = ir.IntType(64)


def lanes() -> int:
    """Float32 lanes of the widest vector of the processor that Numba compiles for: 16, 8 or 4."""
    features = cpu_target.target_context.codegen()._tm_features
    if "+avx512f" in features:
        return 16
    return 8 if "+avx2" in features and "+fma" in features else 4


def address(builder: Any, base: Any, offset: Any) -> Any:
    """Pointer to float number `offset` from the integer address `base`."""
    byte = builder.add(base, builder.mul(offset, INT64(4)))
    return builder.inttoptr(byte, FLOAT.as_pointer())


class VectorBuilder:
    """Loads, stores and arithmetic of float vectors through an LLVM builder."""

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
        scalar = self.builder.load(address(self.builder, base, offset), align=4)
        first = self.builder.insert_element(ir.Constant(self.type, ir.Undefined), scalar, INT32(0))
        mask = ir.Constant(ir.VectorType(INT32, self.width), [0] * self.width)
        return self.builder.shuffle_vector(first, first, mask)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.builder.call(self.fused, [a, b, c])


# What happens to a finished tile, as data: name -> f(vectors, value, extra address, offset in C, column) -> value.
def keep(v: VectorBuilder, value: Any, extra: Any, offset: Any, column: Any) -> Any:
    """C = A B."""
    return value


def add_bias(v: VectorBuilder, value: Any, extra: Any, offset: Any, column: Any) -> Any:
    """C = A B + bias, extra: (columns,)."""
    return v.builder.fadd(value, v.load(extra, column))


def add_bias_relu(v: VectorBuilder, value: Any, extra: Any, offset: Any, column: Any) -> Any:
    """C = max(A B + bias, 0), NaN kept, extra: (columns,)."""
    z = add_bias(v, value, extra, offset, column)
    return v.builder.select(v.builder.fcmp_ordered("<=", z, v.zero), v.zero, z)


def times(v: VectorBuilder, value: Any, extra: Any, offset: Any, column: Any) -> Any:
    """C = (A B) * slopes, extra: slopes laid out like C."""
    return v.builder.fmul(value, v.load(extra, offset))


def where_positive(v: VectorBuilder, value: Any, extra: Any, offset: Any, column: Any) -> Any:
    """C = A B where y > 0, else 0, extra: y laid out like C."""
    return v.builder.select(v.builder.fcmp_ordered(">", v.load(extra, offset), v.zero), value, v.zero)


EPILOGUES = {
    "keep": keep,
    "bias": add_bias,
    "bias-relu": add_bias_relu,
    "times": times,
    "where-positive": where_positive,
}


@functools.cache
def make_tile(rows: int, vectors: int, width: int, epilogue: str) -> Callable[..., None]:
    """The micro-kernel tile(a, a_row, a_k, b, b_k, b_panel, c, c_row, c_panel, k, extra, first, last).

    C[i, v] = epilogue(sum over j < k of A[i, j] B[j, v]) for i < rows and v < vectors, where
    A[i, j] is the float at a + i a_row + j a_k, B[j, v] the vector of `width` floats at b + j b_k + v b_panel, and
    C[i, v] the vector at c + i c_row + v c_panel. k >= 1. C may alias nothing; A and B are only read; no alignment
    beyond that of a float is needed. Addresses a, b, c, extra in bytes, strides in elements.

    A long sum may be cut into several calls: without `first` it goes on from what C holds, without `last` the epilogue
    waits. The order of the additions, and so every bit, is that of one call. C is not read if `first`.
    """
    finish = EPILOGUES[epilogue]

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, a_row, a_k, b, b_k, b_panel, c, c_row, c_panel, k, extra, first, last = args
        v = VectorBuilder(builder, width)
        tile = [(i, p) for p in range(vectors) for i in range(rows)]
        row_starts = [builder.mul(a_row, INT64(i)) for i in range(rows)]
        panel_starts = [builder.mul(b_panel, INT64(p)) for p in range(vectors)]
        c_starts = {(i, p): builder.add(builder.mul(c_row, INT64(i)), builder.mul(c_panel, INT64(p))) for i, p in tile}

        before = builder.block
        go_on, body = builder.append_basic_block("go_on"), builder.append_basic_block("k")
        after, end = builder.append_basic_block("sum_done"), builder.append_basic_block("tile_done")
        builder.cbranch(builder.icmp_signed("!=", first, INT64(0)), body, go_on)
        builder.position_at_end(go_on)
        held = {at: v.load(c, c_starts[at]) for at in tile}
        builder.branch(body)

        builder.position_at_end(body)
        j = builder.phi(INT64)
        sums = {at: builder.phi(v.type) for at in tile}
        b_vectors = [v.load(b, builder.add(builder.mul(j, b_k), start)) for start in panel_starts]
        a_scalars = [v.broadcast(a, builder.add(builder.mul(j, a_k), start)) for start in row_starts]
        new = {(i, p): v.fma(a_scalars[i], b_vectors[p], sums[i, p]) for i, p in tile}
        following = builder.add(j, INT64(1))
        for block, index, values in ((before, INT64(0), None), (go_on, INT64(0), held), (body, following, new)):
            j.add_incoming(index, block)
            for at in tile:
                sums[at].add_incoming(values[at] if values else v.zero, block)
        builder.cbranch(builder.icmp_signed("<", following, k), body, after)

        builder.position_at_end(after)
        for at in tile:
            v.store(new[at], c, c_starts[at])
        if finish is not keep:
            with builder.if_then(builder.icmp_signed("!=", last, INT64(0))):
                for i, p in tile:
                    v.store(finish(v, new[i, p], extra, c_starts[i, p], INT64(p * width)), c, c_starts[i, p])
        builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    @intrinsic
    def tile(typing, a, a_row, a_k, b, b_k, b_panel, c, c_row, c_panel, k, extra, first, last):
        return types.void(*[types.int64] * 13), build

    return tile


@intrinsic
def fetch_add(typing, at, amount):
    """LLVM `atomicrmw add … seq_cst` on the int64 at address `at`: returns the value before."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], INT64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), build


@intrinsic
def atomic_load(typing, at):
    """LLVM `load atomic … acquire` of the int64 at address `at`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], INT64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), build


@intrinsic
def atomic_store(typing, at, value):
    """LLVM `store atomic … release` of an int64 to address `at`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], builder.inttoptr(args[0], INT64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), build


@intrinsic
def pause(typing):
    """Tell the core that this is a spin loop: `llvm.x86.sse2.pause` on x86, `llvm.aarch64.hint(1)` (yield) on ARM."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        triple = builder.module.triple
        if triple.startswith(("x86_64", "i686")):
            name, arguments = "llvm.x86.sse2.pause", []
        elif triple.startswith(("aarch64", "arm64")):
            name, arguments = "llvm.aarch64.hint", [INT32(1)]
        else:
            return context.get_dummy_value()
        kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)
        return context.get_dummy_value()

    return types.void(), build


@intrinsic
def yield_core(typing):
    """Call the C library's `sched_yield`: let another thread have the core."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(INT32, [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), build


@functools.cache
def make_transpose(width: int) -> Callable[..., None]:
    """transpose(a, a_row, c, c_row): C[j, i] = A[i, j] for a square of `width` x `width` floats.

    LLVM `shufflevector`, log2(width) perfect shuffles of the rows. A and C do not overlap; addresses in bytes, rows
    in elements.
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
