"""Tests of `predict` and `evaluate` on images: folders and patterns, inversion, centering, unreadable files, figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.cli import forget_settings, no_figures, ok, refused  # noqa: F401 - a fixture
from support.drawings import PAPERS, PHOTOS, digit, digits, framed_digit, framed_digits, on_paper

from fastmlp.data.images.inputs import ImageOptions, find_files
from fastmlp.errors import ConfigError
from fastmlp.experiments.prediction import predict_files
from fastmlp.models.model import load
from fastmlp.reports import images as pictures

INVERTED = "dark on light, whereas the training images are light on dark; set --invert to no to disable this"
MARGIN = 28  # of `on_paper`, so that the digits have the size of `framed_digits`
SMALL = ("--hidden", "32", "--scale", "unit", "--backend", "numpy", "--no-checkpoints", "-q")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the runs digits, of drawings that are light on dark, paper, dark on light, and photos."""
    folder = tmp_path_factory.mktemp("home")
    x, y, rng = framed_digits(), digits().y, np.random.default_rng(0)
    np.savez(folder / "digits.npz", x=x, y=y)
    np.savez(folder / "paper.npz", x=255 - x, y=y)
    photos = np.concatenate([PHOTOS["mid-grey"](rng), PHOTOS["sky"](rng)])
    np.savez(folder / "photos.npz", x=photos.reshape(-1, 28, 28), y=np.repeat([0, 1], 60))
    for name, epochs in (("digits", 15), ("paper", 15), ("photos", 5)):
        run = folder / "runs" / name
        ok("train", "--data", folder / f"{name}.npz", *SMALL, "--epochs", str(epochs), "--out", run)
    return folder


def save(path: Path, image: Any, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).convert(mode).save(path)
    return path


def write_digits(folder: Path, **paper: Any) -> Path:
    """Write an image of each digit into a class folder of its own."""
    for number in range(10):
        save(folder / str(number) / f"{number}.png", on_paper(digit(number, 3), **paper | {"margin": MARGIN}))
    return folder


def labels(stdout: str) -> list[str]:
    return [line.split("\t")[1] for line in stdout.splitlines()]


DIGITS = [str(number) for number in range(10)]

# ------------------------------------------------------------------------------------------------ polarity


@pytest.mark.parametrize("paper", PAPERS)
def test_ink_on_paper_is_inverted_with_a_note(paper: str, home: Path, tmp_path: Path) -> None:
    write_digits(tmp_path, **PAPERS[paper])
    found = ok("predict", home / "runs" / "digits", tmp_path)
    assert found.stderr == f"inverted 10 of 10 images: {INVERTED}\n"
    right = sum(label == digit for label, digit in zip(labels(found.stdout), DIGITS, strict=True))
    assert right >= 9


def test_without_inversion_ink_on_paper_is_not_recognized(home: Path, tmp_path: Path) -> None:
    write_digits(tmp_path, paper=240, ink=20)
    found = ok("predict", home / "runs" / "digits", tmp_path, "--invert", "no")
    assert found.stderr == ""
    assert sum(label == digit for label, digit in zip(labels(found.stdout), DIGITS, strict=True)) <= 4


def test_light_on_dark_is_inverted_for_a_model_of_dark_on_light(home: Path, tmp_path: Path) -> None:
    for number in range(10):
        save(tmp_path / f"{number}.png", framed_digit(number, 3))
    found = ok("predict", home / "runs" / "paper", tmp_path)
    assert labels(found.stdout) == DIGITS
    assert "inverted 10 of 10 images: light on dark, whereas the training images are dark on light" in found.stderr
    found = ok("predict", home / "runs" / "digits", tmp_path)
    assert labels(found.stdout) == DIGITS
    assert found.stderr == ""


