"""Tests of checkpoints: a training that continues from one gives the same bits and repeats no epoch, or is refused."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engines import need_backend, same_bits
from support.problems import problem

import fastmlp
import fastmlp.training.loop
from fastmlp.data.rows import Subset
from fastmlp.engines import make_engine
from fastmlp.engines.base import Engine, EngineSpec, RowMetrics
from fastmlp.engines.chunks import ChunkSize
from fastmlp.errors import ConfigError, DataError, WriteError
from fastmlp.nn.optimizers import RULES, Optimizer
from fastmlp.nn.schedules import SCHEDULES, ReduceOnPlateau, Schedule
from fastmlp.training.checkpoints import compare
from fastmlp.training.checkpoints import file as checkpoints
from fastmlp.training.checkpoints import folder as checkpoint_folder
from fastmlp.training.checkpoints.compare import settings_table
from fastmlp.training.loop import Interrupted, WriteFailed
from fastmlp.training.result import TIMINGS, TrainResult
from fastmlp.training.settings import SWITCHES, Settings

IMAGES, LABELS = np.random.default_rng(5).integers(0, 256, (110, 5, 4), np.uint8), np.arange(110) % 3
PARTS = (IMAGES[:80], LABELS[:80]), (IMAGES[80:], LABELS[80:])
SHORT: dict[str, Any] = {"epochs": 6, "batch_size": 16, "backend": "numpy", "seed": 4}


class Counted:
    """A wrapper around an engine that counts training rows, and raises SIGINT during the call with number `stop`, if given."""

    def __init__(self, engine: Engine, stop: int | None) -> None:
        self.engine, self.stop = engine, stop
        self.calls = self.rows = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def train(self, x: Any, y: Any, indices: Any, learning_rates: Any, weights: Any = None) -> RowMetrics:
        self.calls, self.rows = self.calls + bool(len(indices)), self.rows + len(indices)
        if self.calls == self.stop:
            signal.raise_signal(signal.SIGINT)
        return self.engine.train(x, y, indices, learning_rates, weights)


class Trainings:
    """Trainings of which each call of the engine has one mini-batch; `rows` has the rows trained on in each of them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.stop: int | None = None
        self.made: list[Counted] = []
        patch.setattr(ChunkSize, "record", lambda chunk, rows, seconds: None)
        patch.setattr(ChunkSize, "_whole_batches", lambda chunk, rows: chunk.batch_size)
        patch.setattr(fastmlp.training.loop, "make_engine", self.make)

    def make(self, backend: str, spec: EngineSpec) -> Counted:
        self.made.append(Counted(make_engine(backend, spec), self.stop))
        return self.made[-1]

    def __call__(self, stop: int | None = None, network: Any = None, parts: Any = PARTS, **changes: Any) -> TrainResult:
        """Train, until SIGINT in the call of the engine with number `stop`; return the result, which may be incomplete."""
        self.stop = stop
        network = network or fastmlp.Network(hidden=(9,), dropout=changes.pop("dropout", 0.0))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                result = fastmlp.train(network, *parts, **(SHORT | changes))
        except Interrupted as interrupted:
            result = interrupted.training
        self.rows.append(self.made[-1].rows)
        return result


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    return Trainings(monkeypatch)


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in history]


def check_same(found: TrainResult, expected: TrainResult) -> None:
    assert timeless(found.history) == timeless(expected.history)
    assert (found.best_epoch, found.stopped, found.state.step) == (expected.best_epoch, expected.stopped, expected.state.step)
    assert same_bits(found.model.parameters, expected.model.parameters)
    assert same_bits(found.state, expected.state)


def stored(folder: Path) -> list[str]:
    return [path.name for path in checkpoints.files_of(folder)]


# ------------------------------------------------------------------------------------------------ the same bits

SCHEDULE_OBJECTS = [*(Schedule(kind, warmup=0.7, step=2.0) for kind in SCHEDULES), ReduceOnPlateau(0.5, 0)]


