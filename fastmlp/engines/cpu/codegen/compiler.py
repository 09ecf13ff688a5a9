"""Compilation for the CPU engine: Numba settings, kernels with a disk cache, and scalar formulas with their callees."""

from __future__ import annotations

import copy
import ctypes
import functools
import math
import secrets
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

from numba import njit, types
from numba._dynfunc import make_function
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.typing.context import Context
from numba.extending import overload

from fastmlp.engines.cpu.codegen.cache import KernelCache
from fastmlp.engines.cpu.codegen.vector_math import vector_math
from fastmlp.engines.functions import with_callees
from fastmlp.engines.interrupts import deferred_signals
from fastmlp.engines.kernel_cache import with_globals


class KernelLibrary(JITCodeLibrary):
    """The LLVM module of a kernel and of all functions that it calls, optimized only once.

    Numba would optimize three times: each function, then the whole module without vectorisation, then the whole module. The
    first two passes serve to remove redundant reference counting, and kernels have no reference counting.
    """

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        passes, builder = self._codegen._module_pass_manager()
        passes.run(self._final_module, builder)


class PartLibrary(KernelLibrary):
    """The LLVM module of a function that is inlined into other code. It is not optimized or compiled to machine code itself.

    Numba would optimize and compile every such function, and do so again at each level of inlining. This would take two
    thirds of the time that is spent in LLVM.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


def no_executable(library: PartLibrary, description: Any, environment: Any) -> Any:
    """Return the placeholder that Numba's dispatcher stores for an inlined function, which cannot be called from Python."""
    return make_function(description.lookup_module(), description.qualname, "", 0, environment, (library,))


class RememberedTypes(Context):
    """Numba's typing context, with a cache of the signatures that it has resolved.

    To resolve a call, Numba tries one signature after another, and kernels contain thousands of calls with the same argument
    types, such as the addition of two integers.
    """

    def __init__(self, context: Context) -> None:
        vars(self).update(vars(context))  # the tables of functions stay shared with `context`
        self.known: dict[tuple[Any, tuple[Any, ...]], Any] = {}

    def resolve_function_type(self, func: Any, args: Any, kws: Any) -> Any:
        """Return the signature of a call to `func` with arguments of these types."""
        if kws or not isinstance(func, types.Function | BuiltinFunctionType):
            return super().resolve_function_type(func, args, kws)
        call = func, tuple(args)
        found = self.known.get(call) or super().resolve_function_type(func, args, kws)
        if found is not None:
            self.known[call] = found
        return found


remembered_types = functools.cache(RememberedTypes)


class KernelCompiler(Compiler):
    """Numba's compiler, with a `KernelLibrary` as its output."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        state = self.state
        state.typingctx = remembered_types(state.typingctx)
        state.targetctx = copy.copy(state.targetctx)
        state.targetctx.typing_context = state.typingctx
        # Cached because LLVM parses a module at each call.
        state.targetctx.get_abi_sizeof = functools.cache(state.targetctx.get_abi_sizeof)
        state.library = self.make_library(state.targetctx)

    def make_library(self, context: Any) -> KernelLibrary:
        library = KernelLibrary(context.codegen(), "kernel")
        library.enable_object_caching()
        return library


class PartCompiler(KernelCompiler):
    """Numba's compiler, with a `PartLibrary` as its output."""

    def make_library(self, context: Any) -> KernelLibrary:
        context.get_executable = no_executable
        return PartLibrary(context.codegen(), "part")


