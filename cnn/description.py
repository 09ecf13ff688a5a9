"""A convolutional network as data: its blocks, its dense layers, and the shape after every step. No torch in here.

A block is a convolution, ReLU, a pooling and a regularisation, in this order; then the map is flattened, dense layers
with ReLU follow, and a dense layer with an output per class. Layers have names: block1, block2, …, flatten, dense1,
…, output; inside a block conv, relu, pool and regularize.

Sizes follow PyTorch's Conv2d and MaxPool2d, rounded down: (size + 2 padding - kernel) / stride + 1. The pooling
"global" averages each map to a single number, whatever its size.
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
    """A convolution with ReLU, a pooling and a regularisation. Kernels, strides and paddings are square, in pixels.

    Parameters
    ----------
    filters : channels of the output
    kernel, stride, padding : of the convolution
    pool : a name of `POOLINGS`
    pool_kernel, pool_stride, pool_padding : of max and avg; a stride of 0 is that of the kernel
    regularize : a name of `REGULARISATIONS`: batch normalisation, or dropout of single values
    dropout : share of the values that are dropped, for regularize "dropout"

    Raises
    ------
    DescriptionError : a value that cannot be
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
        check_least(self, 1, "filters", "kernel", "stride", "pool_kernel")
        check_least(self, 0, "padding", "pool_stride", "pool_padding")
        check_name("pool", self.pool, POOLINGS)
        check_name("regularize", self.regularize, REGULARISATIONS)
        if not 0 <= self.dropout < 1:
            raise DescriptionError(f"dropout must be at least 0 and below 1, not {self.dropout:g}", settings=("dropout",))
        if 2 * self.pool_padding > self.pool_kernel:
            raise DescriptionError(
                f"pool_padding may be at most half of pool_kernel, not {self.pool_padding} of {self.pool_kernel}",
                settings=("pool_padding", "pool_kernel"),
            )

    def steps(self, shape: Shape) -> Iterator[tuple[str, Shape]]:
        """Name and output shape of each step from an input shape; raises DescriptionError where nothing would be left."""
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
                    f"{before[0]}x{before[1]} to nothing; set pool to none for this block",
                    settings=("pool",),
                )
        elif self.pool == "global":
            sides = 1, 1
        if self.pool != "none":
            yield "pool", (self.filters, *sides)

    @staticmethod
    def _sides(sides: tuple[int, int], kernel: int, stride: int, padding: int) -> tuple[int, int]:
        """Height and width after a convolution or a pooling, 0 or less for none."""
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in sides)
        return height, width


@dataclass(frozen=True, kw_only=True)
class Description:
    """A whole network.

    Parameters
    ----------
    image_shape : (height, width, channels) of the images
    classes : number of outputs
    blocks : at least one
    dense : sizes of the dense layers before the output
    init : a name of `INITIALISATIONS`; "random" is PyTorch's default

    Raises
    ------
    DescriptionError : a value that cannot be, or a map that would shrink to nothing, by the name of its block

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
        """Output shape (channels, height, width) of each convolution and pooling, by name."""
        height, width, channels = self.image_shape
        last: Shape = (channels, height, width)
        found: dict[str, Shape] = {}
        for number, block in enumerate(self.blocks, start=1):
            try:
                steps = dict(block.steps(last))
            except DescriptionError as error:
                raise DescriptionError(f"block {number} of {len(self.blocks)}: {error}", settings=error.settings) from None
            found |= {f"block{number}.{name}": shape for name, shape in steps.items()}
            last = list(steps.values())[-1]
        return found

    @property
    def features(self) -> int:
        """Numbers that the flattened last block gives of an image."""
        channels, height, width = list(self.shapes().values())[-1]
        return channels * height * width

    @property
    def label(self) -> str:
        """A short name, such as 28x28x1-16-32-d128."""
        sizes = [*(str(block.filters) for block in self.blocks), *(f"d{size}" for size in self.dense)]
        return "-".join(["x".join(map(str, self.image_shape)), *sizes])

    def table(self) -> dict[str, Any]:
        """The same as plain values, for JSON; `from_table` reads them back."""
        return asdict(self)


def from_table(table: Mapping[str, Any]) -> Description:
    """A description from what `Description.table` gave, also after JSON made lists of tuples.

    Raises
    ------
    DescriptionError : the table is none of a network
    """
    try:
        lists: dict[str, Any] = {name: tuple(table[name]) for name in ("image_shape", "dense")}
        lists["blocks"] = tuple(Block(**block) for block in table["blocks"])
        return Description(**(dict(table) | lists))
    except (TypeError, KeyError, ValueError) as error:
        raise DescriptionError(f"not the description of a network: {error}") from error


def make_blocks(filters: Sequence[int], **values: Any) -> tuple[Block, ...]:
    """Blocks from settings that have one value for all blocks, or a sequence with one for each.

    A single `pool` stands after every block but the last of several, as in most published networks: the maps of the last
    block are what the features come from. A sequence says it for each.

    Raises
    ------
    DescriptionError : a sequence of another length, or a value that cannot be

    Examples
    --------
    >>> [block.pool for block in make_blocks((8, 16, 32), pool="max")]
    ['max', 'max', 'none']
    >>> [block.kernel for block in make_blocks((8, 16), kernel=(5, 3))]
    [5, 3]
    """
    count = len(filters)
    columns = {name: spread(name, value, count) for name, value in values.items()}
    if "pool" in values and count > 1 and (isinstance(values["pool"], str) or len(values["pool"]) == 1):
        columns["pool"][-1] = "none"
    return tuple(
        Block(filters=size, **{name: column[number] for name, column in columns.items()}) for number, size in enumerate(filters)
    )


def spread(name: str, value: Any, count: int) -> list[Any]:
    """One value for each of `count` blocks."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) == 1:
        return [*value] * count
    if len(value) != count:
        message = f"{name} has {len(value)} values for {count} blocks; give one, or one for each block"
        raise DescriptionError(message, settings=(name,))
    return [*value]


def check_least(settings: Any, least: int, *names: str) -> None:
    """Raise DescriptionError if a whole number among the settings is too small."""
    for name in names:
        if getattr(settings, name) < least:
            raise DescriptionError(f"{name} must be {least} or more, not {getattr(settings, name)}", settings=(name,))


def check_name(setting: str, name: str, known: Sequence[str]) -> None:
    """Raise DescriptionError if a setting is not one of the known names."""
    if name not in known:
        raise DescriptionError(f"{setting} must be one of {', '.join(known)}, not {name!r}", settings=(setting,))