@pytest.mark.parametrize("schedule", SCHEDULE_OBJECTS, ids=lambda one: getattr(one, "kind", "plateau"))
@pytest.mark.parametrize("optimizer", RULES)
def test_an_interrupted_training_ends_in_the_same_bits(optimizer: str, schedule: Any, train: Trainings, tmp_path: Path) -> None:
    """With each combination of dropout, early stopping and augmentation, and interruptions within epochs and at their ends."""
    for case, (dropout, patience, flip) in enumerate(itertools.product((0.0, 0.3), (0, 2), (0.0, 0.5))):
        settings = {"optimizer": optimizer, "schedule": schedule, "dropout": dropout, "patience": patience, "flip": flip}
        settings |= {"shift": int(flip > 0), "val_steps": 3 if case % 2 else None, "checkpoints": tmp_path / str(case)}
        whole = train(**settings | {"checkpoints": None})
        first = train(3 + case, **settings)  # 5 calls per epoch
        second = train(4, **settings, resume=True)
        third = train(**settings, resume=True)
        assert (first.stopped, second.stopped) == ("interrupted", "interrupted")
        check_same(third, whole)
        assert train.rows[-4] == sum(train.rows[-3:]), "an epoch was repeated or left out"


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_the_other_engines_continue_with_the_same_bits(backend: str, optimizer: str, train: Trainings, tmp_path: Path) -> None:
    settings = {"optimizer": Optimizer(optimizer, max_grad_norm=1.0), "dropout": 0.2, "backend": need_backend(backend)}
    whole = train(**settings)
    for stop in (8, 6):
        train(stop, **settings, checkpoints=tmp_path, resume=True)
    check_same(train(**settings, checkpoints=tmp_path, resume=True), whole)
    assert train.rows[0] == sum(train.rows[1:])


def test_regression_with_weights_continues_with_the_same_bits(train: Trainings, tmp_path: Path) -> None:
    x, _ = problem(90)
    weight = 1.0 + np.arange(70)
    network = fastmlp.Network(hidden=(5,))
    settings = {"network": network, "parts": ((x[:70], x[:70] @ np.eye(4, 2)), (x[70:], x[70:] @ np.eye(4, 2)))}
    settings |= {"sample_weight": weight, "val_steps": 2}
    whole = train(**settings)
    train(8, **settings, checkpoints=tmp_path)
    found = train(**settings, checkpoints=tmp_path, resume=True)
    check_same(found, whole)
    assert same_bits(found.model.predict(x), whole.model.predict(x))


@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_rows_that_are_not_shuffled_continue_with_the_same_bits(flip: float, train: Trainings, tmp_path: Path) -> None:
    settings = {"shuffle": False, "flip": flip, "dropout": 0.2, "val_steps": 3, "sample_weight": 1.0 + np.arange(80)}
    whole = train(**settings)
    for stop in (8, 6):
        train(stop, **settings, checkpoints=tmp_path, resume=True)
    check_same(train(**settings, checkpoints=tmp_path, resume=True), whole)
    assert train.rows[0] == sum(train.rows[1:])


def test_the_last_weights_are_kept_with_the_same_bits(train: Trainings, tmp_path: Path) -> None:
    """Of a resumed run, too; the best epoch, from which the patience counts, is then not that of the checkpoint."""
    settings = {"restore_best": False, "optimizer": fastmlp.SGD(0.3), "patience": 4, "epochs": 40, "val_steps": 3}
    whole = train(**settings)
    assert (whole.stopped, whole.best_epoch) == ("patience", len(whole.history))
    assert len(whole.history) > 3
    assert same_bits(whole.model.parameters, whole.state.parameters)
    folder = tmp_path / "a"
    first = train(5 * (len(whole.history) - 1) + 2, **settings, checkpoints=folder)  # the best epoch was two epochs before
    newest = checkpoints.read(checkpoints.files_of(folder)[-1]).checkpoint
    assert newest.best_epoch == len(newest.history) == len(first.history) - 1 == len(whole.history) - 1
    check_same(train(**settings, checkpoints=folder, resume=True), whole)
    with pytest.raises(ConfigError, match="restore_best was False and is now True"):
        train(**settings | {"restore_best": True}, checkpoints=folder, resume=True)


