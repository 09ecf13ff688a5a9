"""Tests that names of files, columns and categories cannot control a terminal or form lines of output, in any command.

Class names with such characters are refused, see tests/data/test_class_names.py and tests/models/test_file.py.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from PIL import Image
from support.cli import FAST, call, forget_settings

from fastmlp.commands import doctor
from fastmlp.errors import printable
from fastmlp.experiments.config.sources import VARIABLES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such file names")

# The title of a terminal, a forged line, a tab, text from right to left, a control sequence of one character, and the markup
# of Markdown, LaTeX, HTML, Matplotlib and rich.
STRANGE = "a\x1b]0;title\x07\nforged: 1\tb\u202e\x9b2J\u2028|`$x$&<b>%_[red]\\"
OFFLINE = {"FASTMLP_OFFLINE": "1"}
NOT_UTF_8 = os.fsdecode(b"caf\xe9")
# The suffixes of text files that the program writes; the tables that the tests write are called .data.
TEXT_FILES = {".csv", ".json", ".jsonl", ".toml", ".txt"}


def check_text(text: str, tabs: bool = False) -> None:
    """Check that a text has no control or formatting characters except line breaks, and no line that a name has formed."""
    for line in text.replace("\t", "").split("\n") if tabs else text.split("\n"):
        assert line == printable(line), line
        assert not line.startswith("forged"), line


def check_files(folder: Path) -> set[str]:
    """Check the text files in a folder and its subfolders, and return their names."""
    found = [path for path in folder.rglob("*") if path.suffix in TEXT_FILES and path.is_file()]
    for path in found:
        check_text(path.read_bytes().decode())
    return {path.name for path in found}


def run(*arguments: str | Path, tabs: bool = False, **variables: str) -> Result:
    """Run the program, check what it prints, and return the result."""
    result = call(*arguments, **variables)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    check_text(result.stdout, tabs)
    check_text(result.stderr)
    return result


def succeeds(*arguments: str | Path, tabs: bool = False) -> Result:
    result = run(*arguments, tabs=tabs)
    assert result.exit_code == 0, result.output
    return result


def fails(code: int, *arguments: str | Path, **variables: str) -> str:
    result = run(*arguments, **variables)
    assert result.exit_code == code, result.output
    return result.stderr


def table(rows: int = 60) -> pd.DataFrame:
    """Return a table with strange names of columns and strange categories; the labels are "no" and "yes"."""
    rng = np.random.default_rng(0)
    kind = rng.choice(["plain", f"{STRANGE}1", f"{STRANGE}2"], rows)
    label = np.where((kind == "plain") ^ (rng.random(rows) < 0.2), "yes", "no")
    return pd.DataFrame({f"size {STRANGE}": rng.normal(size=rows), f"kind {STRANGE}": kind, "label": label})


def images(folder: Path) -> Path:
    """Write a folder of images with strange names of files."""
    rng = np.random.default_rng(0)
    for name in ("no", "yes"):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(rng.integers(0, 256, (4, 4), np.uint8)).save(folder / name / f"{STRANGE}{number}.png")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a strange name, with a table, a folder of images, and the run folders of both."""
    folder = tmp_path_factory.mktemp("home") / STRANGE
    folder.mkdir()
    table().to_csv(folder / f"{STRANGE}.data", index=False)
    images(folder / f"{STRANGE} images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        forget_settings(patch)
        for source, name in ((f"{STRANGE}.data", f"{STRANGE} run"), (f"{STRANGE} images", f"{STRANGE} image run")):
            succeeds("train", "--data", folder / source, *FAST, "--out", "plain")
            (folder.parent / "plain").rename(folder / name)
    return folder


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Run every test in its own folder with a strange name, and check the text files in it at the end."""
    (tmp_path / STRANGE).mkdir()
    monkeypatch.chdir(tmp_path / STRANGE)
    forget_settings(monkeypatch)
    for name in VARIABLES:
        monkeypatch.delenv(f"FASTMLP_{name}", raising=False)
    yield
    check_files(tmp_path)


@pytest.fixture
def data(home: Path) -> Path:
    return home / f"{STRANGE}.data"


@pytest.fixture
def model(home: Path) -> Path:
    return home / f"{STRANGE} run"


def test_the_check_detects_names_that_are_not_escaped() -> None:
    for char in STRANGE:
        if not char.isprintable():
            with pytest.raises(AssertionError):
                check_text(f"a{char}forged")
    check_text("a\tb\nc", tabs=True)
    with pytest.raises(AssertionError):
        check_text("a\tb")


def test_files_of_runs(home: Path) -> None:
    found = check_files(home)
    assert {"config.toml", "data.json", "result.json", "report.txt", "mistakes.csv", "metrics.jsonl", "manifest.json"} <= found
    stored = json.loads((home / f"{STRANGE} run" / "result.json").read_text())
    assert stored["data"]["name"] == STRANGE
    assert stored["settings"]["data"] == str(home / f"{STRANGE}.data")
    with (home / f"{STRANGE} run" / "mistakes.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header[4:] == [printable(f"size {STRANGE}"), printable(f"kind {STRANGE}")]
    assert {row[5] for row in rows} <= {"plain", *(printable(f"{STRANGE}{number}") for number in (1, 2))}
    assert len(rows) == len((home / f"{STRANGE} run" / "mistakes.csv").read_text().splitlines()) - 1 > 0


def test_train(data: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / f"{STRANGE}.toml").write_text(f"data = {json.dumps(str(data))}\n")
    shown = succeeds("train", "--config", tmp_path / f"{STRANGE}.toml", "-v", *FAST, "--out", "../named")
    assert printable(STRANGE) in shown.stdout and printable(STRANGE) in shown.stderr
    succeeds("train", "--data", data, *FAST)  # the name of the run folder has the name of the data
    succeeds("train", "--data", data, *FAST, "--seeds", "2", "--out", "../seeds")
    text = succeeds("train", "--data", data, "--print-config").stdout
    assert text.startswith("data = ")
    assert "invalid TOML" not in text
    (tmp_path / "again.toml").write_text(text)
    assert succeeds("train", "--config", tmp_path / "again.toml", "--print-config").stdout == text
    shutil.copytree(model, f"{STRANGE} copy")
    assert "has control characters" in fails(2, "train", "--resume", f"{STRANGE} copy", "--epochs", "4")
    assert "has control characters" in fails(2, "train", "--data", data, "--out", STRANGE)


@pytest.mark.parametrize(
    "name",
    [
        "no\u00a0break",
        "wide\u3000space",
        "\U0001f469\u200d\U0001f4bb",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u202aa\u202c",
        "a\u2028b",
    ],
)
def test_names_of_runs_in_any_script(name: str, data: Path, model: Path) -> None:
    """Names with spaces and formatting characters are people's own; they are escaped where they are printed."""
    shown = succeeds("train", "--data", data, *FAST, "--out", name)
    assert printable(name) in shown.stdout + shown.stderr
    assert json.loads(succeeds("evaluate", name, "--json").stdout)["model"] == name
    succeeds("train", "--resume", name, "--epochs", "4")
    succeeds("compare", name, model, "--out", f"{name}.png")
    succeeds("train", "--data", data, *FAST, "--seeds", "2", "--out", f"{name} seeds")
    check_files(Path(name))


@pytest.mark.parametrize("name", ["a\nb", "a\x1bb", "a\x9bb", NOT_UTF_8])
def test_names_of_runs_that_are_refused(name: str, data: Path) -> None:
    assert "choose another [--out]" in fails(2, "train", "--data", data, *FAST, "--out", name)
    assert not Path(name).exists()


def test_learning_rate(data: Path) -> None:
    succeeds("lr-find", "--data", data, "--backend", "numpy", "--hidden", "4", "--out", f"{STRANGE}.png")
    assert Path(f"{STRANGE}.png").exists()


def test_evaluate(data: Path, model: Path, home: Path) -> None:
    succeeds("evaluate", model)
    succeeds("evaluate", model, "--data", data, "--mistakes", f"{STRANGE}.csv", "--predictions", f"{STRANGE}.txt")
    assert Path(f"{STRANGE}.csv").exists()
    succeeds("evaluate", model, "--report")
    result = json.loads(succeeds("evaluate", model, "--json", "--split", "all").stdout)
    assert result["data"]["name"] == STRANGE
    pictures = home / f"{STRANGE} images"
    succeeds("evaluate", home / f"{STRANGE} image run", "--data", pictures, "--mistakes", f"{STRANGE}.png")
    succeeds("verify", model)


def test_predict(data: Path, model: Path, home: Path) -> None:
    shown = succeeds("predict", model, data, tabs=True).stdout.splitlines()
    assert len(shown) == 60
    assert [line.split("\t")[0] for line in shown[:2]] == [f"{printable(str(data))}:{row}" for row in (1, 2)]
    assert {line.count("\t") for line in shown} == {2}
    found = json.loads(succeeds("predict", model, data, "--json").stdout)["predictions"]
    assert {one["input"] for one in found} == {str(data)}
    for suffix in ("csv", "json", "jsonl"):
        succeeds("predict", model, data, "--out", f"{STRANGE}.{suffix}")
    assert len(Path(f"{STRANGE}.csv").read_text().splitlines()) == 61
    assert json.loads(Path(f"{STRANGE}.json").read_text())["predictions"] == found
    assert [json.loads(line) for line in Path(f"{STRANGE}.jsonl").read_text().splitlines()] == found
    pictures = home / f"{STRANGE} images" / "no"
    shown = succeeds("predict", home / f"{STRANGE} image run", pictures, "--show", f"{STRANGE}.png", tabs=True).stdout
    assert len(shown.splitlines()) == 12


def test_predict_other_tables(model: Path) -> None:
    """Notes about unknown categories and ignored columns are one line."""
    other = table().assign(**{STRANGE: 1, f"kind {STRANGE}": f"unknown {STRANGE}"})
    other.to_csv(f"{STRANGE} other.data", index=False)
    assert "encoded as zeros" in succeeds("predict", model, f"{STRANGE} other.data", tabs=True).stderr
    table().drop(columns=f"kind {STRANGE}").to_csv("less.data", index=False)
    assert "missing columns" in fails(3, "predict", model, "less.data")


def test_compare(model: Path, home: Path) -> None:
    runs = (model, home / f"{STRANGE} image run")
    for style in ("text", "markdown", "latex", "csv", "json"):
        shown = succeeds("compare", *runs, "--format", style).stdout
        assert "title" in shown
        if style == "csv":
            assert len(shown.splitlines()) == 3
    succeeds("compare", home, "--out", f"{STRANGE}.png")


def test_damaged_images_are_named(home: Path) -> None:
    shutil.copytree(home / f"{STRANGE} images", "copy")
    Path("copy", "no", f"{STRANGE}damaged.png").write_bytes(b"damaged")
    Path("copy", "no", f"other.{STRANGE}").write_bytes(b"")
    assert "not a readable image" in fails(3, "train", "--data", "copy", *FAST)
    assert "skipped 1 of 25 images" in succeeds("train", "--data", "copy", "--skip-bad", *FAST).stderr
    run = home / f"{STRANGE} image run"
    assert "skipped 1 of 13 images" in succeeds("predict", run, "copy/no", "--skip-bad", tabs=True).stderr


@pytest.mark.parametrize("name", [STRANGE, NOT_UTF_8])
def test_errors_name_the_file_in_one_line(name: str, model: Path, data: Path) -> None:
    missing = f"{name} missing"
    for arguments in (
        ("train", "--data", missing),
        ("train", "--data", f"{missing}.csv"),
        ("train", "--config", missing),
        ("train", "--resume", missing),
        ("lr-find", "--data", missing),
        ("evaluate", missing),
        ("evaluate", model, "--data", missing),
        ("verify", missing),
        ("predict", missing, data),
        ("predict", model, missing),
        ("predict", model, data, "--out", missing),
        ("compare", missing),
        ("compare", model, "--out", missing),
        ("recipes", "plot", "--runs", missing),
        ("recipes", "show", missing),
        ("data", "verify", missing),
        ("data", "fetch", "mnist", "--data-dir", missing),
        ("data", "verify", "mnist", "--data-dir", missing),
        ("bench", "--data", missing, "--network", "2-3-2", "--backends", missing),
    ):
        result = run(*arguments, **OFFLINE)
        assert result.exit_code in (2, 3, 4), (arguments, result.output)
        assert len(result.stderr.splitlines()) <= 2, result.stderr
    for arguments in (("train", missing), ("compare", f"--{missing}"), (missing,), ("evaluate", model, "--split", missing)):
        assert "Usage: " in fails(2, *arguments)


@pytest.mark.parametrize("name", [STRANGE, NOT_UTF_8])
def test_data_and_doctor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "self_test", lambda: doctor.Check("self-test", name))
    monkeypatch.setenv("FASTMLP_CACHE_DIR", f"{name} cache")
    assert printable(f"{name} data") in run("doctor", "--data-dir", f"{name} data").stdout
    succeeds("data", "list", "--data-dir", name)


