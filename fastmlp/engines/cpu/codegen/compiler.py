"""Compilation for the CPU engine: settings of Numba, kernels cached on disk, scalar formulas with their callees."""

from __future__ import annotations

import copy
import ctypes
import functools
import secrets
import signal
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

from numba import njit, types
from numba._dynfunc import make_function
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.typing.context import Context

from fastmlp.engines.cpu.codegen.cache import KernelCache
from fastmlp.engines.cpu.codegen.vector_math import vector_math
from fastmlp.engines.interrupts import Signals
from fastmlp.engines.kernel_cache import with_globals


class KernelLibrary(JITCodeLibrary):
    """A kernel with all its parts, optimised once.

    Numba would do it three times, first each function and then the whole without vectors, to find pairs of counts of
    references that cancel out. Kernels count no references.
    """

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        passes, builder = self._codegen._module_pass_manager()
        passes.run(self._final_module, builder)


class PartLibrary(KernelLibrary):
    """Code that is only linked into other code: not optimised by itself, and not compiled to machine code.

    Numba would do both for every function, and once more at each level of inlining: two thirds of LLVM's time.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


def no_executable(library: PartLibrary, description: Any, environment: Any) -> Any:
    """What Numba's dispatcher keeps of a function that cannot be called by itself."""
    return make_function(description.lookup_module(), description.qualname, "", 0, environment, (library,))


class RememberedTypes(Context):
    """Numba's types of calls, each found once: kernels ask thousands of times what the sum of two integers is.

    Numba would try one signature after the other each time.
    """

    def __init__(self, context: Context) -> None:
        vars(self).update(vars(context))  # its tables of functions, which stay shared
        self.known: dict[tuple[Any, tuple[Any, ...]], Any] = {}

    def resolve_function_type(self, func: Any, args: Any, kws: Any) -> Any:
        """Signature of a call to a function with arguments of these types."""
        if kws or not isinstance(func, types.Function | BuiltinFunctionType):
            return super().resolve_function_type(func, args, kws)
        call = func, tuple(args)
        found = self.known.get(call) or super().resolve_function_type(func, args, kws)
        if found is not None:
            self.known[call] = found
        return found


remembered_types = functools.cache(RememberedTypes)


class KernelCompiler(Compiler):
    """Numba's compiler into a `KernelLibrary`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        state = self.state
        state.typingctx = remembered_types(state.typingctx)
        state.targetctx = copy.copy(state.targetctx)
        state.targetctx.typing_context = state.typingctx
        state.targetctx.get_abi_sizeof = functools.cache(state.targetctx.get_abi_sizeof)  # LLVM parses a module for each answer
        state.library = self.make_library(state.targetctx)

    def make_library(self, context: Any) -> KernelLibrary:
        library = KernelLibrary(context.codegen(), "kernel")
        library.enable_object_caching()
        return library


class PartCompiler(KernelCompiler):
    """Numba's compiler into a `PartLibrary`."""

    def make_library(self, context: Any) -> KernelLibrary:
        context.get_executable = no_executable
        return PartLibrary(context.codegen(), "part")


def compiled(function: Callable[..., Any], *, called: str = "inlined") -> Any:
    """njit with the options of all kernels: no GIL, IEEE arithmetic (no fastmath: a NaN must be detected), no exceptions.

    called : from "python", by "address", or "inlined": part of what calls it, without a call

    Numba makes a function's symbol from its name and a counter that starts anew in every process. Machine code from the
    cache would meet symbols of other code under the same name, and the linker would silently take one for the other. So
    each function gets a name that no other process has.
    """
    unique = with_globals(function, function.__globals__)
    unique.__qualname__ = f"{function.__qualname__}_{secrets.token_hex(8)}"
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}
    options["no_rewrites"] = True  # they fuse expressions of whole arrays and prune branches; LLVM does what is left of that
    options["_nrt"] = False  # kernels own no memory; counting references to slices would cost a tenth of their time
    options |= {"no_cpython_wrapper": called != "python", "no_cfunc_wrapper": called != "address"}
    options["pipeline_class"] = PartCompiler if called == "inlined" else KernelCompiler
    return njit(**options, forceinline=called == "inlined")(unique)


def cached(function: Callable[..., Any], name: str, called: str = "python") -> Any:
    """A kernel that is called from Python (or by "address"): compiled, and cached on disk under `name`."""
    dispatcher = compiled(function, called=called)
    dispatcher._cache = KernelCache(name)
    dispatcher.compile = undisturbed(dispatcher.compile)
    return dispatcher


def undisturbed(compile_it: Callable[..., Any]) -> Callable[..., Any]:
    """Let Ctrl-C and SIGTERM wait until a kernel is compiled, a second Ctrl-C not.

    LLVM calls Python back, and Python ends LLVM's objects: what is raised in there is lost, or leaves them half made.
    """

    @functools.wraps(compile_it)
    def compile_in_peace(signature: Any) -> Any:
        with Signals() as signals:
            entry = compile_it(signature)
        if signals.received:
            signal.raise_signal(signals.received)
        return entry

    return compile_in_peace


def address_of(function: Callable[..., Any], name: str, integers: int, floats: int = 0) -> int:
    """Return the address, as a C function, of a kernel with `integers` int64 and then `floats` float32 arguments.

    Compiles it, or loads it from the cache by `name`.
    """
    kernel = cached(function, name, "address")
    signature = (types.int64,) * integers + (types.float32,) * floats
    kernel.compile(signature)
    compiled_kernel = kernel.overloads[signature]
    return compiled_kernel.library.get_pointer_to_function(compiled_kernel.fndesc.llvm_cfunc_wrapper_name)


@functools.cache
def from_python(address: int, integers: int, floats: int = 0) -> Callable[..., None]:
    """A kernel of `address_of` to be called from Python, without holding the interpreter lock."""
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * integers, *[ctypes.c_float] * floats)(address)


@functools.cache
def compiled_with_callees(function: Callable[..., Any]) -> Any:
    """Compile a scalar formula together with the plain functions of its own file that it calls.

    In place of `math` it gets `cpu_math`, whose functions become vector instructions.
    """
    names = [name for name in function.__code__.co_names if isinstance(function.__globals__.get(name), FunctionType)]
    replaced = {name: compiled_with_callees(function.__globals__[name]) for name in names}
    if "math" in function.__code__.co_names:
        replaced["math"] = VECTOR_MATH
    return compiled(with_globals(function, {**function.__globals__, **replaced}))


VECTOR_MATH = vector_math(compiled_with_callees)
