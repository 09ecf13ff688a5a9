"""Tests of runs that were interrupted or killed: `train --resume`, their evaluation, and `verify`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import call, no_figures, ok, refused  # noqa: F401 - an autouse fixture
from support.signals import interrupted

import fastmlp
from fastmlp.experiments.folder import write_manifest
from fastmlp.experiments.record import Recorder
from fastmlp.files import read_lines, read_toml
from fastmlp.training.checkpoints import file as checkpoints

FLAGS = ("--hidden", "8", "--backend", "numpy", "--epochs", "6", "--dropout", "0.2", "--optimizer", "momentum")
FLAGS = (*FLAGS, "--per-class-every", "2", "--save-every", "3", "--checkpoint-seconds", "0", "-q")
SAME = ("model.safetensors", "metrics.jsonl", "classes.jsonl", "models/epoch-0003.safetensors", "models/epoch-0006.safetensors")


class Killed(BaseException):
    """Raised to end a run like a killed process: nothing is written after it."""


@contextmanager
def killed(epoch: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """End the run while the metrics of an epoch are written."""
    with patch.context() as inner:
        done = Recorder.epoch_done

        def die(recorder: Recorder, row: dict[str, Any]) -> None:
            done(recorder, row)
            if row["epoch"] == epoch:
                raise Killed

        inner.setattr(Recorder, "epoch_done", die)
        with pytest.raises(Killed):
            yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without an interruption."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    ok("train", *FLAGS, "--out", folder)
    return folder


@pytest.fixture
def unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was killed in epoch 5, after the checkpoint of epoch 4 and the metrics of epoch 5."""
    folder = tmp_path / "killed"
    with killed(5, monkeypatch):
        call("train", *FLAGS, "--out", folder)
    return folder


def check_same(folder: Path, whole: Path) -> None:
    for name in SAME:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    results = [json.loads((one / "result.json").read_text()) for one in (folder, whole)]
    for name in ("train", "validation", "test", "epochs", "best_epoch", "stopped", "data", "network"):
        assert results[0][name] == results[1][name], name


# ------------------------------------------------------------------------------------------------ resume


def test_metrics_depend_only_on_data_and_settings(whole: Path, tmp_path: Path) -> None:
    ok("train", *FLAGS, "--out", tmp_path / "run")
    check_same(tmp_path / "run", whole)
    timings = read_lines(whole / "timings.jsonl")
    assert [row.keys() for row in timings] == [{"epoch", "seconds", "eval_seconds", "rows_per_second"}] * 6
    assert not read_lines(whole / "metrics.jsonl")[0].keys() & {"seconds", "eval_seconds", "rows_per_second"}