def compiled(function: Callable[..., Any], *, called: str = "inlined") -> Any:
    """Apply `njit` with the options that all kernels share: no GIL, IEEE arithmetic and no exceptions.

    Fastmath is not used, because NaN must be detected.

    called : "python" if the function is called from Python, "address" if it is called by its address, or "inlined" if it is
        inlined into its callers

    Numba derives the symbol of a function from the function's name and from a counter that starts at zero in every process.
    Machine code from the disk cache could therefore contain a symbol that another function also has, and the linker would
    silently use the wrong one. To prevent this, each function gets a random unique name.
    """
    unique = with_globals(function, function.__globals__)
    unique.__qualname__ = f"{function.__qualname__}_{secrets.token_hex(8)}"
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}
    options["no_rewrites"] = True  # kernels have no whole-array expressions to rewrite, and LLVM removes dead branches
    options["_nrt"] = False  # kernels allocate no memory; reference counting of slices would take a tenth of the time
    options |= {"no_cpython_wrapper": called != "python", "no_cfunc_wrapper": called != "address"}
    options["pipeline_class"] = PartCompiler if called == "inlined" else KernelCompiler
    return njit(**options, forceinline=called == "inlined")(unique)


def cached(function: Callable[..., Any], name: str, called: str = "python") -> Any:
    """Return a kernel that is called from Python (or by its "address"). Its code is cached on disk under `name`."""
    dispatcher = compiled(function, called=called)
    dispatcher._cache = KernelCache(name)
    dispatcher.compile = undisturbed(dispatcher.compile)
    return dispatcher


def undisturbed(compile_it: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a compile function so that Ctrl-C and SIGTERM take effect only after compilation; a second signal interrupts it.

    During compilation LLVM calls Python functions, and Python destroys LLVM objects. An exception that a signal handler raises
    at such a point would be lost, or would leave objects in an inconsistent state.
    """

    @functools.wraps(compile_it)
    def compile_in_peace(signature: Any) -> Any:
        with deferred_signals():
            return compile_it(signature)

    return compile_in_peace


def address_of(function: Callable[..., Any], name: str, integers: int, floats: int = 0) -> int:
    """Compile a kernel, or load it from the cache by `name`, and return the address of its C function.

    The arguments of the C function are `integers` int64 values followed by `floats` float32 values.
    """
    kernel = cached(function, name, "address")
    signature = (types.int64,) * integers + (types.float32,) * floats
    kernel.compile(signature)
    compiled_kernel = kernel.overloads[signature]
    return compiled_kernel.library.get_pointer_to_function(compiled_kernel.fndesc.llvm_cfunc_wrapper_name)


@functools.cache
def from_python(address: int, integers: int, floats: int = 0) -> Callable[..., None]:
    """Return a Python function that calls the kernel at `address`, see `address_of`, and releases the GIL during the call."""
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * integers, *[ctypes.c_float] * floats)(address)


@functools.cache
def compiled_with_callees(function: Callable[..., Any]) -> Any:
    """Compile a scalar formula, whose numbers are all float32, together with the Python functions that it calls.

    The module `math` is replaced by `VECTOR_MATH`, whose functions LLVM can vectorise.
    """

    def replace(value: Any) -> Any:
        return compiled_with_callees(value) if isinstance(value, FunctionType) else VECTOR_MATH if value is math else value

    return compiled(with_callees(function, replace))


@functools.cache
def compiled_custom(function: Callable[..., Any]) -> Any:
    """Compile a scalar function of a custom activation, whose numbers may have any type, together with the functions it calls.

    The functions of `math` are replaced by those of `TYPED_MATH`.
    """

    def replace(value: Any) -> Any:
        if isinstance(value, BuiltinFunctionType) and value.__module__ == "math":
            return getattr(TYPED_MATH, value.__name__)
        return compiled_custom(value) if isinstance(value, FunctionType) else TYPED_MATH if value is math else value

    return compiled(with_callees(function, replace))


def by_type(fast: Any, plain: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return a function for compiled code that calls `fast` for a float32 argument, and `plain` for other types."""

    def function(x: Any) -> Any:
        raise NotImplementedError("can only be called from compiled code")

    @overload(function, jit_options={"forceinline": True})
    def select(x: Any) -> Any:
        chosen = fast if x == types.float32 else plain

        def call(x: Any) -> Any:
            return chosen(x)

        return call

    return function


VECTOR_MATH = vector_math(compiled_with_callees)
TYPED_MATH = vector_math(lambda function: by_type(compiled_with_callees(function), getattr(math, function.__name__)))
