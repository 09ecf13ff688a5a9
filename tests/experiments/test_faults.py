"""Runs whose files cannot be written, and runs that a power failure ends. benchmarks.durability tries all cases."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import ok, refused

from benchmarks.durability import faults, power, trials
from benchmarks.durability.calls import observed, real
from benchmarks.durability.faults import REMOVING, Fault, fail_each
from benchmarks.durability.trials import Trial, damaged, differences
from fastmlp import files, load
from fastmlp.errors import WriteError
from fastmlp.experiments import folder, record, result
from fastmlp.experiments.folder import remove_files, write_manifest
from fastmlp.experiments.record import Recorder
from fastmlp.files.locks import unfinished
from fastmlp.training.checkpoints.file import files_of

NAMES = ("new", "plain", "forced", "resumed")
FLAGS = ("train", "-q", "--hidden", "6", "--backend", "numpy", "--epochs", "4", "--checkpoint-seconds", "0")


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with trials.quick_runs():
        yield


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, quick: None) -> dict[str, Trial]:
    return trials.trials(tmp_path_factory.mktemp("trials"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The path of a run folder whose parent folder may be removed."""
    return tmp_path / "parent" / "run"


def wrong_of(outcomes: Iterator[faults.Outcome]) -> list[str]:
    found = list(outcomes)
    assert any(one.message for one in found)
    return [line for one in found for line in one.wrong]


# ------------------------------------------------------------------------------------------------ failed calls


@pytest.mark.full
def test_every_call_that_writes_fails_once(cases: dict[str, Trial], run: Path) -> None:
    outcomes = list(fail_each(cases["new"], run, errno.ENOSPC))
    assert [line for one in outcomes for line in one.wrong] == []
    failed = [one.fault.failed for one in outcomes]
    written = {call.path.relative_to(run).as_posix() for call in failed if call is not None and call.name == "open"}
    assert {".", "checkpoints", "models", "metrics.jsonl", "timings.jsonl", "classes.jsonl"} <= written
    assert {call.name for call in failed if call is not None} == {"open", "write", "fsync", "replace", "mkdir"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EINTR])
@pytest.mark.parametrize("persistent", [False, True])
def test_some_calls_fail(cases: dict[str, Trial], name: str, code: int, persistent: bool, run: Path) -> None:
    assert wrong_of(fail_each(cases[name], run, code, persistent, step=29)) == []


def test_old_checkpoints_that_cannot_be_removed_do_not_end_a_training(cases: dict[str, Trial], run: Path) -> None:
    outcomes = list(fail_each(cases["new"], run, errno.EIO, True, REMOVING))
    assert outcomes[0].message == ""
    assert outcomes[0].wrong == []
    assert outcomes[0].warned == [f"{run}/checkpoints: old checkpoints cannot be removed ({os.strerror(errno.EIO)})"]
    assert len(files_of(run)) == 2  # the last run, in which nothing failed


def test_a_run_without_checkpoints_that_failed_starts_again(cases: dict[str, Trial], run: Path) -> None:
    case = cases["new"]
    without = case._replace(config=trials.replace(case.config, checkpoints=False, per_class_every=None, save_every=None))
    without = without._replace(reference=trials.reference_run(without.config, run.parent.parent / "reference"))
    assert wrong_of(fail_each(without, run, errno.ENOSPC, step=5)) == []


@pytest.mark.parametrize(
    ("module", "name", "replacement", "message"),
    [
        (real, "ftruncate", lambda descriptor, size: None, "the last line is incomplete"),
        (result, "save_elsewhere", lambda model, folder: folder / "nothing.safetensors", "no such model"),
        (record, "restore_logs", lambda folder, history: None, "metrics.jsonl differs"),
        (result, "weights_place", lambda training, folder, saved: "they are lost", "the weights are lost"),
        (record.RunCheckpoints, "remove", lambda self: None, "has no settings, but ['checkpoints']"),
    ],
)
def test_what_a_failed_call_breaks_is_detected(
    cases: dict[str, Trial], run: Path, module: Any, name: str, replacement: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, replacement)
    outcomes = (one for persistent in (False, True) for one in fail_each(cases["new"], run, errno.EIO, persistent, step=3))
    assert any(message in line for one in outcomes for line in one.wrong)


