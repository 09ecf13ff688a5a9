"""The device API of the kernels for NVIDIA GPUs: intrinsics that Numba lacks, written in PTX and LLVM IR.

The functions that create kernels take this module as their argument `dev`. Tests pass a simulator with the same names instead
(listed in __init__.py), so that the same source code also runs without a GPU.

Numba's array indexing handles negative and 64-bit indices, which costs several instructions per access. `load` and `store` do
not. Arrays are flat and contiguous, and indices count elements. Vectors of two or four elements must be aligned to their size.

Sources: PTX ISA 8.0, sections 9.7.8 (data movement), 9.7.12 (synchronisation), 9.7.13 (matrix multiply-accumulate).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

from llvmlite import ir

from fastmlp.engines.cuda import load_cuda
from fastmlp.engines.functions import with_callees

cuda: Any = load_cuda()

from numba import types  # noqa: E402 - after numba-cuda has replaced numba.cuda
from numba.cuda.extending import intrinsic  # noqa: E402

WARP = 32  # threads (lanes) per warp
float32, float64 = types.float32, types.float64
int32, int64, uint32, uint64 = types.int32, types.int64, types.uint32, types.uint64
F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
GLOBAL, SHARED = 1, 3  # address spaces of LLVM

# Letter of a PTX operand constraint -> its LLVM type and its Numba type.
OPERANDS = {"f": (F32, types.float32), "r": (I32, types.uint32), "l": (I64, types.uint64)}


def device(function: Callable[..., Any]) -> Any:
    """Return a function as a device function, which kernels can call and which is always inlined.

    A new Python function is created for every kernel, and most of the compile time is Numba's type inference for functions.
    Therefore functions with the same code and closure values share one device function, whose types are inferred only once.
    """
    cells = function.__closure__ or ()
    key = function.__code__, id(function.__globals__), *(marked(cell.cell_contents) for cell in cells)
    if key not in FUNCTIONS:
        FUNCTIONS[key] = cuda.jit(device=True, forceinline=True)(function)
    return FUNCTIONS[key]


FUNCTIONS: dict[Any, Any] = {}


def marked(value: Any) -> Any:
    """Return a dictionary key for a value, which distinguishes 1, 1.0 and True, and 0.0 and -0.0."""
    if isinstance(value, tuple):
        return type(value), *map(marked, value)
    return type(value), repr(value) if isinstance(value, float) else value


class Source(NamedTuple):
    """A kernel before compilation: its function, threads per block, and minimum resident blocks per multiprocessor."""

    function: Callable[..., Any]
    threads: int
    blocks: int


def kernel(threads: int, blocks: int = 1) -> Callable[[Callable[..., Any]], Source]:
    """Return a decorator for a kernel; `threads` and `blocks` are those of `Source`."""
    return lambda function: Source(function, threads, blocks)


@functools.cache
def formula(function: Callable[..., Any]) -> Any:
    """Return a scalar function, and the functions that it calls, as device functions."""
    return device(with_callees(function, lambda value: formula(value) if isinstance(value, FunctionType) else value))


# ------------------------------------------------------------------------------------------------ PTX instructions


def statement(text: str, result: str, operands: str, effect: bool = True, together: bool = False) -> Any:
    """Return an intrinsic that executes one PTX instruction.

    text : the instruction, in which $0, $1, … stand for the results and then the operands
    result, operands : types of the results and of the operands, one letter of `OPERANDS` for each
    effect : whether the instruction has side effects, so that the compiler must not move or remove it
    together : whether all lanes of a warp must execute the instruction, so that it must not be moved into a branch
    """
    results = [OPERANDS[letter] for letter in result]
    constraints = [f"={letter}" for letter in result] + [*operands] + (["~{memory}"] if effect else [])
    returned = ir.VoidType() if not results else results[0][0]
    if len(results) > 1:
        returned = ir.LiteralStructType([kind for kind, _ in results])

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        shape = ir.FunctionType(returned, [OPERANDS[letter][0] for letter in operands])
        code = ir.InlineAsm(shape, text, ",".join(constraints), side_effect=effect)
        found = builder.call(code, values, attrs=["convergent"] if together else [])
        if not results:
            return context.get_dummy_value()
        if len(results) == 1:
            return found
        return context.make_tuple(
            builder, signature.return_type, [builder.extract_value(found, i) for i in range(len(results))]
        )

    kinds = [kind for _, kind in results]
    whole = types.void if not kinds else kinds[0] if len(kinds) == 1 else types.UniTuple(kinds[0], len(kinds))
    signature = whole(*[OPERANDS[letter][1] for letter in operands])
    typed = signature, generate
    return intrinsic(TYPINGS[len(operands)](typed))


# Numba takes the number of arguments of an intrinsic from the signature of its typing function.
TYPINGS: dict[int, Callable[[Any], Any]] = {
    0: lambda typed: lambda context: typed,
    1: lambda typed: lambda context, a: typed,
    2: lambda typed: lambda context, a, b: typed,
    3: lambda typed: lambda context, a, b, c: typed,
    10: lambda typed: lambda context, a, b, c, d, e, f, g, h, i, j: typed,
}


# ------------------------------------------------------------------------------------------------ memory


def address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Return a pointer to an element of an array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


@intrinsic
def load(context, a, i):
    """Return a[i]."""

    def generate(context, builder, signature, values):
        return context.unpack_value(builder, a.dtype, address(context, builder, signature.args[0], *values))

    return a.dtype(a, types.int64), generate


@intrinsic
def store(context, a, i, value):
    """Set a[i] = value."""

    def generate(context, builder, signature, values):
        context.pack_value(builder, a.dtype, values[2], address(context, builder, signature.args[0], *values[:2]))
        return context.get_dummy_value()

    return types.void(a, types.int64, a.dtype), generate


def vector_load(count: int) -> Any:
    """Return an intrinsic that loads `count` consecutive float32 elements, a[i], a[i + 1], …, as a tuple."""
    vector = ir.VectorType(F32, count)

    def typing(context, a, i):
        def generate(context, builder, signature, values):
            place = builder.bitcast(address(context, builder, signature.args[0], *values), ir.PointerType(vector))
            found = builder.load(place, align=4 * count)
            parts = [builder.extract_element(found, ir.Constant(I32, k)) for k in range(count)]
            return context.make_tuple(builder, signature.return_type, parts)

        return types.UniTuple(types.float32, count)(a, types.int64), generate

    return intrinsic(typing)


def vector_store(count: int) -> Any:
    """Return an intrinsic that stores a tuple of `count` float32 values in a[i], a[i + 1], …"""
    vector = ir.VectorType(F32, count)

    def typing(context, a, i, value):
        def generate(context, builder, signature, values):
            place = builder.bitcast(address(context, builder, signature.args[0], *values[:2]), ir.PointerType(vector))
            whole = ir.Constant(vector, ir.Undefined)
            for k in range(count):
                whole = builder.insert_element(whole, builder.extract_value(values[2], k), ir.Constant(I32, k))
            builder.store(whole, place, align=4 * count)
            return context.get_dummy_value()

        return types.void(a, types.int64, types.UniTuple(types.float32, count)), generate

    return intrinsic(typing)


load2, load4 = vector_load(2), vector_load(4)
store2, store4 = vector_store(2), vector_store(4)


@intrinsic
def load_word(context, a, i):
    """Return the bytes a[i] to a[i + 3] of a uint8 array as one little-endian uint32. i must be a multiple of 4."""

    def generate(context, builder, signature, values):
        place = builder.bitcast(address(context, builder, signature.args[0], *values), ir.PointerType(I32))
        return builder.load(place, align=4)

    return types.uint32(a, types.int64), generate


@intrinsic
def global_address(context, a, i):
    """Return the address of a[i] in global memory."""

    def generate(context, builder, signature, values):
        place = address(context, builder, signature.args[0], *values)
        return builder.ptrtoint(builder.addrspacecast(place, ir.PointerType(place.type.pointee, GLOBAL)), I64)

    return types.uint64(a, types.int64), generate


# ------------------------------------------------------------------------------------------------ arithmetic


def unsigned(operation: str) -> Any:
    """Return an intrinsic for unsigned 32-bit division. Numba's division is 64-bit and takes about 100 cycles."""

    def typing(context, a, b):
        def generate(context, builder, signature, values):
            wide = [context.cast(builder, value, kind, types.int64) for value, kind in zip(values, signature.args, strict=True)]
            return getattr(builder, operation)(*[builder.trunc(value, I32) for value in wide])

        return types.int32(a, b), generate

    return intrinsic(typing)


