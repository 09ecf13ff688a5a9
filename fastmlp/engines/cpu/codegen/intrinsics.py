"""Intrinsics for the CPU engine's kernels: atomics, spin-wait hints, calls by address, fused multiply-add.

Each intrinsic emits one or a few LLVM instructions. The file also contains a loop of fused multiply-adds, which measures the
peak rate of the machine.

Only this file, simd.py and vector_random.py emit LLVM instructions. Addresses are int64 byte addresses. The intrinsics do not
check their arguments and cannot raise exceptions.
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
    """Atomically add `amount` to the int64 at address `at` and return the old value (LLVM `atomicrmw add`, `seq_cst`)."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], INT64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), build


@intrinsic
def swap_if(typing, at, expected, new):
    """Atomic compare-and-swap of the int64 at address `at` (LLVM `cmpxchg`, `seq_cst`).

    If the value equals `expected`, replace it by `new` and return True; otherwise return False.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], INT64.as_pointer())
        return builder.extract_value(builder.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst"), 1)

    return types.boolean(types.int64, types.int64, types.int64), build


@intrinsic
def atomic_load(typing, at):
    """Atomically load the int64 at address `at` (LLVM `load atomic`, `acquire`)."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], INT64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), build


@intrinsic
def atomic_store(typing, at, value):
    """Atomically store the int64 `value` to address `at` (LLVM `store atomic`, `release`)."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], builder.inttoptr(args[0], INT64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), build


@intrinsic
def smaller(typing, a, b):
    """Return the smaller of two int64 values. Numba would compile `min` separately for each combination of types."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.icmp_signed("<", *args), *args)

    return types.int64(types.int64, types.int64), build


@intrinsic
def pause(typing):
    """Spin-wait hint to the processor: `llvm.x86.sse2.pause` on x86, `llvm.aarch64.hint(1)` (yield) on ARM."""

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
    """Prefetch the cache line at address `at`, see `emit_prefetch`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit_prefetch(builder, builder.inttoptr(args[0], BYTE.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), build


@intrinsic
def yield_core(typing):
    """Yield the core to another thread with `sched_yield` of the C library. Does nothing on Windows, which lacks it."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if hasattr(os, "sched_yield"):
            kind = ir.FunctionType(INT32, [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), build


@intrinsic
def call(typing, address, args):
    """Call the C function at `address`, which returns nothing. `args` is a tuple of int64 and float32 arguments."""
    kinds = [types.float32 if argument == types.float32 else types.int64 for argument in args]

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [context.get_value_type(argument) for argument in kinds])
        function = builder.inttoptr(values[0], kind.as_pointer())
        builder.call(function, cgutils.unpack_tuple(builder, values[1], len(kinds)))
        return context.get_dummy_value()

    return types.void(types.int64, types.BaseTuple.from_types(kinds)), build


@intrinsic
def array_at(typing, address, n, dtype):
    """Return the n numbers at `address` as a contiguous array of type `dtype`, without a copy."""
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
    """Return array[first : first + n * stride : stride], a view of n elements.

    A slice expression in Numba would also clip the bounds to the length of the array. With slice expressions, the losses of a
    network with three outputs took up to 1.4 times as long.
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
    """Emit LLVM `llvm.fmuladd`, a * b + c.

    It is compiled to a fused instruction with a single rounding if the processor has one, otherwise to a multiplication and an
    addition, but never to a function call.
    """
    kind = ir.FunctionType(FLOAT, [FLOAT] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.f32"), [a, b, c])


@intrinsic
def fused(typing, a, b, c):
    """Return a * b + c in float32, with a single rounding if the processor has fused multiply-add."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return multiply_add(builder, *args)

    return types.float32(types.float32, types.float32, types.float32), build


@intrinsic
def polynomial(typing, x, coefficients):
    """Return c[0] + c[1] x + c[2] x^2 + … by Horner's rule with fused multiply-add; x is float32, c a tuple of float32."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *lower, value = cgutils.unpack_tuple(builder, args[1])
        for coefficient in reversed(lower):
            value = multiply_add(builder, value, args[0], coefficient)
        return value

    return types.float32(types.float32, coefficients), build


@functools.cache
def make_fma_loop(count: int, width: int) -> Callable[..., Any]:
    """Return fma_loop(steps, x), which measures the peak rate of fused multiply-adds.

    Each of its `steps` iterations executes `count` independent fused multiply-adds on vectors of `width` floats in registers.
    In total these are 2 * count * width * steps floating-point operations. The loop returns a float that depends on all
    results, so that the compiler cannot remove any operation.
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
        for number, one in enumerate(sums):  # with equal initial values, LLVM could merge the sums
            one.add_incoming(ir.Constant(v.type, [float(number)] * width), before)
            one.add_incoming(new[number], body)
        builder.cbranch(builder.icmp_signed("<", following, steps), body, end)
        builder.position_at_end(end)
        return builder.extract_element(functools.reduce(builder.fadd, new), INT32(0))

    @intrinsic
    def fma_loop(typing, steps, x):
        return types.float32(types.int64, types.float32), build

    return fma_loop