def test_only_the_images_of_the_opposite_polarity_are_inverted(home: Path, tmp_path: Path) -> None:
    save(tmp_path / "4.png", on_paper(digit(4, 3), paper=230, margin=MARGIN))
    save(tmp_path / "6.png", framed_digit(6, 3))
    found = ok("predict", home / "runs" / "digits", tmp_path)
    assert labels(found.stdout) == ["4", "6"]
    assert found.stderr == f"inverted 1 of 2 images: {INVERTED}\n"


def test_quiet_writes_no_note(home: Path, tmp_path: Path) -> None:
    save(tmp_path / "4.png", on_paper(digit(4, 3), margin=MARGIN))
    assert ok("predict", home / "runs" / "digits", tmp_path, "-q").stderr == ""


@pytest.mark.parametrize("kind", PHOTOS)
def test_nothing_is_inverted_for_a_model_of_photos(kind: str, home: Path, tmp_path: Path) -> None:
    for number, row in enumerate(PHOTOS[kind](np.random.default_rng(1))[:5]):
        save(tmp_path / f"{number}.png", row.reshape(28, 28))
        save(tmp_path / f"{number}-inverted.png", 255 - row.reshape(28, 28))
    plain = ok("predict", home / "runs" / "photos", tmp_path, "--invert", "no")
    found = ok("predict", home / "runs" / "photos", tmp_path)
    assert (found.stderr, found.stdout) == ("", plain.stdout)


def test_inversion_on_request(home: Path, tmp_path: Path) -> None:
    image = PHOTOS["sky"](np.random.default_rng(1))[0].reshape(28, 28)
    save(tmp_path / "a.png", image)
    save(tmp_path / "b.png", 255 - image)
    first, second = ok("predict", home / "runs" / "photos", tmp_path, "--top", "2", "--invert", "yes").stdout.splitlines()
    plain = ok("predict", home / "runs" / "photos", tmp_path, "--top", "2").stdout.splitlines()
    assert first.split("\t")[1:] == plain[1].split("\t")[1:]
    assert second.split("\t")[1:] == plain[0].split("\t")[1:]


def test_arrays_of_images_are_inverted_as_a_whole_and_other_arrays_never(home: Path, tmp_path: Path) -> None:
    x = np.stack([framed_digit(number, 3) for number in range(10)])
    mixed = np.concatenate([255 - x, x[:4]])
    for name, array in (("a", 255 - x), ("b", (255 - x).astype(np.float32)), ("c", mixed), ("d", x)):
        np.savez(tmp_path / f"{name}.npz", x=array)
    run = home / "runs" / "digits"
    found = ok("predict", run, tmp_path / "a.npz")
    assert (labels(found.stdout), found.stderr) == (DIGITS, f"inverted 10 of 10 images: {INVERTED}\n")
    assert ok("predict", run, tmp_path / "b.npz").stderr == ""
    assert ok("predict", run, tmp_path / "c.npz").stderr == f"inverted 14 of 14 images: {INVERTED}\n"
    found = ok("predict", run, tmp_path / "d.npz")
    assert (labels(found.stdout), found.stderr) == (DIGITS, "")


def test_tables_are_never_inverted(home: Path, tmp_path: Path) -> None:
    lines = [",".join(map(str, 255 - framed_digit(number, 3).ravel())) for number in range(3)]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    assert ok("predict", home / "runs" / "digits", tmp_path / "a.csv").stderr == ""


def test_a_model_without_statistics_inverts_nothing_but_on_request(home: Path, tmp_path: Path) -> None:
    model = load(home / "runs" / "digits", backend="numpy")
    assert model.image_stats is not None
    object.__setattr__(model, "image_stats", None)
    model.save(tmp_path / "old.safetensors")
    path = save(tmp_path / "7.png", 255 - framed_digit(7, 3))
    assert ok("predict", tmp_path / "old.safetensors", path).stderr == ""
    assert labels(ok("predict", tmp_path / "old.safetensors", path, "--invert", "yes").stdout) == ["7"]
    text = refused(2, "predict", tmp_path / "old.safetensors", path, "--center")
    assert "this model has no statistics of them; train it again" in text
    assert text.endswith("[--center]")