# ------------------------------------------------------------------------------------------------ the disk and the folder


def message_of_a_removed_folder(folder: Path) -> Path:
    """Train in a folder that is removed during the run; check the message, and return the path of the weights that it names."""
    line = refused(3, *FLAGS, "--out", folder)
    assert not folder.exists()
    found = re.fullmatch(r"cannot (write|read) (.+): .+; the weights of the best epoch, (\d+), are in (.+)", line)
    assert found is not None, line
    assert Path(found[2]).is_relative_to(folder)
    place = Path(found[4])
    assert place.parent == folder.parent
    assert place.name.startswith("run-")
    return place


def test_a_folder_that_is_removed_during_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ok(*FLAGS[:-3], "2", "--save-every", "1", "--out", tmp_path / "whole")
    done = Recorder.epoch_done

    def remove(recorder: Recorder, row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            shutil.rmtree(recorder.folder)
        done(recorder, row)

    monkeypatch.setattr(Recorder, "epoch_done", remove)
    place = message_of_a_removed_folder(tmp_path / "run")
    expected = load(tmp_path / "whole", backend="numpy")
    assert np.array_equal(load(place, backend="numpy").parameters, expected.parameters)


def test_the_current_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is no other folder than the one for temporary files."""
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(Recorder, "epoch_done", lambda recorder, row: remove_and_log(tmp_path / "here", row))
    line = refused(3, *FLAGS, "--out", ".")
    (place,) = (tmp_path / "temporary").iterdir()
    assert line.endswith(f"the weights of the best epoch, 1, are in {place}")
    assert load(place, backend="numpy").network.sizes[1] == 6


def test_the_message_names_the_last_epoch_if_its_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Recorder, "epoch_done", lambda recorder, row: remove_and_log(tmp_path / "run", row))
    line = refused(3, *FLAGS, "--no-restore-best", "--out", tmp_path / "run")
    assert "; the weights of the last epoch, 1, are in " in line


def remove_and_log(folder: Path, row: dict[str, Any]) -> None:
    shutil.rmtree(folder)
    files.append_line(Path("metrics.jsonl"), {"epoch": row["epoch"]})


@pytest.mark.parametrize("name", ["write_manifest", "write_json", "sync"])
def test_a_folder_that_is_removed_while_the_result_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function: Callable[..., Any] = getattr(result, name)

    def remove(path: Path, *others: Any) -> None:
        shutil.rmtree(tmp_path / "run")
        function(path, *others)

    monkeypatch.setattr(result, name, remove)
    assert message_of_a_removed_folder(tmp_path / "run").exists()


def test_a_full_disk_without_another_folder(cases: dict[str, Trial], run: Path, tmp_path: Path) -> None:
    """The message names the newest checkpoint if the weights cannot be saved anywhere."""
    trial = cases["new"]
    trial.prepare(run)
    with observed(Path("/"), Fault(60, errno.ENOSPC, persistent=True)), pytest.raises(WriteError) as caught:
        trial.run(run)
    assert "\n" not in str(caught.value)
    assert "the weights cannot be saved in another folder either" in str(caught.value)
    newest = files_of(run)[-1]
    assert str(caught.value).endswith(f"; the newest checkpoint is {newest}")
    assert load(newest, backend="numpy").network == load(trial.start or cases["forced"].start, backend="numpy").network


def test_the_seeds_of_a_run_that_was_killed_before_it_had_written_all_settings(tmp_path: Path) -> None:
    ok(*FLAGS, "--seeds", "3", "--seed", "5", "--out", tmp_path / "whole")
    ok(*FLAGS, "--seeds", "3", "--seed", "5", "--out", tmp_path / "run")
    for seed in (5, 7):
        shutil.rmtree(tmp_path / "run" / f"seed-{seed}")
        (tmp_path / "run" / f"seed-{seed}").mkdir()
    ok("train", "--resume", tmp_path / "run", "-q")
    for seed in (5, 6, 7):
        assert differences(tmp_path / "run" / f"seed-{seed}", trials.contents(tmp_path / "whole" / f"seed-{seed}")) == []


@pytest.mark.parametrize(("name", "removed"), [("new", ["checkpoints", "data.json"]), ("forced", []), ("resumed", [])])
def test_what_a_signal_removes_before_the_settings_are_written(
    cases: dict[str, Trial], name: str, removed: list[str], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that has settings, and is resumed without a checkpoint, needs data.json to be resumed again."""
    describe, found = record.RunCheckpoints.describe, []

    def note(checkpoints: record.RunCheckpoints) -> None:
        found.append(sorted(path.name for path in unfinished if path.suffix != ".tmp" and path != run))
        describe(checkpoints)

    monkeypatch.setattr(record.RunCheckpoints, "describe", note)
    cases[name].prepare(run)
    if name == "resumed":
        shutil.rmtree(run / "checkpoints")
    cases[name].run(run)
    assert found == [removed]


# ------------------------------------------------------------------------------------------------ power failures


@pytest.mark.parametrize("name", NAMES)
def test_power_failures(cases: dict[str, Trial], name: str, run: Path) -> None:
    states = power.record(cases[name], run)
    assert len(states) > 300
    assert [line for state in states[::19] for line in power.check_state(cases[name], run, state)] == []


def not_synchronized(*skipped: str) -> Callable[[Path], None]:
    def sync(path: Path) -> None:
        if path.name not in skipped:
            files.sync(path)

    return sync


def write_only(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    files._write_all(descriptor, data)
    os.close(descriptor)


def describe_in_another_order(run: record.RunCheckpoints) -> None:
    files.write_toml(run.run / "config.toml", record.portable(run.plan.config))
    DESCRIBE(run)


DESCRIBE = record.RunCheckpoints.describe


def manifest_first(folder: Path, patterns: Sequence[str]) -> None:
    """Write the manifest before the files that `write_result` writes after its call of `remove_files`."""
    remove_files(folder, patterns)
    write_manifest(folder)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "function", "replacement", "message"),
    [
        ("new", (files, "_write_and_sync"), write_only, "config.toml: "),
        ("new", (files, "_sync_folder"), lambda folder: None, "the settings are lost"),
        ("new", (folder, "make_folders"), lambda folder: folder.mkdir(exist_ok=True), "the settings are lost"),
        ("new", (record, "sync"), not_synchronized("classes.jsonl"), "classes.jsonl differs"),
        (
            "plain",
            (record, "make_folders"),
            lambda folder: folder.mkdir(exist_ok=True),
            "models/epoch-0002.safetensors differs",
        ),
        ("new", (result, "sync"), lambda path: None, "metrics.jsonl differs"),
        ("forced", (record, "sync"), not_synchronized("checkpoints", "models"), "not continued: "),
        ("new", (record.RunCheckpoints, "describe"), describe_in_another_order, "not continued: "),
        ("new", (result, "remove_files"), manifest_first, "curves.png differs"),
    ],
)
def test_every_fsync_and_the_order_of_files_are_needed(
    cases: dict[str, Trial], run: Path, name: str, function: tuple[Any, str], replacement: Any, message: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*function, replacement)
        states = power.record(cases[name], run)[::3]
        from_both_ends = (state for pair in zip(states, reversed(states), strict=True) for state in pair)
        assert any(message in line for state in from_both_ends for line in power.check_state(cases[name], run, state))


def test_files_that_are_written_in_another_way_are_detected(
    cases: dict[str, Trial], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_write_and_sync", lambda path, data: path.write_bytes(data) and None)
    with pytest.raises(AssertionError, match="not observed"):
        power.record(cases["new"], run)


# ------------------------------------------------------------------------------------------------ damaged files


def test_every_torn_file_is_detected(cases: dict[str, Trial], run: Path) -> None:
    cases["new"].prepare(run)
    cases["new"].run(run)
    assert damaged(run) == []
    for path in [path for path in run.rglob("*") if path.is_file() and path.suffix != ".toml"]:  # a part of TOML may be valid
        content = path.read_bytes()
        whole_lines = content.rfind(b"\n", 0, len(content) // 2) + 1
        for kept in [whole_lines + 1] if path.suffix in (".jsonl", ".txt") else [0, len(content) // 2, len(content) - 2]:
            path.write_bytes(content[:kept])
            assert [line for line in damaged(run) if str(path) in line], (path, kept)
        path.write_bytes(content)
    (run / ".fastmlp-0123456789abcdef.tmp").touch()
    assert damaged(run)
    assert damaged(run, temporaries=True) == []
