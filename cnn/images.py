"""Scaling, augmentation and batching of images.

Images are stored as arrays of shape (n, height * width * channels); batches are tensors of shape (n, channels, height, width).
Only training batches are augmented. The transforms are those of torchvision.transforms.v2, drawn separately for each image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from .errors import DescriptionError
from .network import load_torchvision

Transform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Scaling:
    """Scaling of pixels: (x - shift) * factor.

    shift, factor : float32 arrays of shape (1,) (the same for all pixels), (channels,), or (height * width * channels,)
    """

    shift: npt.NDArray[np.float32]
    factor: npt.NDArray[np.float32]

    def tensors(self, image_shape: tuple[int, int, int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return shift and factor as tensors that broadcast to batches (n, channels, height, width)."""
        return tuple(self._tensor(values, image_shape, device) for values in (self.shift, self.factor))  # type: ignore[return-value]

    @staticmethod
    def _tensor(values: npt.NDArray[np.float32], image_shape: tuple[int, int, int], device: torch.device) -> torch.Tensor:
        shape = image_shape if values.size == np.prod(image_shape) else (1, 1, values.size)
        return torch.from_numpy(np.array(values, np.float32).reshape(shape)).permute(2, 0, 1).to(device)


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of training images.

    Parameters
    ----------
    flip : probability of a horizontal flip
    shift : maximum random shift in each direction, in pixels; the uncovered border is filled with 0, before scaling
    erase : probability that a random rectangle, 2 to 33 % of the image area, is set to 0, before scaling

    Raises
    ------
    DescriptionError : a value is out of range
    """

    flip: float = 0.0
    shift: int = 0
    erase: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                message = f"{name} must be a probability between 0 and 1, not {getattr(self, name):g}"
                raise DescriptionError(message, settings=(name,))
        if self.shift < 0:
            raise DescriptionError(f"shift must be 0 or more pixels, not {self.shift}", settings=("shift",))

    def transform(self, height: int, width: int) -> Transform | None:
        """Return the transform of an image of shape (channels, height, width), or None if no augmentation is enabled.

        Raises
        ------
        MissingError : torchvision is not installed, or is incompatible with the installed torch
        """
        if not (self.flip or self.shift or self.erase):
            return None
        load_torchvision()
        from torchvision.transforms import v2

        steps: list[Any] = []
        if self.flip:
            steps.append(v2.RandomHorizontalFlip(self.flip))
        if self.shift:
            steps.append(v2.RandomCrop((height, width), padding=self.shift))
        if self.erase:
            steps.append(v2.RandomErasing(self.erase))
        composed: Transform = v2.Compose(steps)
        return composed


class Pixels(Protocol):
    """Interface of image data: an array in memory, a memory-mapped array, or a subset of the rows of either."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> npt.NDArray[Any]: ...


class Images:
    """Images from which batches are made. Memory-mapped images are read batch by batch.

    Parameters
    ----------
    pixels : array of shape (n, height * width * channels), uint8 or float32, one image per row, channels last
    image_shape : (height, width, channels)
    scaling : scaling of the pixels; None if the pixels are not scaled
    device : device of the batches
    """

    def __init__(
        self,
        pixels: Pixels,
        image_shape: tuple[int, int, int],
        scaling: Scaling | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.pixels = pixels
        self.image_shape = image_shape
        self.device = torch.device(device)
        self.scaling = None if scaling is None else scaling.tensors(image_shape, self.device)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, rows: npt.NDArray[np.int64] | slice, transform: Transform | None = None) -> torch.Tensor:
        """Return a batch of transformed and scaled images.

        The result has shape (rows, channels, height, width), dtype float32 and memory format channels_last.
        """
        selected = np.ascontiguousarray(self.pixels[rows]).reshape(-1, *self.image_shape)
        x = torch.from_numpy(selected).permute(0, 3, 1, 2)
        if transform is not None:
            x = torch.stack([transform(image) for image in x]).contiguous(memory_format=torch.channels_last)
        x = x.to(self.device, non_blocking=True).to(torch.float32)
        if self.scaling is not None:
            shift, factor = self.scaling
            x = (x - shift) * factor
        return x