def test_evaluate_inverts_other_folders_like_predict(home: Path, tmp_path: Path) -> None:
    for mode in ("L", "RGB"):
        folder = tmp_path / mode
        for number in range(10):
            save(folder / str(number) / "a.png", on_paper(digit(number, 3), paper=235, ink=20, margin=MARGIN), mode)
        found = ok("evaluate", home / "runs" / "digits", "--data", folder, "--min-accuracy", "0.99")
        assert f"inverted 10 of 10 images: {INVERTED}\n" in found.stderr
    assert INVERTED not in ok("evaluate", home / "runs" / "digits").stderr
    assert "invert is for folders of images" in refused(2, "evaluate", home / "runs" / "digits", "--invert", "yes")


def test_evaluate_accepts_a_folder_with_images_of_a_single_class(home: Path, tmp_path: Path) -> None:
    for index in range(3):
        save(tmp_path / "7" / f"{index}.png", framed_digit(7, index))
    ok("evaluate", home / "runs" / "digits", "--data", tmp_path, "--report", "--min-accuracy", "0.99")
    text = refused(3, "train", "--data", tmp_path, *SMALL)
    assert text.startswith(f"{tmp_path}: 1 class folders; give a folder with 2 or more subfolders")
    (tmp_path / "empty").mkdir()
    text = refused(3, "evaluate", home / "runs" / "digits", "--data", tmp_path / "empty")
    assert text.startswith(f"{tmp_path / 'empty'}: 0 class folders; give a folder with 1 or more subfolders")


def test_the_data_of_a_run_are_not_inverted_by_evaluate(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "data")
    for number in range(10):  # one of the images is inverted
        for index in range(5):
            save(data / str(number) / f"{index}.png", framed_digit(number, index) if number + index else 255 - framed_digit(0))
    ok("train", "--data", data, "--image-size", "28", *SMALL, "--epochs", "2", "--out", tmp_path / "run")
    found = ok("evaluate", tmp_path / "run", "--split", "all")
    assert found.stderr == ""
    assert "inverted" not in ok("evaluate", tmp_path / "run", "--split", "all", "--data", data).stderr


def test_dark_ink_on_a_transparent_background_is_recognized(home: Path, tmp_path: Path) -> None:
    for number in range(10):
        opacity = 255 - on_paper(digit(number, 3), margin=MARGIN)
        save(tmp_path / f"{number}.png", np.dstack([np.zeros_like(opacity), opacity]), "LA")
    found = ok("predict", home / "runs" / "digits", tmp_path)
    assert (labels(found.stdout), found.stderr) == (DIGITS, f"inverted 10 of 10 images: {INVERTED}\n")
    found = ok("predict", home / "runs" / "paper", tmp_path)
    assert (labels(found.stdout), found.stderr) == (DIGITS, "")


def test_transparent_drawings_are_trained_and_predicted_alike(tmp_path: Path) -> None:
    for number in (0, 1):
        for index in range(20):
            opacity = framed_digit(number, index)
            image = np.dstack([np.zeros_like(opacity), opacity])
            save(tmp_path / "data" / str(number) / f"{index}.png", image, "LA")
    ok("train", "--data", tmp_path / "data", *SMALL, "--epochs", "10", "--out", tmp_path / "run")
    stats = load(tmp_path / "run", backend="numpy").image_stats
    assert stats is not None
    assert stats.polarity == "dark on light"
    found = ok("predict", tmp_path / "run", tmp_path / "data")
    assert (labels(found.stdout), found.stderr) == (["0"] * 20 + ["1"] * 20, "")


# ------------------------------------------------------------------------------------------------ centering


def test_a_drawing_in_a_corner_is_recognized_if_it_is_centered(home: Path, tmp_path: Path) -> None:
    for number in range(10):
        image = on_paper(digit(number, 3), paper=225, ink=25, noise=4, margin=160)[130:, :330]
        save(tmp_path / f"{number}.jpg", image, "RGB")
    plain = labels(ok("predict", home / "runs" / "digits", tmp_path).stdout)
    found = labels(ok("predict", home / "runs" / "digits", tmp_path, "--center").stdout)
    assert sum(label == digit for label, digit in zip(plain, DIGITS, strict=True)) <= 4
    assert sum(label == digit for label, digit in zip(found, DIGITS, strict=True)) >= 9


