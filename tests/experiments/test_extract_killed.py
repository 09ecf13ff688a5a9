"""Tests of `fastmlp extract` and signals: runs that are interrupted or killed in each phase, and runs with the same output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastmlp.cnn.training import Trainer
from support.cli import call, ok, refused
from support.cnn import SHAPE, bars
from support.extract import DRAWN, own_folder, without_pictures  # noqa: F401 - fixtures of all tests
from support.signals import interrupted

from fastmlp.data import features as feature_files
from fastmlp.data.load import load_data
from fastmlp.experiments.features import chain, extraction
from fastmlp.experiments.features.outputs import output_names
from fastmlp.experiments.folder import locked_file
from fastmlp.files.locks import TEMPORARY

pytestmark = pytest.mark.full

PATIENCE = 120  # timeout in seconds, long enough for a slow, busy machine; a process usually takes a few seconds
SMALL = ["--filters", "4,6", "--dense", "8", "--epochs", "3", "--lr", "0.003", "--batch-size", "16", "--device", "cpu"]
MLP = ["--hidden", "8", "--epochs", "3", "--backend", "numpy"]
OUTPUTS = output_names(("train", "validation", "test"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images, and with the features that an uninterrupted run wrote."""
    folder: Path = tmp_path_factory.mktemp("home")
    pixels, labels = bars(200, 0)
    np.savez(folder / "images.npz", x=pixels.reshape(-1, *SHAPE[:2]), y=labels)
    ok("extract", "--data", folder / "images.npz", *SMALL, "--out", folder / "features.npz", "-q")
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_files, "AT_ONCE", 16)


def entries() -> list[str]:
    return sorted(path.name for path in Path.cwd().iterdir())


# ------------------------------------------------------------------------------------------------ killed


# Runs the command line and kills it, as `kill -9` does, when it calls a function for the n-th time.
KILLED = """
import importlib, os, signal, sys
from fastmlp.commands import main
from fastmlp.data import features

features.AT_ONCE = 16
module, path, count = sys.argv.pop(1).split(":")
owner = importlib.import_module(module)
*parents, name = path.split(".")
for parent in parents:
    owner = getattr(owner, parent)
function, calls = getattr(owner, name), []

def killed(*given, **named):
    calls.append(given)
    if len(calls) == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*given, **named)

setattr(owner, name, killed)
main()
"""


