"""Tests of reading images from class folders and single files, of colour conversions, and of every kind of damage."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.data import message as message_of

from fastmlp.data.readers.images import load_images, read_image_folder
from fastmlp.errors import DataError

message = partial(message_of, DataError)


def save(path: Path, mode="L", size=(4, 3), colour=7, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def folder_of(path: Path, **options) -> Path:
    for name, shade in (("cat", 10), ("dog", 20)):
        for number in range(2):
            save(path / name / f"{number}.png", colour=shade + number, **options)
    return path


def test_image_folder_has_sorted_classes_and_grey_pixels(tmp_path):
    folder = folder_of(tmp_path)
    for junk in (".DS_Store", "cat/.hidden.png", "cat/Thumbs.db", "dog/notes.txt", "README"):
        (folder / junk).write_text("not an image")
    (folder / ".git").mkdir()
    arrays = read_image_folder(folder)
    assert (arrays.classes, list(arrays.y), arrays.image_shape) == (["cat", "dog"], [0, 0, 1, 1], (3, 4, 1))
    assert arrays.x.dtype == np.uint8 and arrays.x.tolist() == [[shade] * 12 for shade in (10, 11, 20, 21)]
    assert arrays.x_test is None and arrays.y_test is None


def test_image_folder_with_one_colour_image_becomes_colour(tmp_path):
    folder = folder_of(tmp_path)
    save(folder / "dog" / "2.png", "RGB", colour=(1, 2, 3))
    arrays = read_image_folder(folder)
    assert arrays.image_shape == (3, 4, 3)
    assert arrays.x[0].tolist() == [10] * 36 and arrays.x[4].tolist() == [1, 2, 3] * 12


def test_image_folder_with_train_and_test(tmp_path):
    folder_of(tmp_path / "train")
    save(tmp_path / "test" / "dog" / "x.png", colour=99)
    arrays = read_image_folder(tmp_path)
    assert list(arrays.y) == [0, 0, 1, 1] and list(arrays.y_test) == [1] and arrays.x_test.tolist() == [[99] * 12]


def test_train_is_a_class_if_there_are_other_folders(tmp_path):
    for name in ("train", "plane"):
        save(tmp_path / name / "a.png")
    assert read_image_folder(tmp_path).classes == ["plane", "train"]


def test_image_folder_of_two_sizes_reports_the_first_that_differs(tmp_path):
    folder = folder_of(tmp_path)
    odd = save(folder / "dog" / "1.png", size=(8, 3), colour=21)
    text = message(read_image_folder, folder)
    assert text.startswith(f"{odd}: 3x8 pixels") and "3x4" in text and "image_size" in text
    arrays = read_image_folder(folder, (2, 5))
    assert arrays.image_shape == (2, 5, 1) and arrays.x[3].tolist() == [21] * 10


def break_folder(folder: Path, kind: str) -> str:
    """Damage a valid folder, and return a part of the expected error message."""
    bad = folder / "cat" / "0.png"
    if kind == "text file":
        bad.write_text("hello")
    elif kind == "truncated":
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 4), dtype=np.uint8))
        image.save(bad)
        bad.write_bytes(bad.read_bytes()[:-30])
    elif kind == "empty file":
        bad.write_bytes(b"")
    elif kind == "empty class":
        (folder / "ant").mkdir()
        return f"{folder / 'ant'}: no image"
    elif kind == "nested":
        save(folder / "cat" / "inner" / "a.png")
        return f"{folder / 'cat' / 'inner'}: a folder inside a class folder"
    elif kind == "single class":
        for path in (folder / "dog").iterdir():
            path.unlink()
        (folder / "dog").rmdir()
        return f"{folder}: 1 class folders"
    return f"{bad}: not a readable image"


@pytest.mark.parametrize("kind", ["text file", "truncated", "empty file", "empty class", "nested", "single class"])
def test_image_folder_damage_is_reported(tmp_path, kind):
    folder = folder_of(tmp_path / "data")
    read_image_folder(folder)
    assert break_folder(folder, kind) in message(read_image_folder, folder)


def test_an_empty_folder_is_reported(tmp_path):
    assert f"{tmp_path}: 0 class folders" in message(read_image_folder, tmp_path)


def test_damage_of_the_test_set_is_reported(tmp_path):
    folder_of(tmp_path / "train")
    (tmp_path / "test").mkdir()
    assert f"{tmp_path / 'test'}: no class folders" in message(read_image_folder, tmp_path)
    save(tmp_path / "test" / "cow" / "a.png")
    assert f"{tmp_path / 'test' / 'cow'}: no such class" in message(read_image_folder, tmp_path)


def test_a_decompression_bomb_is_rejected(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", size=(40, 30))
    assert load_images([path], (1, 1, 1)).tolist() == [[7]]
    for limit in (1000, 500):  # above its limit, Pillow warns; above twice the limit, it raises an error
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        text = message(load_images, [path], (1, 1, 1))
        assert text.startswith(f"{path}: not a readable image (")


# colour mode, colour, suffix of the file, expected grey value, expected (red, green, blue)
CONVERSIONS = {
    "grey": ("L", 200, "png", 200, (200, 200, 200)),
    "black and white": ("1", 1, "png", 255, (255, 255, 255)),
    "colour by BT.601": ("RGB", (250, 100, 50), "png", 139, (250, 100, 50)),
    "half transparent grey over black": ("LA", (200, 128), "png", 100, (100, 100, 100)),
    "transparent colour over black": ("RGBA", (250, 100, 50, 0), "png", 0, (0, 0, 0)),
    "half transparent dark grey over white": ("LA", (100, 127), "png", 178, (178, 178, 178)),
    "half transparent dark blue over white": ("RGBA", (0, 0, 200, 51), "png", 209, (204, 204, 244)),
    "16 bits keep the high byte": ("I;16", 0x8C40, "png", 0x8C, (0x8C,) * 3),
    "floats are clipped": ("F", 300.0, "tif", 255, (255, 255, 255)),
    "negative floats are clipped": ("F", -0.5, "tif", 0, (0, 0, 0)),
    "floats up to 255": ("F", 20.7, "tif", 20, (20, 20, 20)),
    "floats up to 1": ("F", 0.4, "tif", 102, (102, 102, 102)),
    "NaN": ("F", float("nan"), "tif", 0, (0, 0, 0)),
    "ink": ("CMYK", (0, 255, 255, 0), "tif", 76, (255, 0, 0)),
}


@pytest.mark.parametrize("kind", CONVERSIONS)
def test_load_images_converts_every_mode(tmp_path, kind):
    mode, colour, suffix, grey, rgb = CONVERSIONS[kind]
    path = save(tmp_path / f"a.{suffix}", mode, (5, 4), colour)
    assert load_images([path], (2, 3, 1)).tolist() == [[grey] * 6]
    assert load_images([str(path)], (2, 3, 3)).tolist() == [list(rgb) * 6]


def test_a_palette_with_a_transparent_colour_is_composited_over_black(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    assert load_images([tmp_path / "a.png"], (1, 2, 3)).tolist() == [[0, 0, 0, 0, 255, 0]]


INKS = {
    "black": ((0, 0, 0), 255),
    "dark blue": ((20, 30, 160), 255),
    "red": ((255, 0, 0), 255),
    "dark green": ((0, 128, 0), 255),
    "white": ((255, 255, 255), 0),
    "yellow": ((250, 230, 40), 0),
    "mid-grey": ((128, 128, 128), 0),
}


@pytest.mark.parametrize("form", ["RGBA", "LA", "palette"])
@pytest.mark.parametrize("ink", INKS)
def test_ink_on_a_transparent_background_stays_visible(ink, form, tmp_path):
    """Strokes with soft edges; the colour of transparent pixels, which is white or black, has no effect."""
    colour, expected = INKS[ink]
    opacity = np.zeros((20, 20), np.uint8)
    opacity[4:16, 8:12] = 255
    opacity[4:16, 7] = opacity[4:16, 12] = 0 if form == "palette" else 100
    for hidden in (0, 255):
        rgb = np.where(opacity[..., None] > 0, np.uint8(colour), np.uint8(hidden))
        image = Image.fromarray(np.dstack([rgb, opacity]))
        if form == "palette":
            image = Image.fromarray((opacity > 0).astype(np.uint8)).convert("P")
            image.putpalette([hidden, hidden, hidden, *colour])
            image.save(tmp_path / "a.png", transparency=0)
        else:
            image.convert(form).save(tmp_path / "a.png")
        found = load_images([tmp_path / "a.png"], (20, 20, 1)).reshape(20, 20).astype(int)
        assert (found[opacity == 0] == expected).all()
        luma = round(np.dot([0.299, 0.587, 0.114], colour))
        assert np.abs(found[opacity == 255] - luma).max() <= 1
        assert abs(luma - expected) >= 127


@pytest.mark.parametrize(("dark", "expected"), [(0, 0), (1, 0), (2, 255), (50, 255), (98, 255), (100, 255)])
def test_transparent_images_are_composited_over_white_unless_nearly_all_visible_pixels_are_light(tmp_path, dark, expected):
    luma = np.where(np.arange(100) < dark, 60, 230).reshape(10, 10).astype(np.uint8)
    image = np.pad(np.dstack([luma, np.full((10, 10), 255, np.uint8)]), ((1, 1), (1, 1), (0, 0)))
    Image.fromarray(image).save(tmp_path / "a.png")
    found = load_images([tmp_path / "a.png"], (12, 12, 1)).reshape(12, 12)
    assert (found[[0, -1]] == expected).all()
    np.testing.assert_array_equal(found[1:-1, 1:-1], luma)


@pytest.mark.parametrize(("ink", "expected"), [(255, 0), (0, 255)])
@pytest.mark.parametrize("earlier", [0, 128, 255])
def test_soft_edges_with_a_part_of_an_earlier_background_have_no_effect(tmp_path, ink, expected, earlier):
    opacity = np.tile(np.uint8([0, 30, 60, 90, 120, 255, 120, 90, 60, 30, 0]), (8, 1))
    luma = (earlier + (ink - earlier) * (opacity / 255)).astype(np.uint8)
    Image.fromarray(np.dstack([luma, opacity])).save(tmp_path / "a.png")
    found = load_images([tmp_path / "a.png"], (8, 11, 1)).reshape(8, 11)
    assert (found[:, [0, -1]] == expected).all() and (found[:, 5] == ink).all()


def test_a_faint_transparent_image_and_one_without_visible_pixels(tmp_path):
    for opacity, expected in ((40, 255 - 40), (0, 0)):
        Image.new("LA", (3, 2), (0, opacity)).save(tmp_path / "a.png")
        assert (load_images([tmp_path / "a.png"], (2, 3, 1)) == expected).all()


def test_opaque_images_with_an_alpha_channel_are_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 60, (6, 5, 3), np.uint8)
    Image.fromarray(np.dstack([pixels, np.full((6, 5), 255, np.uint8)])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_images([tmp_path / "a.png"], (6, 5, 3)).reshape(6, 5, 3), pixels)


def test_load_images_keeps_pixels_of_the_right_size_and_averages_larger_ones(tmp_path):
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "a.png")
    assert load_images([tmp_path / "a.png"], (3, 4, 1)).tolist() == [list(range(12))]
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "b.png")
    small = load_images([tmp_path / "b.png"], (4, 4, 1))
    assert abs(small.astype(int) - 128).max() <= 2  # averaged, unlike in nearest-neighbour sampling


def test_load_images_reports_errors(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("hello")
    assert f"{path}: not a readable image" in message(load_images, [path], (2, 2, 1))
    assert f"none.png: {os.strerror(errno.ENOENT)}; check the path" in message(load_images, [tmp_path / "none.png"], (2, 2, 1))
    assert f"cannot read {tmp_path}: it is a folder" in message(load_images, [tmp_path], (2, 2, 1))
    assert "no images given" in message(load_images, [], (2, 2, 1))
    assert "(2, 2, 4)" in message(load_images, [save(tmp_path / "b.png")], (2, 2, 4))