def test_centering_needs_images_with_a_uniform_background(home: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", framed_digit(1))
    text = refused(2, "predict", home / "runs" / "photos", path, "--center")
    assert "center needs training images with a uniform background" in text
    np.savez(tmp_path / "a.npz", x=framed_digits()[:2].astype(np.float32))
    for option, name in (("--center", "center"), ("--invert=yes", "invert")):
        text = refused(2, "predict", home / "runs" / "digits", tmp_path / "a.npz", option)
        assert text == f"{name} is for images, but none of the inputs is an image; leave it out [--{name}]"


def test_images_in_arrays_are_centered_too(home: Path, tmp_path: Path) -> None:
    small = np.zeros((28, 28), np.uint8)
    small[:14, 14:] = framed_digit(0, 3)[::2, ::2]
    np.savez(tmp_path / "a.npz", x=small[None])
    save(tmp_path / "a.png", small)
    array = ok("predict", home / "runs" / "digits", tmp_path / "a.npz", "--center", "--top", "3").stdout.split("\t")[1:]
    assert array == ok("predict", home / "runs" / "digits", tmp_path / "a.png", "--center", "--top", "3").stdout.split("\t")[1:]


# ------------------------------------------------------------------------------------------------ folders and patterns


def test_a_folder_stands_for_its_images_in_order(home: Path, tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "data")
    save(folder / "notes.png", on_paper(digit(5, 3), margin=MARGIN))
    (folder / "readme.txt").write_text("hello")
    found = ok("predict", home / "runs" / "digits", folder, folder / "3" / "3.png")
    names = [Path(line.split("\t")[0]).relative_to(folder).as_posix() for line in found.stdout.splitlines()]
    assert names == [*(f"{number}/{number}.png" for number in range(10)), "notes.png", "3/3.png"]
    assert labels(found.stdout) == [*DIGITS, "5", "3"]


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/2.png", "b/10.png", "a/1.png", "a/deep/3.png", "a/x.txt", "c.png", "d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)

    def found(*inputs: str | Path) -> list[str]:
        return [path.as_posix() for path in find_files(inputs)]

    assert found("*.png") == ["c.png", "d.png"]
    assert found("[cx].png", "c.png") == ["c.png", "c.png"]
    assert found("?.png") == ["c.png", "d.png"]
    assert found("**/*.png") == ["a/1.png", "a/deep/3.png", "b/10.png", "b/2.png", "c.png", "d.png"]
    assert found("a/*") == ["a/1.png", "a/x.txt"]  # as a shell would expand it, without the folder
    assert found("[ab]") == ["a/1.png", "a/deep/3.png", "b/10.png", "b/2.png"]
    assert found("**/") == ["a/1.png", "a/deep/3.png", "b/10.png", "b/2.png"]
    assert [Path(path) for path in found(tmp_path / "b" / "*.png")] == [tmp_path / "b" / "10.png", tmp_path / "b" / "2.png"]
    assert found("none.png") == ["none.png"]


def test_an_existing_file_is_not_a_pattern(tmp_path: Path) -> None:
    for name in ("a[1].png", "a1.png"):
        (tmp_path / name).touch()
    assert find_files([tmp_path / "a[1].png"]) == [tmp_path / "a[1].png"]