def test_a_killed_run_ends_in_the_same_bytes(unfinished: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not (unfinished / "result.json").exists()
    assert len(read_lines(unfinished / "metrics.jsonl")) == 5
    with interrupted(0, monkeypatch) as calls:
        result = ok("train", "--resume", unfinished)
    assert sum(calls) == 2 * 1079, "an epoch of the checkpoint was repeated"
    assert f"resuming after epoch 4, from {unfinished}/checkpoints/step-" in result.stderr
    check_same(unfinished, whole)
    assert len(read_lines(unfinished / "timings.jsonl")) == 6
    assert len(list((unfinished / "checkpoints").iterdir())) == 2


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with killed(1, monkeypatch):
        call("train", *FLAGS, "--out", folder)
    assert not list((folder / "checkpoints").iterdir())
    assert {"config.toml", "data.json"} <= {path.name for path in folder.iterdir()}
    ok("train", "--resume", folder, "-q")
    check_same(folder, whole)


def test_an_interrupted_run_continues_within_the_epoch(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, flags = tmp_path / "run", [one for one in FLAGS if one != "-q"]
    with interrupted(2 * 1079 + 500, monkeypatch) as first:
        result = call("train", *flags, "--out", folder)
    assert result.exit_code == 130
    assert f"to resume the run: `fastmlp train --resume {folder}`" in result.stderr.splitlines()
    assert json.loads((folder / "result.json").read_text())["stopped"] == "interrupted"
    with interrupted(0, monkeypatch) as second:
        ok("train", "--resume", folder)
    assert sum(first) % 1079 > 0
    assert sum(first) + sum(second) == 6 * 1079
    check_same(folder, whole)


def test_a_finished_run_stays_or_is_trained_for_longer(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    ok("train", "--resume", tmp_path / "run", "-q")
    check_same(tmp_path / "run", whole)
    ok("train", "--resume", tmp_path / "run", "--epochs", "8", "-q")
    ok("train", *FLAGS[:5], "8", *FLAGS[6:], "--out", tmp_path / "longer")
    check_same(tmp_path / "run", tmp_path / "longer")
    assert read_toml(tmp_path / "run" / "config.toml")["epochs"] == 8


def test_disk_usage_is_told(tmp_path: Path) -> None:
    text = ok("train", *FLAGS[:-1], "--out", tmp_path / "run").stderr
    sizes = [path.stat().st_size for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert f"(2 checkpoints, {sum(sizes) / 1000:.1f} kB)" in text
    text = ok("train", *FLAGS[:-1], "--no-checkpoints", "--out", tmp_path / "none").stderr
    assert "checkpoint" not in text
    assert not (tmp_path / "none" / "checkpoints").exists()
    assert "the run has ended, and has no checkpoint" in refused(2, "train", "--resume", tmp_path / "none", "-q")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--lr", "0.5"), "lr was 0.01 and is now 0.5; leave them out, or start a new run [--lr]"),
        (
            ("--seed", "1", "--batch-size", "8"),
            "seed was 0 and is now 1, batch_size was 64 and is now 8; leave them out, or start a new run [--seed, --batch",
        ),
        (("--out", "b"), "out cannot be changed when a run is resumed; resume a copy of the folder instead [--out]"),
        (("--seeds", "2"), "seeds cannot be combined with resume"),
        (("--recipe", "cs776-mlp-6"), "recipe cannot be combined with resume"),
    ],
)
def test_other_settings_are_refused(flags: tuple[str, ...], message: str, whole: Path) -> None:
    before = (whole / "config.toml").read_bytes()
    assert message in refused(2, "train", "--resume", whole, *flags, "-q")
    assert (whole / "config.toml").read_bytes() == before


def test_variables_do_not_change_a_run(unfinished: Path, whole: Path) -> None:
    ok("train", "--resume", unfinished, "-q", FASTMLP_LR="0.7", FASTMLP_HIDDEN="99", FASTMLP_SEEDS="3")
    check_same(unfinished, whole)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    assert "is not a run folder, since it has no config.toml" in refused(3, "train", "--resume", tmp_path, "-q")


def test_paths_inside_a_run_are_explained(whole: Path) -> None:
    for path in ("checkpoints", checkpoints.files_of(whole)[-1]):
        line = refused(3, "train", "--resume", whole / path, "-q")
        assert line == f"{whole / path} is part of the run folder {whole}; give the path of the run folder"


def test_other_options(whole: Path, tmp_path: Path) -> None:
    assert "hidden = [\n    8,\n]" in ok("train", "--resume", whole, "--print-config").stdout
    assert "strict needs a run to resume" in refused(2, "train", *FLAGS, "--strict", "--out", tmp_path / "a")
    assert ok("train", "--resume", whole, "--epochs", "6").stderr.endswith("to train for longer\n")


def test_moved_and_changed_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(60) % 2)
    with killed(4, monkeypatch):
        call("train", "--data", tmp_path / "a.npz", *FLAGS, "--out", tmp_path / "run")
    (tmp_path / "a.npz").rename(tmp_path / "b.npz")
    assert "a.npz" in refused(3, "train", "--resume", tmp_path / "run", "-q")
    np.savez(tmp_path / "a.npz", x=x + 1, y=np.arange(60) % 2)
    assert "has changed since the run" in refused(3, "train", "--resume", tmp_path / "run", "-q")
    ok("train", "--resume", tmp_path / "run", "--data", tmp_path / "b.npz", "-q")
    ok("train", "--data", tmp_path / "b.npz", *FLAGS, "--out", tmp_path / "whole")
    check_same(tmp_path / "run", tmp_path / "whole")


def test_the_runs_of_several_seeds_are_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = (*FLAGS, "--seeds", "2", "--threads", "1")
    ok("train", *flags, "--out", tmp_path / "whole")
    with interrupted(8 * 1079 + 100, monkeypatch) as first:
        assert call("train", *flags, "--out", tmp_path / "runs").exit_code == 130
    assert [(tmp_path / "runs" / f"seed-{seed}" / "result.json").exists() for seed in range(2)] == [True, False]
    with interrupted(0, monkeypatch) as second:
        ok("train", "--resume", tmp_path / "runs", "-q")
    assert sum(first) + sum(second) == 12 * 1079
    for seed in range(2):
        check_same(tmp_path / "runs" / f"seed-{seed}", tmp_path / "whole" / f"seed-{seed}")
    summaries = [json.loads((tmp_path / name / "seeds.json").read_text()) for name in ("runs", "whole")]
    assert summaries[0] | {"out": ""} == summaries[1] | {"out": ""}


@pytest.mark.parametrize("names", [("group7-mlp-1",), ("group7-mlp-1", "group7-mlp-2")])
def test_recipes_are_resumed(names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).integers(0, 256, (300, 28, 28), np.uint8)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(300) % 10, x_test=x[:50], y_test=np.arange(50) % 10)
    given = {"FASTMLP_DATASET": str(tmp_path / "data.npz"), "FASTMLP_BACKEND": "numpy", "FASTMLP_EPOCHS": "4"}
    command = ("recipes", "run", *names, "--jobs", "1", "-q", "--out")
    with interrupted(0, monkeypatch) as all_rows:
        ok(*command, tmp_path / "whole", **given)
    with interrupted(sum(all_rows) // 2, monkeypatch) as first:
        assert call(*command, tmp_path / "runs", **given).exit_code == 130
    for file in (tmp_path / "runs").rglob("config.toml"):  # as if an older version had written it, without `shuffle`
        file.write_text(file.read_text().replace("shuffle = true\n", ""))
    with interrupted(0, monkeypatch) as second:
        ok(*command, tmp_path / "runs", **given)
    assert sum(first) + sum(second) == sum(all_rows)
    assert first
    assert second
    for name in names:
        for file in ("model.safetensors", "metrics.jsonl"):
            assert (tmp_path / "runs" / name / file).read_bytes() == (tmp_path / "whole" / name / file).read_bytes()


def test_force_leaves_nothing_of_the_old_run(unfinished: Path, tmp_path: Path) -> None:
    ok("train", "--hidden", "4", "--backend", "numpy", "--epochs", "1", "--out", unfinished, "--force", "-q")
    ok("train", "--hidden", "4", "--backend", "numpy", "--epochs", "1", "--out", tmp_path / "new", "-q")
    files = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) for folder in (unfinished, tmp_path / "new")]
    assert files[0] == files[1]


