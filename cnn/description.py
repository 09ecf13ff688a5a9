"""Description of a convolutional network: blocks, dense layers, and output shapes. This module does not need torch.

A block is a convolution, ReLU, pooling and regularization, in this order. The output of the last block is flattened, and is
followed by dense layers with ReLU and a dense output layer with one unit per class. The layers of the network are named
block1, block2, …, flatten, dense1, …, output. The layers of a block are named conv, relu, pool and regularize.

Output sizes are computed as in PyTorch's Conv2d and MaxPool2d: (size + 2 * padding - kernel) / stride + 1, rounded down. The
pooling "global" is global average pooling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import DescriptionError

POOLINGS = ("none", "max", "avg", "global")
REGULARISATIONS = ("none", "batch", "dropout", "dropout2d")
INITIALISATIONS = ("random", "xavier", "he", "orthogonal")
FLATTEN = "flatten"
OUTPUT = "output"
MAX_SIZE = 2**31 - 1  # largest size, kernel, stride or padding; PyTorch uses 32-bit integers for some of them
MAX_OUTPUTS = 2**28  # outputs of a layer for one image; as float32, they take 1 GiB

Shape = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True, kw_only=True)
class Block:
    """A convolution with ReLU, pooling and regularization. Kernels, strides and paddings are square, in pixels.

    Parameters
    ----------
    filters : number of output channels of the convolution
    kernel, stride, padding : parameters of the convolution
    pool : pooling, one of `POOLINGS`
    pool_kernel, pool_stride, pool_padding : parameters of max or average pooling; a stride of 0 means pool_kernel
    regularize : regularization, one of `REGULARISATIONS`: none, batch normalization, element-wise dropout, or "dropout2d",
        which drops whole channels (Tompson et al. 2015)
    dropout : dropout rate; used only if regularize is "dropout" or "dropout2d"

    Raises
    ------
    DescriptionError : a number is out of range or a name is unknown
    """

    filters: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: str = "none"
    pool_kernel: int = 2
    pool_stride: int = 0
    pool_padding: int = 0
    regularize: str = "none"
    dropout: float = 0.25

    def __post_init__(self) -> None:
        check_minimum(self, 1, "filters", "kernel", "stride", "pool_kernel")
        check_minimum(self, 0, "padding", "pool_stride", "pool_padding")
        check_name("pool", self.pool, POOLINGS)
        check_name("regularize", self.regularize, REGULARISATIONS)
        if not 0 <= self.dropout < 1:
            raise DescriptionError(f"dropout must be at least 0 and below 1, not {self.dropout}", settings=("dropout",))
        if 2 * self.pool_padding > self.pool_kernel:
            raise DescriptionError(
                f"pool_padding may be at most half of pool_kernel {self.pool_kernel}, not {self.pool_padding}",
                settings=("pool_padding", "pool_kernel"),
            )

    def output_shapes(self, shape: Shape) -> Iterator[tuple[str, Shape]]:
        """Yield ("conv", shape) and, if the block has pooling, ("pool", shape): the output shapes for an input shape.

        Raises
        ------
        DescriptionError : an output would have a height or width of 0
        """
        _, height, width = shape
        sides = self._sides((height, width), self.kernel, self.stride, self.padding)
        if min(sides) < 1:
            raise DescriptionError(
                f"a convolution of {self.kernel}x{self.kernel} with padding {self.padding} does not fit into {height}x{width}",
                settings=("kernel", "padding"),
            )
        yield "conv", (self.filters, *sides)
        if self.pool in ("max", "avg"):
            before, stride = sides, self.pool_stride or self.pool_kernel
            sides = self._sides(before, self.pool_kernel, stride, self.pool_padding)
            if min(sides) < 1:
                raise DescriptionError(
                    f"{self.pool} pooling of {self.pool_kernel}x{self.pool_kernel} would shrink "
                    f"{before[0]}x{before[1]} to zero size; set pool to none for this block",
                    settings=("pool",),
                )
        elif self.pool == "global":
            sides = 1, 1
        if self.pool != "none":
            yield "pool", (self.filters, *sides)

    @staticmethod
    def _sides(sides: tuple[int, int], kernel: int, stride: int, padding: int) -> tuple[int, int]:
        """Return height and width after a convolution or pooling; they are 0 or negative if the kernel does not fit."""
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in sides)
        return height, width


@dataclass(frozen=True, kw_only=True)
class Description:
    """A convolutional network for classification.

    Parameters
    ----------
    image_shape : (height, width, channels) of the images
    classes : number of classes, 2 or more
    blocks : one or more blocks
    dense : sizes of the dense layers before the output layer
    init : initialization of the weights, one of `INITIALISATIONS`; "random" is PyTorch's default

    Raises
    ------
    DescriptionError : a number is out of range, a name is unknown, or the output of a layer would have a height or width of 0,
        or take more than 1 GiB for one image

    Examples
    --------
    >>> network = Description(image_shape=(28, 28, 1), classes=10, blocks=make_blocks((16, 32), pool=("max", "global")))
    >>> network.shapes()
    {'block1.conv': (16, 28, 28), 'block1.pool': (16, 14, 14), 'block2.conv': (32, 14, 14), 'block2.pool': (32, 1, 1)}
    >>> network.features, network.label
    (32, '28x28x1-16-32')
    """

    image_shape: tuple[int, int, int]
    classes: int
    blocks: tuple[Block, ...]
    dense: tuple[int, ...] = ()
    init: str = "random"

    def __post_init__(self) -> None:
        if not self.blocks:
            raise DescriptionError(
                "a convolutional network needs at least one block; set filters, such as 16,32", settings=("filters",)
            )
        if min(self.dense, default=1) < 1:
            raise DescriptionError(f"sizes of dense layers must be 1 or more, not {min(self.dense)}", settings=("dense",))
        if self.classes < 2:
            raise DescriptionError(f"a classifier needs 2 classes or more, not {self.classes}")
        check_sizes(self.image_shape, self.classes)
        check_name("init", self.init, INITIALISATIONS)
        if self.largest_output > MAX_OUTPUTS:
            message = f"a layer has {self.largest_output:,} outputs for one image, more than {MAX_OUTPUTS:,}"
            message += "; use smaller images, less padding or smaller layers"
            raise DescriptionError(message, settings=("image_size", "padding", "filters", "dense"))

    def shapes(self) -> dict[str, Shape]:
        """Return the output shape (channels, height, width) of each convolution and pooling layer, by layer name."""
        height, width, channels = self.image_shape
        shape: Shape = (channels, height, width)
        shapes: dict[str, Shape] = {}
        for number, block in enumerate(self.blocks, start=1):
            try:
                block_shapes = dict(block.output_shapes(shape))
            except DescriptionError as error:
                raise DescriptionError(f"block {number} of {len(self.blocks)}: {error}", settings=error.settings) from None
            shapes |= {f"block{number}.{name}": output for name, output in block_shapes.items()}
            shape = list(block_shapes.values())[-1]
        return shapes

    @property
    def features(self) -> int:
        """Number of features: the size of the flattened output of the last block."""
        channels, height, width = list(self.shapes().values())[-1]
        return channels * height * width

    @property
    def largest_output(self) -> int:
        """Number of outputs of the largest layer for one image."""
        return max(self.classes, *self.dense, *map(math.prod, self.shapes().values()))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors in the state dict of the network, by name, without building the network."""
        shapes: dict[str, tuple[int, ...]] = {}
        channels, size = self.image_shape[2], self.features
        for number, block in enumerate(self.blocks, start=1):
            name, channels_in, channels = f"block{number}", channels, block.filters
            shapes[f"{name}.conv.weight"] = channels, channels_in, block.kernel, block.kernel
            shapes[f"{name}.conv.bias"] = (channels,)
            if block.regularize == "batch":
                parts = ("weight", "bias", "running_mean", "running_var")
                shapes |= {f"{name}.regularize.{part}": (channels,) for part in parts}
                shapes[f"{name}.regularize.num_batches_tracked"] = ()
        names = [*(f"dense{number}.0" for number in range(1, len(self.dense) + 1)), OUTPUT]
        for name, width in zip(names, (*self.dense, self.classes), strict=True):
            shapes |= {f"{name}.weight": (width, size), f"{name}.bias": (width,)}
            size = width
        return shapes

    @property
    def label(self) -> str:
        """Short name, such as 28x28x1-16-32-d128."""
        sizes = [*(str(block.filters) for block in self.blocks), *(f"d{size}" for size in self.dense)]
        return "-".join(["x".join(map(str, self.image_shape)), *sizes])

    def table(self) -> dict[str, Any]:
        """Return the description as a dict that can be written as JSON; `from_table` is the inverse."""
        return asdict(self)


