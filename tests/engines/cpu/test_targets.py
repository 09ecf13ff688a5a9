"""Kernels for different processors: builds that this processor supports are run, others are compiled and inspected.

The environment variables NUMBA_CPU_NAME and NUMBA_CPU_FEATURES make Numba compile for another processor.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from llvmlite import binding
from support.assembly import assembly_of, loops, wrong
from support.processes import ROOT

from fastmlp.engines.cpu.codegen.intrinsics import atomic_load, atomic_store, fetch_add, pause, swap_if
from fastmlp.engines.cpu.codegen.simd import SINGLE_VECTORS, TILES, make_gradient_tile, make_tile, make_transpose
from fastmlp.engines.cpu.kernels.gemm import traced_rule

pytestmark = pytest.mark.full

PATIENCE = 300  # seconds
X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
REGISTERS = {16: "zmm", 8: "ymm", 4: "4s"}


# ------------------------------------------------------------------------------------------------ builds that run


class Build(NamedTuple):
    """A target processor: Numba's environment variables, LLVM names of the features it needs, and floats per vector."""

    environment: dict[str, str]
    needs: tuple[str, ...]
    lanes: int


AVX2 = "+sse4.2,+avx,+avx2,+fma,+bmi,+bmi2"
AVX512 = AVX2 + ",+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"
BUILDS = {
    "AVX-512": Build({"NUMBA_CPU_NAME": "skylake-avx512", "NUMBA_CPU_FEATURES": AVX512}, ("avx512f", "avx512vl"), 16),
    "AVX2": Build({"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": AVX2}, ("avx2", "fma", "bmi2"), 8),
    "SSE2": Build({"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}, ("sse2",), 4),
}

# With the argument "train", this script trains and compares the results with the reference. It prints the vector width, the
# cache file and the assembly of the kernels. Batches of 300 rows split the sums of gradients, and the layer widths need an odd
# number of panels and padding for every vector width.
WORK = """
import json, sys
from support.tolerances import check_against_reference
from support.engines import make_course
from numba import types
from numba.core.caching import NullCache
from numba.core.registry import cpu_target
from fastmlp.engines.cpu import engine as cpu
from fastmlp.engines.cpu.codegen import compiler as cpu_compile
from fastmlp.engines.cpu.kernels import gemm as cpu_products
from fastmlp.engines.cpu import threads as cpu_threads
from fastmlp.engines.base import EngineSpec
from fastmlp.engines.cpu.codegen.cache import KernelCache
from fastmlp.engines.cpu.codegen.simd import lanes
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer

products, cached = [], cpu_compile.cached

def cached_and_noted(function, name, called):
    kernel = cached(function, name, called)
    if name.startswith(("product", "gradient")):
        kernel._cache = NullCache()  # code that is loaded from the shared cache has no assembly
        products.append(kernel)
    return kernel

cpu_compile.cached = cached_and_noted
if sys.argv[1] == "train":
    cpu_threads.MUCH_FLOPS, cpu_threads.SURE_FLOPS, cpu.most_threads = 0, 0, lambda: 64
    spec = EngineSpec(Network((13, 70, 21, 3), ["relu", "tanh"], l2=1e-3), Optimizer("adam"), batch_size=300, seed=3, threads=2)
    check_against_reference("numba", spec, make_course(spec.network, rows=640, batch=300))
else:
    cpu_products.product_address(lanes())
    cpu_products.gradient_address(lanes(), "adam", True)
key = str(KernelCache("kernel").file(types.int64, cpu_target.target_context.codegen()))
assembly = [found.library.get_asm_str() for kernel in products for found in kernel.overloads.values()]
print(json.dumps([lanes(), key, assembly]))
"""


class Outcome(NamedTuple):
    """Output of the script: floats per vector, cache file of a kernel, assembly of the product and gradient kernels."""

    lanes: int
    key: str
    assembly: list[str]


def missing(name: str) -> list[str]:
    """Return the features of a build that this processor lacks."""
    has = binding.get_host_cpu_features()
    return [feature for feature in BUILDS[name].needs if not has.get(feature)]


@functools.cache
def process(name: str) -> subprocess.CompletedProcess[str]:
    """Run the script for a build in a new process; it trains if this processor supports the build, else it only compiles."""
    own = {variable: value for variable, value in os.environ.items() if not variable.startswith("NUMBA_CPU")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", WORK, "compile" if missing(name) else "train"],
        env={**own, "PYTHONPATH": path, **BUILDS[name].environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def outcome_of(name: str) -> Outcome:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"these builds are for x86-64, not for {platform.machine()}")
    done = process(name)
    assert done.returncode == 0, done.stderr
    return Outcome(*json.loads(done.stdout))


@pytest.mark.parametrize("name", BUILDS)
def test_each_build_trains_and_predicts_as_the_reference(name: str) -> None:
    if lacks := missing(name):
        pytest.skip(f"this processor lacks {', '.join(lacks)}; the build is compiled but not run")
    assert outcome_of(name).lanes == BUILDS[name].lanes


@pytest.mark.parametrize("name", ["AVX-512", "AVX2"])
def test_inner_loops_of_whole_kernels_keep_to_their_registers(name: str) -> None:
    """Micro-kernels inlined in complete kernels, compiled by Numba for each processor, do not spill registers."""
    outcome = outcome_of(name)
    assert outcome.lanes == BUILDS[name].lanes
    for assembly, least in zip(outcome.assembly, (6, 4), strict=True):  # products also have tiles of one row
        found = loops(assembly)
        assert len(found) >= least
        assert {loop.spills for loop in found} == {0}
        assert {frozenset(loop.registers) for loop in found} == {frozenset({REGISTERS[outcome.lanes]})}
        rows, _, vectors = TILES[outcome.lanes]
        assert max(loop.fmas for loop in found) % (rows * vectors) == 0


def test_kernels_of_one_processor_are_not_found_by_another() -> None:
    outcomes = [outcome_of(name) for name in BUILDS]
    assert len({outcome.key for outcome in outcomes}) == len(BUILDS)
    assert len({Path(outcome.key).parent for outcome in outcomes}) == 1  # in the same folder


# ------------------------------------------------------------------------------------------------ every other processor

PROCESSORS = [
    *((X86, cpu, 16) for cpu in ("skylake-avx512", "rocketlake", "sapphirerapids", "znver4")),
    *((X86, cpu, 8) for cpu in ("haswell", "znver3")),
    *((ARM, cpu, 4) for cpu in ("apple-m1", "neoverse-n1")),
]
every_processor = pytest.mark.parametrize(("triple", "cpu", "lanes"), PROCESSORS, ids=[cpu for _, cpu, _ in PROCESSORS])


@every_processor
def test_products_in_registers(triple: str, cpu: str, lanes: int) -> None:
    tall, low, pair = TILES[lanes]
    shapes = [(rows, vectors) for rows in (tall, low) for vectors in (pair, 1)] + [(1, SINGLE_VECTORS), (1, 1)]
    for rows, vectors in shapes:
        found = loops(assembly_of(make_tile(rows, vectors, lanes), triple, cpu))
        assert wrong(found, rows * vectors, REGISTERS[lanes]) == [], (rows, vectors)


@every_processor
def test_gradients_in_registers(triple: str, cpu: str, lanes: int) -> None:
    """The sums of a gradient tile stay in registers, even with an optimizer update fused at the end of the tile."""
    tall, low, pair = TILES[lanes]
    for rule in (None, traced_rule("momentum", False), traced_rule("adam", True)):
        for rows in (tall, low):
            for vectors in (pair, 1):
                found = loops(assembly_of(make_gradient_tile(rows, vectors, lanes, rule), triple, cpu))
                assert wrong(found, rows * vectors, REGISTERS[lanes]) == [], (rows, vectors)


@pytest.mark.parametrize(("triple", "cpu", "lanes"), [(X86, "haswell", 8), (X86, "znver4", 16), (ARM, "apple-m1", 4)])
def test_transposes_stay_in_registers(triple: str, cpu: str, lanes: int) -> None:
    assembly = assembly_of(make_transpose(lanes), triple, cpu)
    assert not re.search(r"\(%rsp|\[sp|call", assembly)
    assert len(re.findall(rf"\b{'q' if triple == ARM else REGISTERS[lanes]}\d", assembly)) >= lanes


# Synchronization instructions on x86 and ARM; ARM's weaker memory order needs explicit acquire and release instructions.
INSTRUCTIONS = {
    pause: ("pause", "yield"),
    fetch_add: ("lock", "ldaddal"),
    swap_if: (r"lock\s+cmpxchgq", "casal"),
    atomic_load: ("movq", "ldap?r"),
    atomic_store: ("movq", "stlr"),
}


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda instruction: instruction._name)
def test_instructions_for_threads_exist_on_both_families(instruction: Any) -> None:
    for triple, cpu, wanted in zip((X86, ARM), ("x86-64", "apple-m1"), INSTRUCTIONS[instruction], strict=True):
        assert re.search(rf"(?m)^\s*{wanted}\b", assembly_of(instruction, triple, cpu))


def test_the_check_of_loops_sees_spills_other_registers_and_other_numbers() -> None:
    def found(rows: int, vectors: int, width: int, triple: str, cpu: str) -> Any:
        return loops(assembly_of(make_tile(rows, vectors, width), triple, cpu))

    (reason,) = wrong(found(8, 2, 8, X86, "znver3"), 16, "ymm")  # 8 x 2 sums and 3 operands do not fit into 16 registers
    assert "access the stack" in reason
    (reason,) = wrong(found(16, 2, 4, ARM, "apple-m1"), 32, "4s")
    assert "access the stack" in reason
    assert wrong(found(4, 2, 8, X86, "skylake-avx512"), 8, "zmm") == ["registers {'ymm'} instead of zmm"]
    assert wrong(found(4, 2, 8, X86, "haswell"), 6, "ymm") == ["8 multiply-adds instead of 6"]
    assert wrong(found(4, 2, 8, X86, "x86-64"), 8, "ymm") == ["no loop with fused multiply-adds"]  # calls fmaf
