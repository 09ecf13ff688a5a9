"""Memory layout on the device: padded weights, activations of a mini-batch, and the table of offsets that kernels read.

Every layer width is padded with zeros to a multiple of `PAD`, so that all vector loads are aligned. The padding remains zero:
in the weights because the gradient is zero there, and in activations and derivatives because kernels write zeros.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.nn.activations import ACTIVATIONS
from fastmlp.nn.network import FloatArray, Network
from fastmlp.nn.philox import drop_threshold

PAD = 8

# Columns of the table, which has one row per layer. Offsets count float32 elements.
FIELDS = (
    "fan_in",
    "fan_out",
    "in_width",
    "out_width",
    "weights",
    "bias",
    "input",
    "output",
    "slopes",
    "gradient",
    "activation",
)
FAN_IN, FAN_OUT, IN_WIDTH, OUT_WIDTH, WEIGHTS, BIAS, INPUT, OUTPUT, SLOPES, GRADIENT, ACTIVATION = range(len(FIELDS))
COLUMNS = len(FIELDS)


class DeviceLayout(NamedTuple):
    """Layout of a network in device memory, for mini-batches up to a fixed number of rows.

    The arena is one float32 array with the outputs y, the derivatives of the activations ("slopes") and the gradients dz of
    all layers.

    table : (layers * COLUMNS,) int32, with the columns `FIELDS` for each layer: sizes, offsets of `weights` and `bias` in the
        parameters, offsets of `input`, `output`, `slopes` and `gradient` in the arena, and the index of its activation in
        `activations`; the first layer reads the data, so its `input` is not used
    alpha : (layers,) float32, parameters of the activations
    thresholds : (layers,) uint32 from `philox.drop_threshold`; 0 means no dropout
    scales : (layers,) float32, factors by which dropout multiplies the units that it keeps
    activations : unique names in the order of `ACTIVATIONS`, then custom ones in alphabetical order, so that networks with the
        same set of activations share kernels
    parameters : number of parameters, including padding
    arena : number of elements of the arena
    """

    table: npt.NDArray[np.int32]
    alpha: npt.NDArray[np.float32]
    thresholds: npt.NDArray[np.uint32]
    scales: npt.NDArray[np.float32]
    activations: tuple[str, ...]
    parameters: int
    arena: int

    @property
    def last_output(self) -> int:
        """Offset in the arena of the pre-activations z of the output layer."""
        return int(self.table[OUTPUT - COLUMNS])


def padded(width: int) -> int:
    return -(-width // PAD) * PAD


def make_layout(network: Network, rows: int) -> DeviceLayout:
    """Return the layout of a network for mini-batches of at most `rows` rows.

    >>> layout = make_layout(Network((3, 9, 2)), 4)
    >>> layout.parameters, layout.arena, layout.table.reshape(2, -1)[1, :6].tolist()
    (280, 288, [9, 2, 16, 8, 144, 272])
    """
    layers = network.layers
    used = {layer.activation for layer in layers[:-1]}
    names = (*(name for name in ACTIVATIONS if name in used), *sorted(used - set(ACTIVATIONS)))
    table = np.zeros((len(layers), COLUMNS), np.int32)
    parameters = arena = source = 0
    for row, layer in zip(table, layers, strict=True):
        width, height = padded(layer.fan_out), padded(layer.fan_in)
        row[[FAN_IN, FAN_OUT, IN_WIDTH, OUT_WIDTH]] = layer.fan_in, layer.fan_out, height, width
        row[[WEIGHTS, BIAS]] = parameters, parameters + height * width
        row[[INPUT, OUTPUT, SLOPES, GRADIENT]] = source, arena, arena + rows * width, arena + 2 * rows * width
        parameters, source, arena = parameters + (height + 1) * width, arena, arena + 3 * rows * width
    for row, layer in zip(table, layers[:-1], strict=False):
        row[ACTIVATION] = names.index(layer.activation)
    rates = [layer.dropout for layer in layers]
    return DeviceLayout(
        table.reshape(-1),
        np.array([layer.parameter for layer in layers], np.float32),
        np.array([drop_threshold(rate) for rate in rates], np.uint32),
        np.array([1 / (1 - rate) for rate in rates], np.float32),
        names,
        parameters,
        arena,
    )


def padded_views(network: Network, vector: FloatArray) -> list[tuple[FloatArray, FloatArray]]:
    """Return views of the weights (fan_in, fan_out) and bias (fan_out,) of each layer in a vector of padded parameters."""
    found, at = [], 0
    for layer in network.layers:
        height, width = padded(layer.fan_in), padded(layer.fan_out)
        w = vector[at : at + height * width].reshape(height, width)[: layer.fan_in, : layer.fan_out]
        at += height * width
        found.append((w, vector[at : at + layer.fan_out]))
        at += width
    return found


def pad(network: Network, vector: FloatArray, size: int) -> FloatArray:
    """Convert parameters (P,) to padded parameters, (size,) float32."""
    whole = np.zeros(size, np.float32)
    copy(network.views(vector), padded_views(network, whole))
    return whole


def unpad(network: Network, whole: FloatArray) -> FloatArray:
    """Convert padded parameters to parameters, (P,) float32."""
    vector = np.empty(network.parameters, np.float32)
    copy(padded_views(network, whole), network.views(vector))
    return vector


def copy(source: Any, target: Any) -> None:
    """Copy the arrays of each layer from `source` to `target`."""
    for ours, theirs in zip(source, target, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            other[:] = one