def kill(moment: str, *arguments: str | Path) -> None:
    """Run the command line and kill it at the given moment: module, function, and number of the call."""
    command = [sys.executable, "-c", KILLED, moment, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any(name.endswith(".fastmlp-lock") for name in entries()) == (".pictures" not in moment)


@pytest.mark.parametrize("moment", ["os:fsync:3", "fastmlp.data.features:rounded:4"])
def test_a_killed_run_goes_on_to_the_same_features(moment: str, home: Path) -> None:
    """The run is killed while it writes the checkpoint of the second epoch, or the features of the fourth block."""
    arguments = ["extract", "--data", home / "images.npz", *SMALL, "--out", "f.npz"]
    kill(moment, *arguments)
    training = moment.startswith("os")
    assert [TEMPORARY.fullmatch(name) is not None for name in entries()].count(True) == training
    assert bool([*Path.cwd().glob("*.partial")]) is not training
    again = ok(*arguments).stderr
    assert "continuing from f.npz." in again
    epochs = [line.split()[1] for line in again.splitlines() if line.startswith("epoch ")]
    assert epochs == (["2/3", "3/3"] if training else [])
    assert load_data("f.npz").sha256 == load_data(home / "features.npz").sha256
    assert entries() == ["f.npz"]


def test_a_run_that_is_killed_while_it_replaces_a_folder(home: Path) -> None:
    """The old features are restored, and the next run with `force` replaces them."""
    arguments = ["extract", "--data", home / "images.npz", *SMALL, "--out", "f"]
    ok(*arguments, "--seed", "1", "-q")
    before = load_data("f").sha256
    kill("pathlib:Path.rename:2", *arguments, "--force")
    assert not Path("f").exists()
    assert "exists and was made with these settings" in ok(*arguments, "--seed", "1").stderr
    assert load_data("f").sha256 == before
    assert "was made with other settings" in refused(2, *arguments, "-q")
    assert "continuing from f." in ok(*arguments, "--force").stderr
    assert load_data("f").sha256 == load_data(home / "features.npz").sha256
    assert entries() == ["f"]


def test_an_error_while_a_folder_is_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["extract", "--data", home / "images.npz", *SMALL, "-q", "--out", "f"]
    ok(*arguments, "--seed", "1")
    before, rename = load_data("f").sha256, Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.suffix == ".partial":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    assert refused(3, *arguments, "--force").startswith("cannot write f: Input/output error")
    assert load_data("f").sha256 == before


def test_a_run_that_is_killed_while_it_plots(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run plots the missing figures, with the same bytes; then nothing is left to do."""
    for module, name, draw in DRAWN:
        monkeypatch.setattr(module, name, draw)
    arguments = ["extract", "--data", home / "images.npz", *SMALL, "--out", "f.npz"]
    kill("fastmlp.experiments.features.pictures:plot_maps:1", *arguments)
    folder = Path("f-pictures")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(before) == sorted(OUTPUTS[:5])
    features = Path("f.npz").stat().st_mtime_ns
    again = ok(*arguments).stderr
    assert "nothing to extract\nf-pictures lacks maps.png, projection.png, cnn-mistakes.png, cnn-report.txt; writing" in again
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(after) == sorted(OUTPUTS)
    assert {name: after[name] for name in before} == before
    times = [path.stat().st_mtime_ns for path in folder.iterdir()]
    assert ok(*arguments).stderr.endswith("nothing to extract\n")
    assert [path.stat().st_mtime_ns for path in folder.iterdir()] == times
    assert Path("f.npz").stat().st_mtime_ns == features


def test_figures_of_features_that_are_replaced_are_removed(home: Path) -> None:
    """Otherwise, if the run were killed before it plotted the new figures, the next run would keep the old ones."""
    Path("p").mkdir()
    for name in (*OUTPUTS, "mine.png"):
        Path("p", name).touch()
    ok("extract", "--data", home / "images.npz", *SMALL, "--out", "f.npz", "--pictures", "p", "-q")  # plots nothing, see DRAWN
    assert [path.name for path in Path("p").iterdir()] == ["mine.png"]


# ------------------------------------------------------------------------------------------------ interrupted


CONTINUES = "the same command continues from"
ANEW = "the same command starts again, from the beginning"
INTERRUPTED: list[tuple[Any, str, int, list[str], str]] = [
    (Trainer, "_train_step", 1, ["--out", "f.npz"], f"in the first epoch; no checkpoint was saved, so {ANEW}"),
    (Trainer, "checkpoint", 2, ["--out", "f.npz"], f"after epoch 2; {CONTINUES} C"),
    (
        Trainer,
        "checkpoint",
        2,
        ["--out", "f.npz", "--no-resume"],
        f"after epoch 2; {ANEW}, because resume is false; if it is true, it continues from C",
    ),
    (feature_files, "rounded", 2, ["--out", "f.npz"], f"during the extraction; {CONTINUES} C and P"),
    (extraction, "extract_rows", 1, ["train", *MLP, "--out", "run"], f"during the extraction; {CONTINUES} C"),
]


@pytest.mark.parametrize(("owner", "name", "count", "flags", "message"), INTERRUPTED)
def test_the_message_names_what_was_saved(
    owner: Any, name: str, count: int, flags: list[str], message: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, calls = getattr(owner, name), []

    def interrupted(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*given)

    monkeypatch.setattr(owner, name, interrupted)
    done = call("extract", "--data", home / "images.npz", *SMALL, *flags)
    assert done.exit_code == 128 + signal.SIGTERM, done.output
    saved = entries()
    for path in saved:
        message = message.replace("C" if path.endswith(".checkpoint") else "P", path)
    assert done.stderr.splitlines()[-1] == f"interrupted {message}"
    assert all(path in message for path in saved)


def test_the_command_to_resume_is_given_only_for_features_in_a_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ["extract", "--data", home / "images.npz", *SMALL]
    for features, given in (([], False), (["--out", "f.npz"], True)):
        with interrupted(1, monkeypatch):
            done = call(*images, *features, "train", *MLP, "--out", f"run-{given}")
        assert done.exit_code == 128 + signal.SIGINT, done.output
        assert ("fastmlp train --resume" in done.stderr) == given


# ------------------------------------------------------------------------------------------------ the same output


def test_a_second_run_with_the_same_output_is_refused(home: Path) -> None:
    images = ["extract", "--data", home / "images.npz", *SMALL, "-q"]
    with locked_file(Path("f.npz")):
        for arguments in (images, [*images, "--seed", "1"], [*images, "--force"]):
            line = refused(2, *arguments, "--out", "f.npz")
            assert line == "out: another run is writing to f.npz; wait until it has ended, or choose another path [--out]"
        assert "another run" in refused(2, *images, "--out", "f.npz", "train", *MLP, "--out", "run")
        assert entries() == [".f.npz.fastmlp-lock"]
        ok(*images, "--out", "g.npz")
        ok(*images, "train", *MLP, "--out", "run")  # features in memory
    assert entries() == ["g.npz", "run"]


# ------------------------------------------------------------------------------------------------ recipes


def test_a_finished_recipe_without_figures_gets_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"FASTMLP_DATASET": str(home / "images.npz"), "FASTMLP_EPOCHS": "1", "FASTMLP_BACKEND": "numpy"}
    settings |= {"FASTMLP_FILTERS": "4,6", "FASTMLP_DENSE": "8", "FASTMLP_DEVICE": "cpu"}
    arguments, folder = ["recipes", "run", "cs776-cnn-1", "--out", "set", "-q"], Path("set/cs776-cnn-1")
    ok(*arguments, **settings)
    result = (folder / "result.json").stat().st_mtime_ns
    drawn: list[Path] = []
    monkeypatch.setattr(chain, "draw_chain", lambda found, folder: drawn.append(folder))
    ok(*arguments, **settings)
    assert drawn == [folder]
    for name in chain.chain_output_names(("train", "validation", "test")):
        (folder / name).touch()
    ok(*arguments, **settings)
    assert drawn == [folder]
    (folder / "mistakes.png").unlink()
    (folder / "features.npz").unlink()  # the CNN is not trained again for a figure
    ok(*arguments, **settings)
    assert drawn == [folder]
    assert (folder / "result.json").stat().st_mtime_ns == result