def test_a_checkpoint_without_a_setting_that_was_added_later_has_its_default(
    train: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older(settings: Settings) -> dict[str, Any]:
        return {name: value for name, value in settings_table(settings).items() if name not in SWITCHES}

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_folder, "settings_table", older)
        train(8, schedule=ReduceOnPlateau(), checkpoints=tmp_path)
    assert not checkpoints.read(checkpoints.files_of(tmp_path)[-1]).record.settings.keys() & {*SWITCHES}
    with pytest.raises(ConfigError, match="shuffle was True and is now False"):
        train(schedule=ReduceOnPlateau(), shuffle=False, checkpoints=tmp_path, resume=True)
    check_same(train(schedule=ReduceOnPlateau(), checkpoints=tmp_path, resume=True), train(schedule=ReduceOnPlateau()))


def test_without_a_validation_split(train: Trainings, tmp_path: Path) -> None:
    whole = train(parts=PARTS[:1])
    train(2, parts=PARTS[:1], checkpoints=tmp_path)  # in the first epoch
    check_same(train(parts=PARTS[:1], checkpoints=tmp_path, resume=True), whole)
    assert train.rows[0] == sum(train.rows[1:])


def test_any_number_of_threads_gives_the_same_bits(train: Trainings, tmp_path: Path) -> None:
    whole = train(backend="numba", threads=1)
    train(12, backend="numba", threads=3, checkpoints=tmp_path)
    check_same(train(backend="numba", threads=2, checkpoints=tmp_path, resume=True), whole)


def test_a_time_limit_ends_a_training_that_can_continue(train: Trainings, tmp_path: Path) -> None:
    whole = train()
    first = train(max_time=1e-9, checkpoints=tmp_path)
    assert (first.stopped, [row["rows"] for row in first.history]) == ("time", [16])
    check_same(train(checkpoints=tmp_path, resume=True), whole)
    assert train.rows[0] == sum(train.rows[1:])


def test_more_epochs(train: Trainings, tmp_path: Path) -> None:
    whole = train(epochs=9)
    train(epochs=5, checkpoints=tmp_path)
    check_same(train(epochs=9, checkpoints=tmp_path, resume=True), whole)
    check_same(train(epochs=9, checkpoints=tmp_path, resume=True), whole)  # nothing is left to train
    assert train.rows == [720, 400, 320, 0]


def test_more_patience(train: Trainings, tmp_path: Path) -> None:
    settings = {"epochs": 30, "optimizer": fastmlp.SGD(0.5)}
    whole = train(**settings, patience=7)
    short = train(**settings, patience=2, checkpoints=tmp_path)
    assert short.stopped == "patience"
    assert len(short.history) < len(whole.history)
    check_same(train(**settings, patience=2, checkpoints=tmp_path, resume=True), short)  # still no patience left
    check_same(train(**settings, patience=7, checkpoints=tmp_path, resume=True), whole)
    assert train.rows[0] == sum(train.rows[1:])


# ------------------------------------------------------------------------------------------------ files