# ------------------------------------------------------------------------------------------------ evaluation


def test_an_unfinished_run_is_evaluated_on_its_test_split(unfinished: Path, whole: Path) -> None:
    result = ok("evaluate", unfinished, "--json")
    newest = checkpoints.files_of(unfinished)[-1].name
    assert result.stderr.startswith(
        f"{unfinished}: the run has not finished; the newest checkpoint, {newest}, has 4 of 6 epochs, and the weights of epoch "
    )
    assert f"`fastmlp train --resume {unfinished}`" in result.stderr
    found = json.loads(result.stdout)
    assert found["complete"] is False
    assert found["data"]["rows"] == {"test": 359}
    model, split = fastmlp.load(unfinished / "checkpoints" / newest), fastmlp.load_data("digits").split().test
    assert split is not None
    assert found["test"]["accuracy"] == model.score(split.x, [str(label) for label in split.y])
    assert json.loads(ok("evaluate", whole, "--json").stdout)["complete"] is True


@pytest.mark.parametrize("name", ["checkpoints/step-*.safetensors", "models/epoch-0003.safetensors"])
def test_files_of_an_unfinished_run_are_evaluated_on_its_test_split(name: str, unfinished: Path) -> None:
    file = sorted(unfinished.glob(name))[-1]
    result = json.loads(ok("evaluate", file, "--json").stdout)
    assert result["data"]["rows"] == {"test": 359}