@pytest.mark.parametrize("kind", ["empty folder", "folder of texts", "no match", "no match in a folder"])
def test_inputs_that_stand_for_no_file_are_an_error_and_nothing_is_written(kind: str, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    if kind == "folder of texts":
        (folder / "a.txt").write_text("hello")
    (tmp_path / "out.csv").write_text("old")
    save(tmp_path / "show.png", framed_digit(1))
    before = (tmp_path / "show.png").read_bytes()
    given = {"no match": tmp_path / "*.jpg", "no match in a folder": folder / "**" / "*.png"}.get(kind, folder)
    outputs = ("--out", tmp_path / "out.csv", "--show", tmp_path / "show.png")
    text = refused(3, "predict", home / "runs" / "digits", tmp_path / "show.png", given, *outputs)
    assert text.startswith(f"{given}: no ")
    assert "; give a folder" in text or "; check the pattern" in text
    assert (tmp_path / "out.csv").read_text() == "old"
    assert (tmp_path / "show.png").read_bytes() == before


def test_folders_need_a_model_of_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.eye(4, dtype=np.float32).repeat(10, axis=0), y=np.arange(40) % 2)
    ok("train", "--data", tmp_path / "a.npz", *SMALL, "--epochs", "1", "--out", tmp_path / "run")
    save(tmp_path / "photos" / "a.png", framed_digit(1))
    assert "the model was not trained on images" in refused(3, "predict", tmp_path / "run", tmp_path / "photos")
    for option in (("--center",), ("--invert", "yes"), ("--show", tmp_path / "b.png")):
        text = refused(2, "predict", tmp_path / "run", tmp_path / "a.npz", *option)
        assert "is for images, but the model was not trained on images; leave it out" in text
        assert text.endswith(f"[{option[0]}]")
    assert len(ok("predict", tmp_path / "run", tmp_path / "a.npz").stdout.splitlines()) == 40


def test_image_files_need_one_or_three_channels(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 2), np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(40) % 2)
    ok("train", "--data", tmp_path / "a.npz", *SMALL, "--epochs", "1", "--out", tmp_path / "run")
    path = save(tmp_path / "a.png", framed_digit(1))
    assert "(4, 4, 2); it must be (height, width, 1 or 3)" in refused(3, "predict", tmp_path / "run", path)
    assert "(4, 4, 2); it must be" in refused(3, "predict", tmp_path / "run", tmp_path / "a.npz", "--center")
    assert len(ok("predict", tmp_path / "run", tmp_path / "a.npz").stdout.splitlines()) == 40


# ------------------------------------------------------------------------------------------------ unreadable files


def test_an_unreadable_file_is_an_error_or_is_skipped(home: Path, tmp_path: Path) -> None:
    write_digits(tmp_path)
    bad = tmp_path / "4" / "4.png"
    bad.write_text("hello")
    run = home / "runs" / "digits"
    text = refused(3, "predict", run, tmp_path, "--out", tmp_path / "out.csv")
    assert text.startswith(f"{bad}: not a readable image (")
    assert text.endswith("set skip_bad to leave it out [--skip-bad]")
    assert not (tmp_path / "out.csv").exists()
    found = ok("predict", run, tmp_path, "--skip-bad")
    assert labels(found.stdout) == [name for name in DIGITS if name != "4"]
    assert f"skipped 1 of 10 images as unreadable: {bad}\n" in found.stderr
    assert f"inverted 9 of 9 images: {INVERTED}" in found.stderr


