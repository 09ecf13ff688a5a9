"""Conversion of images to grey or colour pixels: orientation, number formats, transparency and size.

Sources: the conversion from colour to grey is the luma of ITU-R BT.601; the orientation of photos is the tag Orientation of
EXIF (CIPA DC-008, section 4.6.4).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

ORIENTATION = 0x0112  # number of the EXIF tag
# For each orientation, the name of Pillow's transposition that makes the image upright. ImageOps.exif_transpose is not used,
# because it also rewrites all other tags, which fails if one of them is damaged.
TRANSPOSE = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
MOST_DARK = 0.01  # a transparent image is light if at most this fraction of its visible pixels is darker than mid-grey


def orientation(image: PillowImage) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 if it has none, or if its EXIF data are damaged.

    Damaged EXIF data are ignored, as by browsers: the pixels of such an image can still be read.
    """
    try:
        value = image.getexif().get(ORIENTATION)
    except (SyntaxError, struct.error):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def decoded(image: PillowImage) -> PillowImage:
    """Decode an opened image, and return it upright in mode RGBA if it has transparency, else in its own mode or RGB."""
    from PIL import Image

    image.load()  # transposes TIFF images, and removes their orientation
    if (name := TRANSPOSE.get(orientation(image))) is not None:
        image = image.transpose(Image.Transpose[name])
    if image.mode in ("L", "RGB", "F") or image.mode.startswith("I"):
        transparent = image.has_transparency_data and image.mode in ("L", "RGB")
        return image.convert("RGBA") if transparent else image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def converted(image: PillowImage, channels: int) -> PillowImage:
    """Convert an image that `decoded` returned as described in `images.load_images`, without resizing it.

    channels : 1 for grey (mode L) or 3 for colour (mode RGB)
    """
    from PIL import Image

    if image.mode.startswith("I"):  # Pillow would clip 16-bit values at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        values = np.asarray(image)
        values = np.where(np.isnan(values), np.float32(0), values)  # `clip` below is enough for infinite values
        if values.min() >= 0 and values.max() <= 1:
            values = (255 * values).round()
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    elif image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, background_of(image)), image)
    return image.convert("L" if channels == 1 else "RGB")


def background_of(layer: PillowImage) -> str:
    """Return "white" or "black", the background over which a transparent image in mode RGBA is composited.

    It is white, like the page on which such images are usually seen, except for images that would be almost invisible over
    white. Pixels with less than half of the maximum opacity are not counted, because the soft edges of strokes often contain a
    part of an earlier background.
    """
    opacity = np.asarray(layer.getchannel("A"))
    solid = opacity >= max(1, opacity.max() / 2)
    dark = np.asarray(layer.convert("L"))[solid] < 128
    return "white" if dark.sum() > MOST_DARK * dark.size else "black"


def to_row(image: PillowImage, image_shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Return the pixels of an image in mode L or RGB as a row, resized as described in `images.load_images`."""
    from PIL import Image

    height, width, _ = image_shape
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(image).ravel()  # a copy, because PyTorch refuses an array that is not writable