divide, remainder = unsigned("udiv"), unsigned("urem")


@intrinsic
def bits_of(context, x):
    """Return the bits of a float32 as a uint32."""
    return types.uint32(types.float32), lambda context, builder, signature, values: builder.bitcast(values[0], I32)


@intrinsic
def number_of(context, x):
    """Return the float32 with the bits of a uint32."""
    return types.float32(types.uint32), lambda context, builder, signature, values: builder.bitcast(values[0], F32)


# ------------------------------------------------------------------------------------------------ tensor cores

tf32_of = statement("cvt.rna.tf32.f32 $0, $1;", "r", "f", effect=False)


@device
def bf16_pair(low, high):
    """Round two float32 values to the nearest bf16 and return them packed in one uint32."""
    return upper_and_lower(high, low)


upper_and_lower = statement("cvt.rn.bf16x2.f32 $0, $1, $2;", "r", "ff", effect=False)


def multiply_add(shape: str, kind: str) -> Any:
    """Return an intrinsic with which a warp computes the matrix product d = a b + c on tensor cores.

    Each lane passes four words of a, two words of b and four elements of c, distributed as the PTX ISA defines.
    """
    operands = "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
    text = f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {operands}"
    return statement(text, "ffff", "rrrrrrffff", effect=False, together=True)


mma_tf32, mma_bf16 = multiply_add("m16n8k8", "tf32"), multiply_add("m16n8k16", "bf16")


# ------------------------------------------------------------------------------------------------ grid-wide barriers

release_add = statement("red.release.gpu.global.add.u64 [$0], $1;", "", "ll")
acquire_load = statement("ld.acquire.gpu.global.u64 $0, [$1];", "l", "l")
trap = statement("trap;", "", "")  # aborts the kernel; later driver calls fail


@device
def arrive(counter, i):
    """Add 1 to counter[i] with release semantics: earlier writes become visible to threads that read it with `arrived`."""
    release_add(global_address(counter, i), uint64(1))


@device
def arrived(counter, i):
    """Read counter[i] with acquire semantics."""
    return acquire_load(global_address(counter, i))