def test_checkpoints_by_age(train: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs take 20 seconds on a simulated clock, so every second epoch, and the last one, write a checkpoint."""
    written: list[int] = []
    write = checkpoint_folder.write
    clock = {"now": 0.0}

    def keep(path: Path, *given: Any) -> None:
        written.append(int(path.stem[5:]))
        write(path, *given)

    def tick(row: dict[str, Any], engine: Engine) -> None:
        clock["now"] += 10.0

    monkeypatch.setattr(checkpoint_folder, "write", keep)
    monkeypatch.setattr(checkpoint_folder.time, "monotonic", lambda: clock["now"])
    train(epochs=7, checkpoints=tmp_path, callbacks=[tick])
    assert written == [10, 20, 30, 35]
    assert stored(tmp_path) == ["step-000000000030.safetensors", "step-000000000035.safetensors"]
    written.clear()
    train(epochs=7, checkpoints=tmp_path / "all", checkpoint_seconds=0)
    assert written == [5, 10, 15, 20, 25, 30, 35]


def test_the_old_checkpoints_stay_until_the_new_one_is_whole(
    train: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    save = checkpoints.file.save

    def keep(model: Any, path: Path, training: Any) -> None:
        seen.append(stored(tmp_path))
        for file in checkpoints.files_of(tmp_path):
            checkpoints.read(file)
        save(model, path, training)

    monkeypatch.setattr(checkpoints.file, "save", keep)
    train(checkpoints=tmp_path, checkpoint_seconds=0)
    assert [len(one) for one in seen] == [0, 1, 2, 2, 2, 2]


def test_a_checkpoint_is_a_model_with_the_best_weights(train: Trainings, tmp_path: Path) -> None:
    result = train(epochs=30, optimizer=fastmlp.SGD(0.5), patience=4, checkpoints=tmp_path)
    assert result.best_epoch < len(result.history)
    newest = checkpoints.files_of(tmp_path)[-1]
    model = fastmlp.load(newest, backend="numpy")
    assert same_bits(model.parameters, result.model.parameters)
    assert same_bits(model.predict_proba(IMAGES), result.model.predict_proba(IMAGES))
    read = checkpoints.read_newest(checkpoints.files_in(tmp_path)).checkpoint
    assert same_bits(read.state, result.state)
    assert not same_bits(read.state.parameters, model.parameters)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
def test_a_damaged_checkpoint_is_not_used(damage: str, train: Trainings, tmp_path: Path) -> None:
    whole = train(checkpoints=tmp_path, checkpoint_seconds=0)
    older, newest = checkpoints.files_of(tmp_path)
    content = newest.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    newest.write_bytes({"flipped": flipped, "truncated": content[:-9], "empty": b""}[damage])
    with pytest.warns(RuntimeWarning, match=rf"{newest.name}.*Using the checkpoint before it, {older.name}"):
        found = fastmlp.train(fastmlp.Network(hidden=(9,)), *PARTS, **SHORT, checkpoints=tmp_path, resume=True)
    check_same(found, whole)
    for file in checkpoints.files_of(tmp_path):
        file.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match=newest.name), pytest.raises(DataError, match=older.name):
        checkpoints.read_newest(checkpoints.files_in(tmp_path))


def test_models_and_other_versions_are_not_checkpoints(
    train: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train().model.save(tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"model\.safetensors is a model, not a checkpoint"):
        train(resume=tmp_path / "model.safetensors")
    monkeypatch.setattr(checkpoint_folder, "VERSION", 2)
    train(checkpoints=tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(DataError, match="format version 2"):
        checkpoints.read_newest(checkpoints.files_in(tmp_path / "a"))


def test_a_failed_write_ends_the_training_with_its_result(
    train: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, save, failing = train(epochs=6), checkpoints.file.save, [False, False, True]

    def fail(model: Any, path: Path, training: Any) -> None:
        if failing.pop(0):
            raise WriteError(f"cannot write {path}: no space")
        save(model, path, training)

    monkeypatch.setattr(checkpoints.file, "save", fail)
    with pytest.raises(WriteFailed, match="no space") as caught:
        train(checkpoints=tmp_path, checkpoint_seconds=0)
    monkeypatch.setattr(checkpoints.file, "save", save)
    assert isinstance(caught.value, DataError)
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - written by this test
    for training in (caught.value.training, copy.training):
        assert (training.stopped, len(training.history)) == ("failed", 3)
        assert timeless(training.history) == timeless(whole.history[:3])
    assert [*map(int, (name[5:17] for name in stored(tmp_path)))] == [5, 10]
    check_same(train(checkpoints=tmp_path, resume=True), whole)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.fixture
def folder(train: Trainings, tmp_path: Path) -> Path:
    train(8, checkpoints=tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 5}, "seed was 4 and is now 5"),
        ({"batch_size": 8, "seed": 1}, "batch_size was 16 and is now 8; seed was 4 and is now 1"),
        ({"optimizer": fastmlp.Adam(0.5)}, r"optimizer\.learning_rate was 0\.001 and is now 0\.5"),
        ({"schedule": ReduceOnPlateau()}, "schedule was 'Schedule' and is now 'ReduceOnPlateau'\\. Use"),
        ({"network": fastmlp.Network(hidden=(8,))}, r"sizes was \(20, 9, 3\) and is now \(20, 8, 3\)"),
        ({"network": fastmlp.Network(hidden=(9,), l2=0.1)}, r"l2 was 0\.0 and is now 0\.1"),
        ({"epochs": 1}, "epochs must be at least 2, not 1"),
        ({"val_steps": 2}, "val_steps was None and is now 2"),
    ],
)
def test_other_settings_are_refused(changes: dict[str, Any], message: str, train: Trainings, folder: Path) -> None:
    before = stored(folder)
    with pytest.raises(ConfigError, match=message):
        train(**changes, checkpoints=folder, resume=True)
    assert stored(folder) == before
    assert train.made[-1].rows == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": ((IMAGES[:79], LABELS[:79]), PARTS[1])},
        {"parts": ((IMAGES[:80][::-1], LABELS[:80][::-1]), PARTS[1])},
        {"parts": (PARTS[0], (IMAGES[80:], LABELS[80:][::-1]))},
        {"parts": PARTS[:1], "patience": 0},
        {"sample_weight": np.arange(80) + 1.0},
        {"scaling": "unit"},
    ],
    ids=["fewer rows", "another order", "validation labels", "no validation", "weights", "scaling"],
)
def test_other_data_are_refused(changes: dict[str, Any], train: Trainings, folder: Path) -> None:
    with pytest.raises(DataError, match="the training or validation arrays, the sample weights or the scaling differ"):
        train(**changes, checkpoints=folder, resume=True)


def test_changed_code_of_an_activation_is_refused(train: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = fastmlp.Network(
        hidden=(4,), activation=fastmlp.Activation("resumed-cube", lambda z, a: z * z * z, lambda z, y, a: 3 * z * z)
    )
    train(8, network=network, checkpoints=tmp_path)
    check_same(train(network=network, checkpoints=tmp_path, resume=True), train(network=network))
    monkeypatch.setattr(compare, "digest_of", lambda name: "other")
    with pytest.raises(ConfigError, match="the code of the activation 'resumed-cube' has changed"):
        train(network=network, checkpoints=tmp_path, resume=True)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_more_epochs_are_refused_if_the_schedule_depends_on_them(kind: str, train: Trainings, tmp_path: Path) -> None:
    schedule = Schedule(kind, warmup=1.0)
    few, many = (schedule.multipliers(0, 60, 10, epochs) for epochs in (6, 8))
    assert schedule.depends_on_epochs == (not np.array_equal(few, many))
    train(12, schedule=schedule, checkpoints=tmp_path)
    if not schedule.depends_on_epochs:
        check_same(train(schedule=schedule, epochs=8, checkpoints=tmp_path, resume=True), train(schedule=schedule, epochs=8))
        return
    with pytest.raises(ConfigError, match=f"epochs must stay 6, because the learning rates of the schedule {kind} depend on"):
        train(schedule=schedule, epochs=8, checkpoints=tmp_path, resume=True)


def test_another_engine_continues_within_rounding_errors(train: Trainings, folder: Path) -> None:
    whole, network = train(), fastmlp.Network(hidden=(9,))
    settings = SHORT | {"backend": "numba", "checkpoints": folder, "resume": True}
    with pytest.raises(ConfigError, match=r"written with backend numpy \(now numba\); use the same engine"):
        fastmlp.train(network, *PARTS, **settings, strict=True)
    with pytest.warns(RuntimeWarning, match=r"written with backend numpy \(now numba\); the results may differ"):
        found = fastmlp.train(network, *PARTS, **settings)
    np.testing.assert_allclose(found.history["val_loss"], whole.history["val_loss"], rtol=1e-4)
    assert not same_bits(found.model.parameters, whole.model.parameters)


def test_another_processor_is_told(train: Trainings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = checkpoint_folder.numerical_environment(train.made[-1])  # type: ignore[arg-type]
    assert now.keys() == {"backend", "processor", "numpy"}
    monkeypatch.setattr(checkpoint_folder, "numerical_environment", lambda engine: now | {"processor": "Z80"})
    with pytest.raises(ConfigError, match=rf"processor {now['processor']} \(now Z80\)"):
        train(checkpoints=folder, resume=True, strict=True)
    with pytest.raises(RuntimeWarning, match=rf"processor {now['processor']} \(now Z80\)"):
        train(checkpoints=folder, resume=True)


def test_arguments(train: Trainings, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has checkpoints of an earlier training run; resume it with resume=True"):
        train(checkpoints=folder)
    with pytest.raises(ConfigError, match=r"resume=True needs the folder of the checkpoints"):
        train(resume=True)
    with pytest.raises(DataError, match="no checkpoint in"):
        train(resume=tmp_path / "none")
    with pytest.raises(ConfigError, match="for one training, not for several seeds"):
        train(checkpoints=folder, seeds=[1, 2])
    with pytest.raises(ConfigError, match="checkpoints must be the path of a folder, not True"):
        train(checkpoints=True)
    for seconds in (-1, float("nan"), "20", True):
        with pytest.raises(ConfigError, match="checkpoint_seconds must be zero or a positive number of seconds"):
            train(checkpoints=tmp_path / "a", checkpoint_seconds=seconds)


def test_an_older_checkpoint_is_resumed_in_another_folder(train: Trainings, folder: Path, tmp_path: Path) -> None:
    """In the same folder, the newer checkpoints would be kept, and those of the resumed run removed at once."""
    train(checkpoints=folder, resume=True)
    older, newest = checkpoints.files_of(folder)
    before = stored(folder)
    with pytest.raises(ConfigError, match=f"has checkpoints of another training run, or newer ones, such as {newest.name}"):
        train(resume=older, checkpoints=folder)
    assert stored(folder) == before
    check_same(train(resume=older, checkpoints=tmp_path / "new"), train())
    assert newest.name in stored(tmp_path / "new")


@pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="the system has no locks of folders")
def test_a_folder_has_one_writer(train: Trainings, tmp_path: Path) -> None:
    def second(row: Any, engine: Engine) -> None:
        with pytest.raises(ConfigError, match=f"another training run is writing to {tmp_path}"):
            train(checkpoints=tmp_path, resume=True)

    train(checkpoints=tmp_path, callbacks=[second])
    train(checkpoints=tmp_path, resume=True)


def test_resume_from_a_path_writes_no_checkpoints(train: Trainings, folder: Path, tmp_path: Path) -> None:
    whole, before = train(), stored(folder)
    check_same(train(resume=folder), whole)
    check_same(train(resume=str(checkpoints.files_of(folder)[-1])), whole)
    check_same(train(resume=folder, checkpoints=tmp_path / "new"), whole)
    assert stored(folder) == before
    assert len(stored(tmp_path / "new")) == 1


def test_the_digest_of_data_does_not_depend_on_how_they_are_held(train: Trainings, folder: Path) -> None:
    order = np.random.default_rng(0).permutation(110)
    base = np.empty_like(IMAGES)
    base[order] = IMAGES
    parts = tuple((Subset(base.reshape(110, 20), order[rows]), LABELS[rows]) for rows in (slice(80), slice(80, None)))
    check_same(train(parts=parts, image_shape=(5, 4, 1), resume=folder), train())


def test_slots_of_another_optimizer_are_refused(train: Trainings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the checkpoint are right, but its slots are not."""

    def without_slots(path: Path) -> Any:
        stored = read(path)
        state = stored.checkpoint.state._replace(slots=stored.checkpoint.state.slots[:1])
        return stored._replace(checkpoint=stored.checkpoint._replace(state=state))

    read = checkpoints.read
    monkeypatch.setattr(checkpoints, "read", without_slots)
    with pytest.raises(DataError, match="optimizer slot"):
        train(checkpoints=folder, resume=True)