@dataclass(frozen=True)
class BackboneDescription:
    """Description of a torchvision classification network.

    Parameters
    ----------
    backbone : name of the network in torchvision, such as "resnet18"
    image_shape : (height, width, channels) of the images
    classes : number of classes

    Raises
    ------
    DescriptionError : a number is out of range
    """

    backbone: str
    image_shape: tuple[int, int, int]
    classes: int

    def __post_init__(self) -> None:
        check_sizes(self.image_shape, self.classes)

    @property
    def label(self) -> str:
        """Short name, such as 32x32x3-resnet18."""
        return f"{'x'.join(map(str, self.image_shape))}-{self.backbone}"

    def table(self) -> dict[str, Any]:
        """Return the description as a dict that can be written as JSON; `read_description` is the inverse."""
        return {"backbone": self.backbone, "image_shape": self.image_shape, "classes": self.classes}


AnyDescription = Description | BackboneDescription

# Types of the values of a description in JSON, by the type of the field.
TYPES: dict[Any, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "tuple[int, int, int]": (list, tuple),
    "tuple[int, ...]": (list, tuple),
    "tuple[Block, ...]": (list, tuple),
}
REQUIRED = {Block: {"filters"}, Description: {"image_shape", "classes", "blocks", "dense"}}


def read_description(table: object) -> AnyDescription:
    """Return the description from the result of `Description.table` or `BackboneDescription.table`, possibly from JSON.

    Raises
    ------
    DescriptionError : the table does not describe a valid network
    """
    if not isinstance(table, dict) or "backbone" not in table:
        return from_table(table)
    values = check_table(table, BackboneDescription)
    return BackboneDescription(values["backbone"], read_integers("image_shape", values["image_shape"], 3), values["classes"])


