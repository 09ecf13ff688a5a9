"""Assembly of the CPU engine's micro-kernels for any processor, and analysis of its inner loops."""

from __future__ import annotations

import inspect
import re
from types import SimpleNamespace
from typing import Any, NamedTuple

from llvmlite import binding, ir

FMA = re.compile(r"v?fn?m(add\w*ps|la)\s")
VECTOR = re.compile(r"%([xyz]mm)\d+|v\d+\.(\w+)")
JUMP = re.compile(r"(j\w+|b(\.\w+)?|cbn?z|tbn?z)\s")
LABEL = re.compile(r"([.\w$]+):")
FRAME = re.compile(r"movq\s+%rsp, %rbp")


class Loop(NamedTuple):
    """An innermost loop with fused multiply-adds.

    fmas : number of fused multiply-add instructions
    registers : register types that they write: "zmm", "ymm", "xmm" or, on ARM, a vector arrangement such as "4s"
    spills : number of instructions that access the stack
    """

    fmas: int
    registers: set[str]
    spills: int


def loops(assembly: str) -> list[Loop]:
    """Return the innermost loops with fused multiply-adds: blocks of instructions that end with a jump to their start."""
    stack = r"\(%rsp|\[sp" + (r"|\(%rbp" if FRAME.search(assembly) else "")
    found, label, block = [], "", list[str]()
    for line in map(str.strip, assembly.splitlines()):
        if start := LABEL.match(line):
            label, block = start[1], []
        elif line and line[0] not in ".#/":
            block.append(line)
            if JUMP.match(line):
                fmas = [text for text in block if FMA.match(text)]
                if fmas and line.split()[-1] == label:
                    spills = sum(bool(re.search(stack, text)) for text in block)
                    found.append(Loop(len(fmas), {written(text) for text in fmas}, spills))
                block = []
    return found


def written(instruction: str) -> str:
    """Return the type of the register that an instruction writes: the last operand on x86 (AT&T syntax), the first on ARM."""
    kinds = [x86 or arm for x86, arm in VECTOR.findall(instruction)]
    return kinds[-1] if "%" in instruction else kinds[0]


def wrong(found: list[Loop], fmas: int, register: str) -> list[str]:
    """List the errors in the loops of a micro-kernel, given the expected number of fused multiply-adds per iteration."""
    if not found:
        return ["no loop with fused multiply-adds"]
    reasons = []
    for loop in found:
        if loop.fmas % fmas or loop.fmas // fmas not in (1, 2, 4, 8):  # unrolled iterations
            reasons.append(f"{loop.fmas} multiply-adds instead of {fmas}")
        if loop.registers != {register}:
            reasons.append(f"registers {loop.registers} instead of {register}")
        if loop.spills:
            reasons.append(f"{loop.spills} instructions that access the stack")
    return reasons


def assembly_of(intrinsic: Any, triple: str, cpu: str) -> str:
    """Compile an intrinsic with int64 arguments as a separate function; return its assembly for a processor."""
    definition = intrinsic._defn
    count = len(inspect.signature(definition).parameters) - 1
    signature, build = definition(None, *[None] * count)
    module = ir.Module("kernel")
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * count), "kernel")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    build(SimpleNamespace(get_dummy_value=lambda: None), builder, signature, function.args)
    builder.ret_void()
    return optimized(str(module), triple, cpu)


def optimized(text: str, triple: str, cpu: str) -> str:
    """Compile LLVM IR for a processor with Numba's optimization level; return the assembly."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = binding.parse_assembly(text)
    module.verify()
    machine = binding.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    tuning = binding.create_pipeline_tuning_options(speed_level=3)
    passes = binding.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(module, passes)
    return str(machine.emit_assembly(module))
