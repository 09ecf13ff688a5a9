"""Kernels for benchmarks only: activations, updates and dropout, each applied to vectors.

They use the same factories as the training kernel (passes.py). Products and losses need no such kernels: they are phases of the
training kernel, which can be launched for a single phase (programs.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastmlp.engines.cuda.kernels.passes import make_activate, make_is_kept, make_update

# The types of their arguments, as `programs.arguments_of` gives them.
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "activations": ("int32", "float32", "float32[]", "float32[]", "float32[]"),
    "updates": ("float32[]",) * 5,
    "dropout": ("uint64", "int32", "int32", "uint64", "float32", "int32", "float32[]", "float32[]"),
}


def make_share(dev: Any) -> Any:
    """share(): start and step of a thread in a grid-stride loop."""
    cuda = dev.cuda

    @dev.device
    def share():
        return cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.gridDim.x * cuda.blockDim.x

    return share


def make_activations(dev: Any, threads: int, blocks: int, names: Sequence[str]) -> Any:
    """The kernel activations(number, a, z, y, s): y = f(z) and s = f'(z) of the activation names[number].

    a : its parameter; z, y, s : (n,) float32
    """
    load, store, share, activate = dev.load, dev.store, make_share(dev), make_activate(dev, names)

    @dev.kernel(threads, blocks)
    def activations(number, a, z, y, s):
        first, step = share()
        for i in range(first, len(z), step):
            value, slope = activate(number, load(z, i), a)
            store(y, i, value)
            store(s, i, slope)

    return activations


def make_updates(dev: Any, threads: int, blocks: int, rule: str) -> Any:
    """The kernel updates(s, g, parameters, m, v): all parameters by their gradients.

    s : (SCALAR_COUNT,) float32, the step's scalars; g, parameters : (n,) float32; m, v : the same, or (1,) if unused
    """
    load, share, update = dev.load, make_share(dev), make_update(dev, rule)

    @dev.kernel(threads, blocks)
    def updates(s, g, parameters, m, v):
        first, step = share()
        for i in range(first, len(g), step):
            update(i, load(g, i), s, parameters, m, v)

    return updates


def make_dropout(dev: Any, threads: int, blocks: int) -> Any:
    """The kernel dropout(seed, step, layer, threshold, scale, width, x, y): y = x times `scale` for kept units, 0 for others.

    Kept units are those of `philox.keep_mask`. threshold : of `philox.drop_threshold`; x, y : (rows * width,) float32
    """
    load, store, divide, remainder, zero = dev.load, dev.store, dev.divide, dev.remainder, dev.float32(0)
    share, is_kept = make_share(dev), make_is_kept(dev)

    @dev.kernel(threads, blocks)
    def dropout(seed, step, layer, threshold, scale, width, x, y):
        first, stride = share()
        for i in range(first, len(x), stride):
            keep = is_kept(seed, step, layer, divide(i, width), remainder(i, width), threshold)
            store(y, i, load(x, i) * (scale if keep else zero))

    return dropout
