"""Description of a convolutional network: blocks, dense layers, and output shapes. This module does not need torch.

A block is a convolution, ReLU, pooling and regularization, in this order. The output of the last block is flattened, and is
followed by dense layers with ReLU and a dense output layer with one unit per class. The layers of the network are named
block1, block2, …, flatten, dense1, …, output. The layers of a block are named conv, relu, pool and regularize.

Output sizes are computed as in PyTorch's Conv2d and MaxPool2d: (size + 2 * padding - kernel) / stride + 1, rounded down. The
pooling "global" is global average pooling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .errors import DescriptionError

POOLINGS = ("none", "max", "avg", "global")
REGULARISATIONS = ("none", "batch", "dropout")
INITIALISATIONS = ("random", "xavier", "he", "orthogonal")
FLATTEN = "flatten"

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
    regularize : regularization, one of `REGULARISATIONS`: none, batch normalization, or element-wise dropout
    dropout : dropout rate; used only if regularize is "dropout"

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
            raise DescriptionError(f"dropout must be at least 0 and below 1, not {self.dropout:g}", settings=("dropout",))
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
    DescriptionError : a number is out of range, a name is unknown, or the output of a block would have a height or width of 0

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
        check_name("init", self.init, INITIALISATIONS)
        self.shapes()

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
    def label(self) -> str:
        """Short name, such as 28x28x1-16-32-d128."""
        sizes = [*(str(block.filters) for block in self.blocks), *(f"d{size}" for size in self.dense)]
        return "-".join(["x".join(map(str, self.image_shape)), *sizes])

    def table(self) -> dict[str, Any]:
        """Return the description as a dict that can be written as JSON; `from_table` is the inverse."""
        return asdict(self)


def from_table(table: Mapping[str, Any]) -> Description:
    """Return the description from the result of `Description.table`, in which JSON may have replaced tuples with lists.

    Raises
    ------
    DescriptionError : the table does not describe a valid network
    """
    try:
        lists: dict[str, Any] = {name: tuple(table[name]) for name in ("image_shape", "dense")}
        lists["blocks"] = tuple(Block(**block) for block in table["blocks"])
        return Description(**(dict(table) | lists))
    except (TypeError, KeyError, ValueError) as error:
        raise DescriptionError(f"not a description of a network: {error}") from error


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
    """Raise DescriptionError if one of the named settings is less than `minimum`."""
    for name in names:
        if getattr(settings, name) < minimum:
            raise DescriptionError(f"{name} must be {minimum} or more, not {getattr(settings, name)}", settings=(name,))


def check_name(setting: str, name: str, known: Sequence[str]) -> None:
    """Raise DescriptionError if a setting is not one of the known names."""
    if name not in known:
        raise DescriptionError(f"{setting} must be one of {', '.join(known)}, not {name!r}", settings=(setting,))
