"""Kernels that apply activations, updates and dropout to vectors. Only benchmarks use them.

They are created from the same parts as the training kernel (passes.py). Products and losses are benchmarked by launching a
single phase of the training kernel (programs.py), so they do not need separate kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastmlp.engines.cuda.kernels.passes import make_activate, make_is_kept, make_update

# Types of the arguments of each kernel, in the format of `programs.arguments_of`.
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "activations": ("int32", "float32", "float32[]", "float32[]", "float32[]"),
    "updates": ("float32[]",) * 5,
    "dropout": ("uint64", "int32", "int32", "uint64", "float32", "int32", "float32[]", "float32[]"),
}


def make_share(dev: Any) -> Any:
    """Return share(), which returns the start and the step of this thread in a grid-stride loop."""
    cuda = dev.cuda

    @dev.device
    def share():
        return cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.gridDim.x * cuda.blockDim.x

    return share


def make_activations(dev: Any, threads: int, blocks: int, names: Sequence[str]) -> Any:
    """Return the kernel activations(number, a, z, y, s), which computes y = f(z) and s = f'(z) for names[number].

    a : parameter of the activation
    z, y, s : (n,) float32
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
    """Return the kernel updates(s, g, parameters, m, v), which updates all parameters with their gradients g.

    s : (SCALAR_COUNT,) float32, scalars of the step
    g, parameters : (n,) float32
    m, v : (n,) float32 optimizer slots, or (1,) if the rule does not use them
    """
    load, share, update = dev.load, make_share(dev), make_update(dev, rule)

    @dev.kernel(threads, blocks)
    def updates(s, g, parameters, m, v):
        first, step = share()
        for i in range(first, len(g), step):
            update(i, load(g, i), s, parameters, m, v)

    return updates


def make_dropout(dev: Any, threads: int, blocks: int) -> Any:
    """Return the kernel dropout(seed, step, layer, threshold, scale, width, x, y).

    It computes y = x * `scale` for units that dropout keeps, and y = 0 for the others. The mask is that of `philox.keep_mask`.

    threshold : from `philox.drop_threshold`
    x, y : (rows * width,) float32
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