def from_table(table: object) -> Description:
    """Return the description from the result of `Description.table`, in which JSON may have replaced tuples with lists.

    Raises
    ------
    DescriptionError : the table does not describe a valid network
    """
    values = check_table(table, Description)
    blocks = tuple(Block(**check_table(block, Block)) for block in values["blocks"])
    lists = {
        "image_shape": read_integers("image_shape", values["image_shape"], 3),
        "dense": read_integers("dense", values["dense"]),
    }
    return Description(**(values | lists | {"blocks": blocks}))


def check_table(table: object, kind: type) -> dict[str, Any]:
    """Return the values of the fields of a dataclass from a dict; raise DescriptionError for other names or types."""
    what = "invalid network description: "
    if not isinstance(table, dict):
        raise DescriptionError(f"{what}a {type(table).__name__} instead of a dict")
    types = {one.name: TYPES[one.type] for one in fields(kind)}
    required = REQUIRED.get(kind, types.keys())
    if missing := required - table.keys():
        raise DescriptionError(f"{what}entry {min(missing)!r} is missing")
    if unknown := table.keys() - types.keys():
        raise DescriptionError(f"{what}unknown entry {next(iter(unknown))!r}")
    for name, value in table.items():
        if type(value) not in types[name]:
            expected = " or ".join(one.__name__ for one in types[name])
            raise DescriptionError(f"{what}{name} must be {expected}, not {type(value).__name__}")
    return dict(table)


