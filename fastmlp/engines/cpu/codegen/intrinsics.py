"""Single LLVM instructions for the CPU engine's kernels: atomics, pauses, calls by address, fused multiply-add.

It also has a loop of fused multiply-adds only, which measures the peak rate of the machine.

Only this file, simd.py and vector_random.py emit LLVM. Addresses are int64, in bytes; nothing is checked and nothing can
raise.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from fastmlp.engines.cpu.codegen.simd import BYTE, FLOAT, INT32, INT64, VectorBuilder, emit_prefetch, emit_spread


@intrinsic
def fetch_add(typing, at, amount):
    """LLVM `atomicrmw add … seq_cst` on the int64 at address `at`: returns the value before."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], INT64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), build


@intrinsic
def swap_if(typing, at, expected, new):
    """LLVM `cmpxchg … seq_cst` on the int64 at address `at`: True if it held `expected` and now holds `new`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], INT64.as_pointer())
        return builder.extract_value(builder.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst"), 1)

    return types.boolean(types.int64, types.int64, types.int64), build


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
def smaller(typing, a, b):
    """The smaller of two int64. For `min` Numba compiles a function for each combination of types."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.icmp_signed("<", *args), *args)

    return types.int64(types.int64, types.int64), build


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
def prefetch(typing, at):
    """`emit_prefetch` of the cache line of address `at`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit_prefetch(builder, builder.inttoptr(args[0], BYTE.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), build


@intrinsic
def yield_core(typing):
    """Call the C library's `sched_yield`: yield the core to another thread. Does nothing on Windows, whose library lacks it."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if hasattr(os, "sched_yield"):
            kind = ir.FunctionType(INT32, [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), build


@intrinsic
def call(typing, address, args):
    """Call the C function at an address with a tuple of int64 and float32; it returns nothing."""
    kinds = [types.float32 if argument == types.float32 else types.int64 for argument in args]

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [context.get_value_type(argument) for argument in kinds])
        function = builder.inttoptr(values[0], kind.as_pointer())
        builder.call(function, cgutils.unpack_tuple(builder, values[1], len(kinds)))
        return context.get_dummy_value()

    return types.void(types.int64, types.BaseTuple.from_types(kinds)), build


@intrinsic
def array_at(typing, address, n, dtype):
    """The n numbers at an address as a contiguous array."""
    kind = types.Array(dtype.dtype, 1, "C")

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(kind)(context, builder)
        size = INT64(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        data = builder.inttoptr(args[0], context.get_data_type(kind.dtype).as_pointer())
        populate_array(array, data=data, shape=[args[1]], strides=[size], itemsize=size, meminfo=None)
        return array._getvalue()

    return kind(types.int64, types.int64, dtype), build


@intrinsic
def column_of(typing, array, first, n, stride):
    """n numbers of an array, from number `first` on and `stride` apart, as an array.

    A plain slice would do, but would see to its ends for each: losses of three outputs took up to 1.4 times as long.
    """
    kind = types.Array(array.dtype, 1, "A")

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        column = context.make_array(kind)(context, builder)
        size = INT64(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        data = builder.gep(context.make_array(array)(context, builder, args[0]).data, [args[1]])
        strides = [builder.mul(args[3], size)]
        populate_array(column, data=data, shape=[args[2]], strides=strides, itemsize=size, meminfo=None)
        return column._getvalue()

    return kind(array, types.int64, types.int64, types.int64), build


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """LLVM `llvm.fmuladd`: a b + c, rounded once if the processor can do that, else twice; never a call."""
    kind = ir.FunctionType(FLOAT, [FLOAT] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.f32"), [a, b, c])


@intrinsic
def fused(typing, a, b, c):
    """a b + c of float32, rounded once where the processor has fused multiply-add."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return multiply_add(builder, *args)

    return types.float32(types.float32, types.float32, types.float32), build


@intrinsic
def polynomial(typing, x, coefficients):
    """c[0] + c[1] x + c[2] x^2 + … by Horner's rule with `fused`, for float32 and a tuple of float32."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *lower, value = cgutils.unpack_tuple(builder, args[1])
        for coefficient in reversed(lower):
            value = multiply_add(builder, value, args[0], coefficient)
        return value

    return types.float32(types.float32, coefficients), build


@functools.cache
def make_fma_loop(count: int, width: int) -> Callable[..., Any]:
    """fma_loop(steps, x): `steps` times `count` fused multiply-adds of vectors of `width` floats, all in registers.

    Returns a float that depends on all of them, so that none is optimised away; 2 * count * width * steps operations.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        steps, x = args
        v = VectorBuilder(builder, width)
        factor = emit_spread(builder, x, v.type)
        before, body, end = builder.block, builder.append_basic_block("step"), builder.append_basic_block("end")
        builder.branch(body)
        builder.position_at_end(body)
        step = builder.phi(INT64)
        sums = [builder.phi(v.type) for _ in range(count)]
        new = [v.fma(factor, factor, one) for one in sums]
        following = builder.add(step, INT64(1))
        step.add_incoming(INT64(0), before)
        step.add_incoming(following, body)
        for number, one in enumerate(sums):  # equal starts could be computed once for all
            one.add_incoming(ir.Constant(v.type, [float(number)] * width), before)
            one.add_incoming(new[number], body)
        builder.cbranch(builder.icmp_signed("<", following, steps), body, end)
        builder.position_at_end(end)
        return builder.extract_element(functools.reduce(builder.fadd, new), INT32(0))

    @intrinsic
    def fma_loop(typing, steps, x):
        return types.float32(types.int64, types.float32), build

    return fma_loop
