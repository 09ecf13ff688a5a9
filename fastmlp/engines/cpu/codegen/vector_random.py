"""Dropout on the CPU: the random numbers of `philox.keep_mask`, computed in vector registers and used there.

The instructions are emitted by calling `philox.philox4x32` with LLVM vectors instead of numbers, so that the formula exists
only once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastmlp.engines.cpu.codegen.simd import INT32, INT64, VectorBuilder, emit_spread
from fastmlp.nn.philox import MASK32, SHIFT32, philox4x32


class U32Vector:
    """Vectors of unsigned 32-bit integers, each stored in 64 bits, with the operators that `philox4x32` uses.

    An operator applies to several vectors at once. The operations for one random number depend on each other, so the core
    needs the independent operations of the other vectors to use all of its execution units.
    """

    __array_ufunc__ = None  # makes a NumPy scalar on the left use `__rmul__` of this class

    def __init__(self, builder: Any, vectors: Sequence[Any]) -> None:
        self.builder = builder
        self.vectors = vectors

    def all(self, operation: Callable[..., Any], other: U32Vector | np.uint64) -> U32Vector:
        """Apply an operation to each vector and the corresponding vector of `other`, or a number broadcast to all lanes."""
        if isinstance(other, U32Vector):
            return U32Vector(self.builder, [operation(*pair) for pair in zip(self.vectors, other.vectors, strict=True)])
        kind = self.vectors[0].type
        number = ir.Constant(kind, [int(other)] * kind.count)
        return U32Vector(self.builder, [operation(vector, number) for vector in self.vectors])

    def __add__(self, other: U32Vector | np.uint64) -> U32Vector:
        return self.all(self.builder.add, other)

    def __rmul__(self, other: np.uint64) -> U32Vector:
        return self.all(self.builder.mul, other)

    def __and__(self, other: np.uint64) -> U32Vector:
        return self.all(self.builder.and_, other)

    def __or__(self, other: U32Vector) -> U32Vector:
        return self.all(self.builder.or_, other)

    def __lshift__(self, other: np.uint64) -> U32Vector:
        return self.all(self.builder.shl, other)

    def __rshift__(self, other: np.uint64) -> U32Vector:
        return self.all(self.builder.lshr, other)

    def __xor__(self, other: U32Vector) -> U32Vector:
        return self.all(self.builder.xor, other)


def emit_words(builder: Any, rows: int, count: int, place: Any) -> list[list[Any]]:
    """Emit code that draws a random 32-bit integer for each unit in `count` groups of four units, for each of `rows` rows.

    place : the index of the first group, the index of the first row, the layer, the step, and the seed

    Returns two vectors per row, with the random numbers in the order of the units.
    """
    kind = ir.VectorType(INT64, count)
    group, row, layer, step, seed = (emit_spread(builder, number, kind) for number in place)

    def each(vector: Any, rise: int = 0) -> U32Vector:
        return U32Vector(builder, [builder.add(vector, ir.Constant(kind, [rise * i] * count)) for i in range(rows)])

    lanes = ir.Constant(kind, list(range(count)))
    c0, c1, c2, c3 = (one & MASK32 for one in (each(builder.add(group, lanes)), each(row, 1), each(layer), each(step)))
    a, b, c, d = philox4x32(c0, c1, c2, c3, each(seed) & MASK32, each(seed) >> SHIFT32)
    order = [lane + side for lane in range(count) for side in (0, count)]
    masks = [ir.Constant(ir.VectorType(INT32, count), order[at : at + count]) for at in (0, count)]
    # Vectors of units 0 and 1, and of units 2 and 3, of each group.
    pairs = zip((a | b << SHIFT32).vectors, (c | d << SHIFT32).vectors, strict=True)
    return [[builder.shuffle_vector(*pair, mask) for mask in masks] for pair in pairs]


@functools.cache
def make_drop(width: int, rows: int, vectors: int) -> Callable[..., None]:
    """Return drop(y, s, slopes, ld, group, row, layer, step, seed, threshold, scale), which applies dropout to a small block.

    The block has `rows` rows, `ld` floats apart, with `vectors` (1 or 2) vectors of `width` floats each. Its first element is
    unit 4 * group of row `row` of the batch. The activations at address y are multiplied by 0 if the random number of the unit
    is below the threshold, else by `scale`. If `slopes` is not 0, the slopes at address s are multiplied by the same factors.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        y, s, slopes, ld, *place, threshold, scale = args
        v, kind = VectorBuilder(builder, width), ir.VectorType(INT32, width)
        least, kept = emit_spread(builder, builder.trunc(threshold, INT32), kind), emit_spread(builder, scale, v.type)
        factors = []
        for i, words in enumerate(emit_words(builder, rows, width // 2, place)):
            for n, word in enumerate(words[:vectors]):
                keeps = builder.icmp_unsigned(">=", builder.bitcast(word, kind), least)
                at = builder.add(builder.mul(ld, INT64(i)), INT64(n * width))
                factors.append((at, builder.select(keeps, kept, v.zero)))

        def multiply(base: Any) -> None:
            for at, factor in factors:
                v.store(builder.fmul(v.load(base, at), factor), base, at)

        multiply(y)
        with builder.if_then(builder.icmp_signed("!=", slopes, INT64(0))):
            multiply(s)
        return context.get_dummy_value()

    @intrinsic
    def drop(typing, y, s, slopes, ld, group, row, layer, step, seed, threshold, scale):
        return types.void(*[types.int64] * 10, types.float32), build

    return drop
