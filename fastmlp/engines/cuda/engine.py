"""The CUDA engine: implements `base.Engine` by managing arrays in device memory and launching kernels on an NVIDIA GPU."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from fastmlp.engines.base import EngineSpec, RowMetrics, State, loss_weights
from fastmlp.engines.cuda.kernels.layout import make_layout, pad, padded, unpad
from fastmlp.engines.cuda.kernels.passes import CHUNK
from fastmlp.engines.cuda.kernels.programs import PLAIN, KernelSpec, Shape, apply_spec, phases
from fastmlp.engines.cuda.kernels.tensor_cores import FIRST_CAPABILITY, MMA_TILES
from fastmlp.engines.cuda.kernels.tiles import Tile
from fastmlp.engines.cuda.runtime import Launch, NoDeviceError, default_runtime
from fastmlp.errors import ConfigError, UnavailableError
from fastmlp.nn.blocks import RowSource, blocks
from fastmlp.nn.network import FloatArray

APPLIED = 4096  # maximum number of rows of a forward pass in inference
# Mini-batches up to this size are latency-bound: all training steps of a call run in one kernel launch. Larger ones are
# compute-bound and use the tiled kernels, with one launch per phase. The limit is estimated from memory traffic, not measured.
# Tensor cores always use the tiled kernels.
SMALL_BATCH = 256
SHAPE = Shape()
TILES = {"float32": Tile(), **MMA_TILES}  # the tile for each precision
TABLES = ("table", "alpha", "thresholds", "scales")
OF_TRAINING = (
    *("indices", "loss_weight", "loss", "correct", "scalars"),
    *("parameters", "m", "v", "gradients", "partial", "arena", "counter", "clock"),
)  # fmt: skip
PART = ("part", "no y", "part_indices", "no loss", "no correct")  # array arguments of `apply` in `forward`


@dataclass(eq=False)  # instances are compared and hashed by identity
class DeviceRows:
    """The handle that `CudaEngine.hold` returns.

    kind : options of the kernel that evaluates the rows
    count : number of rows
    arrays : x, y, indices, loss and correct in device memory, which is freed when the handle is deleted
    """

    kind: KernelSpec
    count: int
    arrays: list[Any]


@functools.cache
def usable() -> bool:
    """Return whether a test kernel can be compiled, loaded and run on the GPU.

    If there is a GPU but the test fails, a warning gives the reason. The check is fast if there is no GPU.
    """
    try:
        probe_device()
    except NoDeviceError:
        return False
    except UnavailableError as error:
        warnings.warn(f"backend 'cuda' cannot be used, falling back to the CPU: {error}", RuntimeWarning, stacklevel=2)
        return False
    return True


def probe_device() -> Any:
    """Run a test kernel with two grid-wide barriers on the device, and return the runtime of the device.

    Raises
    ------
    NoDeviceError : there is no device
    UnavailableError : the test kernel cannot be compiled, loaded or run
    """
    runtime = default_runtime()
    program, blocks = runtime.program("barriers", PLAIN, SHAPE), SHAPE.resident * runtime.blocks
    counter = runtime.put(np.zeros(1, np.uint64))
    runtime.launch(Launch(program, blocks, (counter, 2), together=True))
    if (arrived := int(runtime.get(counter)[0])) != 2 * blocks:
        raise UnavailableError(f"barrier test failed on {runtime.name}: {arrived} arrivals at 2 barriers of {blocks} blocks")
    return runtime


class CudaEngine:
    """Engine for an NVIDIA GPU; see `base.Engine` for its methods.

    Training data are copied to the device only when the caller passes a new array object. If the caller changes an array in
    place, the engine keeps using the old copy.

    Raises
    ------
    ConfigError : the dtype of the spec is not float32
    UnavailableError : there is no device, it does not support the precision, or a package is missing
    """

    name = "cuda"
    threads = 1

    def __init__(self, spec: EngineSpec, runtime: Any = None) -> None:
        if np.dtype(spec.dtype) != np.float32:
            raise ConfigError(f"backend 'cuda' computes in float32, not {np.dtype(spec.dtype)}; use backend 'numpy'")
        self.spec, self.runtime = spec, runtime or default_runtime()
        if spec.precision != "float32" and self.runtime.capability < FIRST_CAPABILITY:
            found, needed = (".".join(map(str, pair)) for pair in (self.runtime.capability, FIRST_CAPABILITY))
            raise UnavailableError(
                f"precision {spec.precision} needs a GPU of compute capability {needed} or more, "
                f"and {self.runtime.name} has {found}; use precision 'float32'"
            )
        self.rows = 0  # number of rows for which the arena is allocated, see `reserve`
        self.handles: dict[str, Any] = {}  # arrays on the device, by name
        self.resident: dict[str, Any] = {}  # the caller's arrays that have copies on the device
        self.held: WeakSet[DeviceRows] = WeakSet()  # handles in use; `close` frees their memory
        self.recorded: tuple[tuple[Any, ...], Any] = ((), None)  # launch arguments and the CUDA graph built from them
        network, scaling = spec.network, spec.scaling
        width = padded(network.sizes[0])
        for name, neutral in (("shift", 0.0), ("factor", 1.0)):
            values = neutral if scaling is None else getattr(scaling, name)
            self.upload(name, vector(values, network.sizes[0], width))
        self.upload("counter", np.zeros(1, np.uint64))

    def load(self, state: State) -> None:
        network = self.spec.network
        size = make_layout(network, 1).parameters
        slots = dict(zip(self.spec.optimizer.slots, state.slots, strict=False))
        empty = np.zeros(1, np.float32)
        self.upload("parameters", pad(network, state.parameters, size))
        for name in ("m", "v"):
            self.upload(name, pad(network, slots[name], size) if name in slots else empty)
        self.upload("gradients", np.zeros(size if self.spec.optimizer.max_grad_norm > 0 else 1, np.float32))
        self.upload("partial", np.zeros(-(-size // CHUNK)))
        self.step = state.step

    def state(self, slots: bool = True) -> State:
        network, get = self.spec.network, self.runtime.get
        vectors = [unpad(network, get(self.handles[name])) for name in self.spec.optimizer.slots if slots]
        whole = np.array(vectors, np.float32).reshape(-1, network.parameters)
        return State(unpad(network, get(self.handles["parameters"])), whole, self.step)

    def train(
        self,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        indices: npt.NDArray[np.int64],
        learning_rates: npt.NDArray[np.float64],
        weights: FloatArray | None = None,
    ) -> RowMetrics:
        spec, count = self.spec, len(indices)
        if count == 0:
            return RowMetrics(np.empty(0, np.float32), np.empty(0, bool))
        self.reserve(min(spec.batch_size, count))
        self.keep("x", x, widened)
        self.keep("y", y, np.ravel)
        self.upload("indices", indices.astype(np.int32))
        self.upload("loss_weight", loss_weights(indices, spec.batch_size, weights).astype(np.float32))
        for name, dtype in (("loss", np.float32), ("correct", np.bool_)):
            if name not in self.handles or self.handles[name].size != count:
                self.upload(name, np.empty(count, dtype))
        self.upload("scalars", spec.optimizer.scalars_by_kind(learning_rates, self.step, spec.network.l1, spec.network.l2))
        self.upload("clock", np.full(1, self.step))
        self.start(self.kernel_spec(x, y), count, len(learning_rates))
        self.step += len(learning_rates)
        return RowMetrics(self.runtime.get(self.handles["loss"]), self.runtime.get(self.handles["correct"]))

    def forward(self, x: npt.NDArray[Any]) -> FloatArray:
        z = np.empty((len(x), self.spec.network.sizes[-1]), np.float32)
        most = min(APPLIED, max(len(x), 1))
        # A forward pass does not read targets, but the compiled kernel has an argument for them, which must have a type.
        classes = self.spec.network.loss_name == "cross-entropy"
        kind = apply_spec(self.kernel_spec(x, np.empty((0,) if classes else (0, 0))))
        apply = self.prepare_apply(kind, most)
        if "part_indices" not in self.handles or self.handles["part_indices"].size < most:
            self.upload("part_indices", np.arange(most, dtype=np.int32))
            self.upload("no y", np.zeros(1, np.int32 if classes else np.float32))
            self.upload("no loss", np.zeros(1, np.float32))
            self.upload("no correct", np.zeros(1, np.bool_))
        for first in range(0, len(x), most):
            part = x[first : first + most]
            self.upload("part", widened(part))
            apply(*[self.handles[name] for name in PART], 0, len(part), 0)
            z[first : first + len(part)] = self.outputs(len(part))
        return z

    def hold(self, x: RowSource, y: npt.NDArray[Any]) -> DeviceRows:
        runtime, count, width = self.runtime, len(x), padded(x.shape[1])
        rows = runtime.empty(count * width, x.dtype)
        for place, block in blocks(x):
            runtime.fill(rows, widened(block), place.start * width)
        indices, loss, correct = np.arange(count, dtype=np.int32), np.zeros(count, np.float32), np.zeros(count, np.bool_)
        arrays = [rows, *(runtime.put(array) for array in (np.ravel(y), indices, loss, correct))]
        held = DeviceRows(apply_spec(self.kernel_spec(x, y)), count, arrays)
        self.held.add(held)
        return held

    def evaluate(self, held: DeviceRows, z: FloatArray | None = None) -> RowMetrics:
        most = min(APPLIED, max(held.count, 1))
        apply = self.prepare_apply(held.kind, most)
        for first in range(0, held.count, most):
            rows = min(most, held.count - first)
            apply(*held.arrays, first, rows, 1)
            if z is not None:
                z[first : first + rows] = self.outputs(rows)
        *_, loss, correct = held.arrays
        return RowMetrics(self.runtime.get(loss), self.runtime.get(correct))

    def close(self) -> None:
        """Free the device memory."""
        self.recorded = ((), None)
        self.handles.clear()
        self.resident.clear()
        for held in self.held:
            held.arrays.clear()

    # -------------------------------------------------------------------------------------------- the device

    def kernel_spec(self, x: RowSource, y: npt.NDArray[Any]) -> KernelSpec:
        """Return the options with which the kernels are compiled."""
        network, optimizer = self.spec.network, self.spec.optimizer
        return KernelSpec(
            make_layout(network, 1).activations,
            network.loss_name,
            network.output or "",
            optimizer.name,
            x.dtype == np.uint8,
            y.ndim == 1,
            any(layer.dropout for layer in network.layers),
            network.l1 > 0 or network.l2 > 0,
            optimizer.max_grad_norm > 0,
            self.spec.precision,
        )

    def shape(self, rows: int) -> Shape | Tile:
        """Return how mini-batches of `rows` rows are divided among the blocks of a kernel."""
        precision = self.spec.precision
        return SHAPE if rows <= SMALL_BATCH and precision == "float32" else TILES[precision]

    def upload(self, name: str, array: npt.NDArray[Any]) -> None:
        """Copy an array to `self.handles[name]` on the device. The memory is reused if size and dtype are unchanged."""
        handle = self.handles.get(name)
        if handle is not None and (handle.size, handle.dtype) == (array.size, array.dtype):
            self.runtime.fill(handle, array)
        else:
            self.handles[name] = None  # frees the old memory before the new allocation
            self.handles[name] = self.runtime.put(array)

    def keep(self, name: str, array: npt.NDArray[Any], flat: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> None:
        """Copy an array of the caller, flattened by `flat`, to the device, unless this array object is already there."""
        if self.resident.get(name) is not array:
            self.resident[name] = None
            self.upload(name, flat(array))
            self.resident[name] = array

    def reserve(self, rows: int) -> None:
        """Ensure that the arena, the workspace for activations and gradients, is large enough for `rows` rows.

        Its contents are not preserved between calls.
        """
        if rows > self.rows:
            self.layout = make_layout(self.spec.network, rows)
            for name in TABLES:
                self.upload(name, getattr(self.layout, name))
            self.upload("arena", np.zeros(self.layout.arena, np.float32))
            self.rows = rows

    def prepare_apply(self, kind: KernelSpec, most: int) -> Callable[..., None]:
        """Return a function that launches the kernel `apply` for at most `most` rows.

        Its arguments are x, y, indices, loss, correct, start, rows and evaluates.
        """
        shape = self.shape(most)
        program = self.runtime.program("apply", kind, shape)
        self.reserve(most)
        here, loss_parameter = self.handles, np.float32(self.spec.network.loss_parameter)

        def apply(x: Any, y: Any, indices: Any, loss: Any, correct: Any, *numbers: int) -> None:
            self.upload("counter", np.zeros(1, np.uint64))
            network, scaling = [here[name] for name in TABLES], (here["shift"], here["factor"])
            of_rows = (y, loss_parameter, indices, loss, correct)
            stores = (here["parameters"], here["arena"], here["counter"])
            arguments = (*network, x, *scaling, *of_rows, *stores, *numbers)
            self.runtime.launch(Launch(program, shape.resident * self.runtime.blocks, arguments, together=True))

        return apply

    def outputs(self, rows: int) -> FloatArray:
        """Return the pre-activations of the output layer, (rows, outputs), that the last launch of `apply` computed."""
        outputs = self.spec.network.sizes[-1]
        width = padded(outputs)
        found: FloatArray = self.runtime.get(self.handles["arena"], self.layout.last_output, rows * width)
        return found.reshape(-1, width)[:, :outputs]

    def start(self, kind: KernelSpec, count: int, steps: int) -> None:
        """Launch all phases of `steps` training steps, in one kernel or in a CUDA graph with one launch per phase."""
        last = steps * phases(len(self.spec.network.layers), kind.clips)
        whole = self.launch(kind, count, 0, last)
        if isinstance(self.shape(self.spec.batch_size), Shape):
            self.upload("counter", np.zeros(1, np.uint64))
            self.runtime.launch(whole)
            return
        key = (whole.program, last, *whole.arguments)
        if not (
            len(key) == len(self.recorded[0]) and all(a is b or a == b for a, b in zip(key, self.recorded[0], strict=True))
        ):
            self.recorded = ((), None)
            launches = [self.launch(kind, count, phase, phase + 1) for phase in range(last)]
            self.recorded = key, self.runtime.record(launches)
        self.recorded[1]()

    def launch(self, kind: KernelSpec, count: int, first: int, end: int) -> Launch:
        """Return the launch of phases `first` to `end` - 1 of a training call with `count` rows.

        The launch is cooperative if it has several phases, because they are separated by grid-wide barriers.
        """
        spec, here, shape = self.spec, self.handles, self.shape(self.spec.batch_size)
        share = spec.network.label_smoothing / spec.network.sizes[-1]
        on_value, off_value = np.float32(1 - spec.network.label_smoothing + share), np.float32(share)
        arguments = (
            *[here[name] for name in (*TABLES, "x", "shift", "factor", "y")],
            on_value, off_value, np.float32(spec.network.loss_parameter),
            *[here[name] for name in OF_TRAINING], spec.batch_size, count,
            first, end, np.uint64(spec.seed), np.float32(spec.optimizer.max_grad_norm),
        )  # fmt: skip
        program = self.runtime.program("train", kind, shape)
        return Launch(program, shape.resident * self.runtime.blocks, arguments, together=end - first > 1)


def widened(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return rows padded with zeros to the width of the device layout, as a flat array."""
    whole = np.zeros((len(x), padded(x.shape[1])), x.dtype)
    whole[:, : x.shape[1]] = x
    return whole.reshape(-1)


def vector(values: Any, features: int, width: int) -> npt.NDArray[np.float32]:
    """Return a float32 vector of `width` elements: one value per feature, or one value for all, padded with zeros."""
    whole = np.zeros(width, np.float32)
    whole[:features] = values
    return whole
