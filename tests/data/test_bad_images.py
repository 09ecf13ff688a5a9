"""Tests of image folders with unreadable files, which are errors or are skipped, and of the orientation of photos (EXIF)."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.data import message

from fastmlp.data.load import load_data
from fastmlp.data.readers.images import BadImageError, images_in, load_images, read_image, read_image_folder, skipped_note
from fastmlp.errors import ConfigError, DataError

UPRIGHT = np.arange(15, dtype=np.uint8).reshape(3, 5) * 16
# For each EXIF orientation, how the pixels of an upright image are stored: CIPA DC-008 gives the side of the image at which the
# first row and the first column of the file are seen.
STORED = {
    1: UPRIGHT,  # top, left
    2: UPRIGHT[:, ::-1],  # top, right
    3: UPRIGHT[::-1, ::-1],  # bottom, right
    4: UPRIGHT[::-1],  # bottom, left
    5: UPRIGHT.T,  # left, top
    6: UPRIGHT[:, ::-1].T,  # right, top
    7: UPRIGHT[::-1, ::-1].T,  # right, bottom
    8: UPRIGHT[::-1].T,  # left, bottom
}
FORMATS = {"png": {}, "tif": {}, "webp": {"lossless": True}, "jpg": {"quality": 100}}


def save_turned(path: Path, orientation: int) -> Path:
    """Write a file with an EXIF orientation whose upright image is `UPRIGHT`."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    image.save(path, exif=exif, **FORMATS[path.suffix[1:]])
    return path


def make_folder(path: Path) -> Path:
    for name, shade in (("cat", 10), ("dog", 20)):
        (path / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (4, 3), shade + number).save(path / name / f"{number}.png")
    return path