def read_integers(name: str, values: Sequence[Any], count: int | None = None) -> Any:
    """Return a list of integers as a tuple; raise DescriptionError for other types, or for another length than `count`."""
    if count not in (None, len(values)) or any(type(value) is not int for value in values):
        expected = "integers" if count is None else f"{count} integers"
        raise DescriptionError(f"invalid network description: {name} must be a list of {expected}")
    return tuple(values)


def make_blocks(filters: Sequence[int], **values: Any) -> tuple[Block, ...]:
    """Return blocks from keyword arguments of `Block`, each with one value for all blocks or a list of one value per block.

    A single value of `pool` (or a sequence of length 1) applies to all blocks except the last one, as in most published
    networks, because the features are the output of the last block. If there is only one block, it is pooled. To choose the
    pooling of every block, including the last one, pass a sequence with one name per block.

    Raises
    ------
    DescriptionError : a sequence has the wrong length, a number is out of range, or a name is unknown

    Examples
    --------
    >>> [block.pool for block in make_blocks((8, 16, 32), pool="max")]
    ['max', 'max', 'none']
    >>> [block.kernel for block in make_blocks((8, 16), kernel=(5, 3))]
    [5, 3]
    """
    count = len(filters)
    columns = {name: per_block(name, value, count) for name, value in values.items()}
    if "pool" in values and count > 1 and (isinstance(values["pool"], str) or len(values["pool"]) == 1):
        columns["pool"][-1] = "none"
    return tuple(
        Block(filters=size, **{name: column[number] for name, column in columns.items()}) for number, size in enumerate(filters)
    )


def per_block(name: str, value: Any, count: int) -> list[Any]:
    """Return a list of `count` values. A single value, or a sequence of length 1, is repeated.

    Raises
    ------
    DescriptionError : the length of the sequence is neither 1 nor `count`
    """
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) == 1:
        return [*value] * count
    if len(value) != count:
        message = f"{name} has {len(value)} values for {count} blocks; give one value, or one per block"
        raise DescriptionError(message, settings=(name,))
    return [*value]


def check_minimum(settings: Any, minimum: int, *names: str) -> None:
    """Raise DescriptionError if one of the named settings is less than `minimum`, or more than MAX_SIZE."""
    for name in names:
        if getattr(settings, name) < minimum:
            raise DescriptionError(f"{name} must be {minimum} or more, not {getattr(settings, name)}", settings=(name,))
        if getattr(settings, name) > MAX_SIZE:
            raise DescriptionError(f"{name} must be at most {MAX_SIZE:,}, not {getattr(settings, name):,}", settings=(name,))


def check_sizes(image_shape: tuple[int, int, int], classes: int) -> None:
    """Raise DescriptionError if images have no pixels or too many, or if there are too many classes."""
    if min(image_shape) < 1 or math.prod(image_shape) > MAX_OUTPUTS:
        shown = "x".join(map(str, image_shape))
        message = f"images must have between 1 and {MAX_OUTPUTS:,} values, not {shown}; resize them"
        raise DescriptionError(message, settings=("image_size",))
    if not 1 <= classes <= MAX_SIZE:
        raise DescriptionError(f"the number of classes must be between 1 and {MAX_SIZE:,}, not {classes:,}")


def check_name(setting: str, name: str, known: Sequence[str]) -> None:
    """Raise DescriptionError if a setting is not one of the known names."""
    if name not in known:
        raise DescriptionError(f"{setting} must be one of {', '.join(known)}, not {name!r}", settings=(setting,))