def test_a_traceback_cannot_control_the_terminal(model: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strange = STRANGE.replace("\n", "")

    def predict_files(*given: object, **options: object) -> None:
        raise RuntimeError(strange)

    monkeypatch.setattr("fastmlp.experiments.prediction.predict_files", predict_files)
    assert f"RuntimeError: {printable(strange)}\n" in fails(1, "predict", model, data)


@pytest.mark.full
def test_bench_and_recipes(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    np.savez(f"{STRANGE}.npz", x=np.random.default_rng(0).normal(size=(64, 3)), y=np.arange(64) % 2)
    flags = ("--network", "3-4-2", "--rows", "64", "--rounds", "1", "--backends", "numpy")
    shown = succeeds("bench", *flags, "--data", f"{STRANGE}.npz", "--out", f"{STRANGE} bench")
    assert printable(STRANGE) in shown.stdout
    assert "title" in fails(2, "recipes", "plot", "--runs", f"{STRANGE} runs")
    assert "FASTMLP_OFFLINE" in fails(4, "recipes", "run", "cs776-mlp-1", "--out", STRANGE, "--data-dir", STRANGE, **OFFLINE)


@pytest.mark.full
def test_extract(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    small = ("--filters", "2", "--dense", "2", "--epochs", "1", "--device", "cpu")
    pictures = home / f"{STRANGE} images"
    shown = succeeds(
        "extract", "--data", pictures, *small, "--out", f"{STRANGE}.npz", "--pictures", f"{STRANGE} pictures", "-v"
    )
    assert printable(f"{STRANGE}.npz") in shown.stdout
    succeeds("extract", "--data", pictures, *small, "train", *FAST, "--out", "../chain")
    shutil.copytree(pictures, NOT_UTF_8)
    assert "is not valid Unicode" in fails(3, "extract", "--data", NOT_UTF_8, *small, "--out", "features.npz")
    assert "is not valid Unicode" in fails(3, "extract", "--data", pictures, *small, "--out", f"{NOT_UTF_8}.npz")


def test_data_whose_names_are_not_utf_8(home: Path, tmp_path: Path) -> None:
    """Such a name cannot be stored in JSON, so it is refused before the training."""
    table().to_csv(f"{NOT_UTF_8}.data", index=False)
    for arguments in (("--out", "../run"), (), ("--seeds", "2")):
        assert "is not valid Unicode" in fails(3, "train", "--data", f"{NOT_UTF_8}.data", *FAST, *arguments)
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.rglob("*.safetensors"))
    model = home / f"{STRANGE} run"
    shown = succeeds("predict", model, f"{NOT_UTF_8}.data", "--out", "out.csv").stdout
    assert shown == "" and r"caf\udce9.data" in Path("out.csv").read_text()
    assert "is not valid Unicode" in fails(3, "predict", model, f"{NOT_UTF_8}.data", "--json")
    assert r"caf\udce9" in succeeds("evaluate", model, "--data", f"{NOT_UTF_8}.data").stdout
    shutil.copytree(model, NOT_UTF_8)
    assert r"caf\udce9" in succeeds("compare", NOT_UTF_8).stdout