def test_only_unreadable_files_or_a_missing_one_are_an_error(home: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("hello")
    text = refused(3, "predict", home / "runs" / "digits", tmp_path, tmp_path / "a.png", "--skip-bad")
    assert text.startswith(f"no image can be read; replace them. The first error: {tmp_path / 'a.png'}: not a readable image")
    assert "skip" not in text
    save(tmp_path / "c.png", framed_digit(1))
    text = refused(3, "predict", home / "runs" / "digits", tmp_path / "c.png", tmp_path / "d.png", "--skip-bad")
    assert text.startswith(f"cannot read {tmp_path / 'd.png'}: ")


def test_train_and_evaluate_skip_unreadable_files(home: Path, tmp_path: Path) -> None:
    data = write_digits(tmp_path / "data")
    for number in range(10):
        for index in range(4):
            save(data / str(number) / f"{index}.png", framed_digit(number, index))
    (data / "3" / "2.png").write_text("hello")
    settings = ("--data", data, "--image-size", "28", *SMALL, "--epochs", "1", "--out", tmp_path / "run")
    text = refused(3, "train", *settings)
    assert text.startswith(f"{data / '3' / '2.png'}: not a readable image (")
    assert text.endswith("[--skip-bad]")
    assert not (tmp_path / "run").exists()
    ok("train", *settings, "--skip-bad")
    ok("evaluate", tmp_path / "run")
    assert "3/2.png" in refused(3, "evaluate", home / "runs" / "digits", "--data", data).replace("\\", "/")
    ok("evaluate", home / "runs" / "digits", "--data", data, "--skip-bad")
    text = refused(2, "train", "--skip-bad", *SMALL)
    assert text == "skip_bad is for folders of images, not for 'digits'; leave it out [--skip-bad]"


# ------------------------------------------------------------------------------------------------ the figure


def test_the_figure_shows_the_inputs_after_all_conversions(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    plot = pictures.plot_inputs

    def kept(*given: Any) -> None:
        shown.append(given)
        plot(*given)

    monkeypatch.setattr(pictures, "plot_inputs", kept)
    write_digits(tmp_path / "data", paper=230, ink=20)
    (tmp_path / "data" / "3" / "3.png").write_text("hello")
    np.savez(tmp_path / "more.npz", x=framed_digits()[:50])
    (tmp_path / "a.csv").write_text(",".join(map(str, framed_digits()[0].ravel())) + "\n")
    inputs = (tmp_path / "a.csv", tmp_path / "data", tmp_path / "more.npz")
    found = ok("predict", home / "runs" / "digits", *inputs, "--skip-bad", "--show", tmp_path / "show.png")
    ((images, captions, path, total),) = shown
    with Image.open(path) as picture:
        assert picture.size[0] > 1000
    assert (path, total, len(images), len(captions)) == (tmp_path / "show.png", 59, 48, 48)
    lines = [line.split("\t") for line in found.stdout.splitlines()[1:49]]
    assert [caption[0] for caption in captions] == [Path(line[0]).name for line in lines]
    assert [caption[1] for caption in captions] == ["  ".join(line[1:]) for line in lines]
    assert captions[9][0] == "more.npz:1"
    assert all(image.shape == (28, 28) for image in images)
    assert all(np.median(image[0]) == 0 and image.max() == 255 for image in images[:9])  # inverted
    np.testing.assert_array_equal(np.stack(images[9:]).reshape(39, -1), framed_digits()[:39].reshape(39, -1))


def test_a_figure_needs_images(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",".join(map(str, framed_digits()[0].ravel())) + "\n")
    text = refused(2, "predict", home / "runs" / "digits", tmp_path / "a.csv", "--show", tmp_path / "b.png")
    assert text == "show is for images, but none of the inputs is an image; leave it out [--show]"
    assert not (tmp_path / "b.png").exists()


def test_a_figure_needs_the_suffix_png(home: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", framed_digit(1))
    text = refused(2, "predict", home / "runs" / "digits", path, "--show", tmp_path / "b.jpg")
    assert text == f"show: the name {str(tmp_path / 'b.jpg')!r} must end with .png [--show]"
    assert not (tmp_path / "b.jpg").exists()


# ------------------------------------------------------------------------------------------------ in Python


def test_options_and_notes_in_python(home: Path, tmp_path: Path) -> None:
    save(tmp_path / "4.png", on_paper(digit(4, 3), margin=MARGIN))
    notes: list[str] = []
    (found,) = predict_files(home / "runs" / "digits", [tmp_path], backend="numpy", say=notes.append)
    assert found["label"] == "4"
    assert len(notes) == 1
    assert "set `invert` to no" in notes[0]
    predict_files(home / "runs" / "digits", [tmp_path], backend="numpy", images=ImageOptions(invert="no"), say=notes.append)
    assert len(notes) == 1
    with pytest.raises(ConfigError, match="unknown invert 'maybe'"):
        ImageOptions(invert="maybe")