def noise_png() -> bytes:
    """Return the bytes of an image whose compressed pixels have no redundancy."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 4), np.uint8)).save(stream, "png")
    return stream.getvalue()


# Kinds of unreadable files. The header of the last two can be read.
BAD = {
    "text": b"hello",
    "empty": b"",
    "header only": noise_png()[:16],
    "truncated": noise_png()[:-30],
    "damaged pixels": noise_png()[:50] + b"\xff" * 8 + noise_png()[58:],
}

# ------------------------------------------------------------------------------------------------ orientation


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("orientation", STORED)
def test_photos_are_turned_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    path = save_turned(tmp_path / f"a.{suffix}", orientation)
    found = np.asarray(read_image(path, 1)).astype(int)
    assert found.shape == (3, 5)
    assert np.abs(found - UPRIGHT).max() <= (4 if suffix == "jpg" else 0)
    assert load_images([path], (3, 5, 1)).ravel().tolist() == found.ravel().tolist()


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_size_of_an_image_folder_is_that_of_upright_images(suffix: str, tmp_path: Path) -> None:
    for name, orientations in (("a", (6, 1, 3, 5)), ("b", (7, 2, 4, 8))):
        (tmp_path / name).mkdir()
        for orientation in orientations:
            save_turned(tmp_path / name / f"{orientation}.{suffix}", orientation)
    arrays = read_image_folder(tmp_path, channels=1)  # WebP has no grey images
    assert arrays.image_shape == (3, 5, 1)
    assert np.abs(arrays.x.astype(int) - UPRIGHT.ravel()).max() <= (4 if suffix == "jpg" else 0)


def test_an_image_that_is_not_turned_has_another_size_than_one_that_is(tmp_path: Path) -> None:
    for name, orientation in (("a", 1), ("b", 6)):
        (tmp_path / name).mkdir()
        Image.fromarray(UPRIGHT).save(tmp_path / name / "0.png", exif=exif_bytes(orientation))
    text = message(DataError, read_image_folder, tmp_path)
    assert f"{tmp_path / 'b' / '0.png'}: 5x3 pixels, but" in text


def exif_bytes(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0nonsense", exif_bytes(6)[:12], exif_bytes(9), exif_bytes(0)])
@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_damaged_exif_data_are_ignored(exif: bytes, suffix: str, tmp_path: Path) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / f"a.{suffix}", exif=exif, **FORMATS[suffix])
    assert np.asarray(read_image(tmp_path / f"a.{suffix}", 1)).shape == (3, 5)


# ------------------------------------------------------------------------------------------------ unreadable files


@pytest.mark.parametrize("kind", BAD)
def test_an_unreadable_file_is_an_error_that_names_it_or_is_skipped(kind: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos")
    bad = folder / "cat" / "1.png"
    bad.write_bytes(BAD[kind])
    with pytest.raises(DataError) as caught:
        read_image_folder(folder)
    assert str(caught.value).startswith(f"{bad}: not a readable image (")
    assert caught.value.settings == ("skip_bad",)
    arrays = read_image_folder(folder, skip_bad=True)
    assert arrays.x.tolist() == [[shade] * 12 for shade in (10, 12, 20, 21, 22)]
    assert arrays.y.tolist() == [0, 0, 1, 1, 1]
    assert list(arrays.notes) == [f"{folder}: skipped 1 of 6 images as unreadable: cat/1.png"]


def test_readable_files_give_no_note(tmp_path: Path) -> None:
    arrays = read_image_folder(make_folder(tmp_path), skip_bad=True)
    assert list(arrays.notes) == []
    assert len(arrays.x) == 6


def test_unreadable_files_of_train_and_test_are_skipped(tmp_path: Path) -> None:
    for name in ("train", "test"):
        make_folder(tmp_path / name)
    for name in ("train/cat/0.png", "train/dog/2.png", "test/dog/0.png", "test/dog/1.png"):
        (tmp_path / name).write_bytes(BAD["truncated"])
    arrays = read_image_folder(tmp_path, skip_bad=True)
    assert arrays.x[:, 0].tolist() == [11, 12, 20, 21]
    assert arrays.y.tolist() == [0, 0, 1, 1]
    assert arrays.x_test[:, 0].tolist() == [10, 11, 12, 22]
    assert arrays.y_test.tolist() == [0, 0, 0, 1]
    (note,) = arrays.notes
    assert note.endswith("skipped 4 of 12 images as unreadable: train/cat/0.png, train/dog/2.png, test/dog/0.png, …")


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("split", ["", "train", "test"])
def test_a_class_without_a_readable_file_is_an_error(split: str, kind: str, tmp_path: Path) -> None:
    for name in ("train", "test") if split else ("",):
        make_folder(tmp_path / name)
    for number in range(3):
        (tmp_path / split / "dog" / f"{number}.png").write_bytes(BAD[kind])
    text = message(DataError, read_image_folder, tmp_path, skip_bad=True)
    assert "skip_bad" not in text  # it is already set
    folder = tmp_path / split / "dog"
    remedy = "replace them or remove the folder"
    assert text.startswith(
        f"{folder}: no image in this class folder can be read; {remedy}. The first error: {folder / '0.png'}"
    )


def test_only_unreadable_files_are_an_error(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for path in folder.glob("*/*"):
        path.write_text("hello")
    assert "no image can be read" in message(DataError, read_image_folder, folder, skip_bad=True)


def test_the_first_readable_file_determines_the_size(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "cat" / "0.png").write_text("hello")
    Image.new("L", (8, 8)).save(folder / "dog" / "1.png")
    text = message(DataError, read_image_folder, folder, skip_bad=True)
    assert f"{folder / 'dog' / '1.png'}: 8x8 pixels, but {folder / 'cat' / '1.png'} has 3x4" in text


def test_load_data_skips_and_refuses_the_setting_for_other_sources(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos")
    (folder / "cat" / "1.png").write_text("hello")
    assert "cat/1.png" in message(DataError, load_data, folder).replace("\\", "/")
    assert len(load_data(folder, skip_bad=True).x) == 5
    assert "skip_bad is for folders of images" in message(ConfigError, load_data, "digits", skip_bad=True)


def test_the_note_has_the_first_names() -> None:
    names = [f"{number}.png" for number in range(5)]
    assert skipped_note(names, 1234) == "skipped 5 of 1,234 images as unreadable: 0.png, 1.png, 2.png, …"
    assert skipped_note(names[:1], 1) == "skipped 1 of 1 image as unreadable: 0.png"


@pytest.mark.parametrize("error", [RuntimeError("a b"), KeyError("a b"), MemoryError("a b"), OSError("a b")])
def test_every_exception_of_pillow_becomes_one_that_names_the_file(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(stream: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    path = tmp_path / "a.png"
    path.touch()
    assert message(BadImageError, read_image, path, 1).startswith(f"{path}: not a readable image ({error}); replace")


def test_a_file_that_is_not_an_image_gives_a_message_without_python_objects(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    expected = f"{tmp_path / 'a.png'}: not a readable image (unknown or damaged file format); replace or remove it"
    assert message(DataError, read_image, tmp_path / "a.png", 1).startswith(expected)


def test_files_with_other_suffixes_are_counted(tmp_path: Path) -> None:
    for name in ("train", "test"):
        make_folder(tmp_path / name)
    for name in ("train/cat/7.HEIC", "train/dog/8.heic", "test/dog/README", "test/dog/.hidden"):
        (tmp_path / name).touch()
    (note,) = read_image_folder(tmp_path).notes
    assert note == f"{tmp_path}: files without the suffix of an image were ignored: 2 .heic, 1 no suffix"
    for path in (tmp_path / "train" / "cat").glob("*.png"):
        path.unlink()
    assert "no images in this class folder; add images (.bmp, " in message(DataError, read_image_folder, tmp_path)


# ------------------------------------------------------------------------------------------------ folders of images


def test_images_in_a_folder_are_sorted_and_include_those_in_subfolders(tmp_path: Path) -> None:
    names = ["b.png", "A.JPG", "a/2.png", "a/1.gif", "a/deep/er/3.tif", "notes.txt", ".hidden.png", ".git/4.png", "c/.5.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in images_in(tmp_path)]
    assert found == ["A.JPG", "a/1.gif", "a/2.png", "a/deep/er/3.tif", "b.png"]


def test_a_folder_without_images_or_no_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert message(DataError, images_in, tmp_path).startswith(f"{tmp_path}: no images in this folder; give")
    assert str(tmp_path / "none") in message(DataError, images_in, tmp_path / "none")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) print\n"


def test_other_formats_are_rejected_whatever_their_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would start Ghostscript for PostScript, and has readers of many rare formats."""
    monkeypatch.setattr(subprocess, "check_call", None)
    (tmp_path / "a.png").write_bytes(POSTSCRIPT)
    image = Image.new("RGB", (8, 8))
    for name in ("SGI", "TGA", "PCX", "ICO", "DDS", "JPEG2000", "PDF"):
        image.save(tmp_path / f"{name}.png", name)
    for path in tmp_path.iterdir():
        assert "unknown or damaged file format" in message(DataError, read_image, path, 1)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "MPO", "BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_the_formats_of_all_suffixes_are_read(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "a.png", name)
    assert np.asarray(read_image(tmp_path / "a.png", 1)).min() > 250