def test_an_unfinished_run_without_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    with killed(4, monkeypatch):
        call("train", *FLAGS, "--no-checkpoints", "--out", folder)
    line = refused(3, "evaluate", folder)
    assert line.startswith(f"{folder}: the run has not finished, and has no checkpoint, only its settings and ")
    assert "the metrics of 4 epochs and 1 model in the subfolder models; resume" in line


def test_an_unfinished_run_with_changed_data_is_not_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", x=np.eye(60, 3), y=np.arange(60) % 2)
    with killed(4, monkeypatch):
        call("train", "--data", tmp_path / "a.npz", *FLAGS, "--out", tmp_path / "run")
    np.savez(tmp_path / "a.npz", x=np.eye(60, 3)[::-1], y=np.arange(60) % 2)
    result = call("evaluate", tmp_path / "run")
    assert result.exit_code == 3
    assert "has changed since the run" in result.stderr.splitlines()[-1]


def test_predict_uses_the_newest_checkpoint_of_an_unfinished_run(unfinished: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 784)))
    newest = checkpoints.files_of(unfinished)[-1]
    with pytest.warns(RuntimeWarning, match=f"the run has not finished; using its newest checkpoint, {newest.name}"):
        result = ok("predict", unfinished, tmp_path / "x.npz")
    assert result.stdout == ok("predict", newest, tmp_path / "x.npz").stdout
    assert result.stdout == ok("predict", newest.parent, tmp_path / "x.npz").stdout


# ------------------------------------------------------------------------------------------------ verify


def test_verify_repeats_the_last_epoch(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*.*")}
    with interrupted(0, monkeypatch) as calls:
        result = json.loads(ok("verify", whole, "--json", "-q").stdout)
    assert sum(calls) == 1079
    assert (result["same"], result["epochs"]) == (True, [6, 6])
    assert all(hashes["run"] == hashes["repeated"] for hashes in result["sha256"].values())
    assert result["sha256"].keys() == {"weights", "optimizer", "best weights", "metrics.jsonl", "model.safetensors"}
    assert {path: path.read_bytes() for path in whole.rglob("*.*")} == before
    assert ok("verify", whole, "-q").stdout.startswith(f"{whole}: epoch 6 was reproduced, with identical weights, ")


def test_verify_starts_at_the_beginning_if_there_is_one_checkpoint(tmp_path: Path) -> None:
    ok("train", *FLAGS[:-2], "100", "-q", "--out", tmp_path / "run")
    assert json.loads(ok("verify", tmp_path / "run", "--json", "-q").stdout)["epochs"] == [1, 6]


@pytest.mark.parametrize("rows", [3 * 1079 + 500, 200])
def test_verify_of_an_interrupted_run(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with interrupted(rows, monkeypatch):
        call("train", *FLAGS, "--out", tmp_path / "run")
    assert json.loads(ok("verify", tmp_path / "run", "--json", "-q").stdout)["same"] is True


@pytest.mark.parametrize("part", ["weights", "optimizer", "metrics.jsonl", "model.safetensors"])
def test_verify_finds_a_difference(part: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    if part == "metrics.jsonl":
        content = (folder / part).read_bytes()
        (folder / part).write_bytes(content.replace(b'"lr":0.01', b'"lr":0.02', 1))
    elif part == "model.safetensors":
        model = fastmlp.load(folder / part)
        parameters = model.parameters.copy()
        parameters[0] += 1
        dataclasses.replace(model, parameters=parameters).save(folder / part)
        write_manifest(folder)
    else:
        last = checkpoints.read(checkpoints.files_of(folder)[-1])
        array = last.checkpoint.state.parameters if part == "weights" else last.checkpoint.state.slots
        array.flat[3] = np.nextafter(array.flat[3], np.float32(9))
        checkpoints.write(last.path, last.checkpoint, last.record)
    line = refused(3, "verify", folder, "-q")
    assert line.startswith(f"{folder} was not reproduced: {part} differ; use the engine")


def test_verify_needs_a_checkpoint(tmp_path: Path) -> None:
    ok("train", *FLAGS, "--no-checkpoints", "--out", tmp_path / "run")
    assert "has no checkpoint to compare with" in refused(3, "verify", tmp_path / "run")
