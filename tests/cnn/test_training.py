"""Tests of CNN training on a small network: optimizer steps, resuming, early stopping, best epoch, augmentation."""

from __future__ import annotations

import copy
import importlib.util
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from fastmlp.cnn.errors import DescriptionError, DivergedError, FileError, MissingError
from fastmlp.cnn.files import read_state, write_versioned
from fastmlp.cnn.images import Augmentation, Images, Scaling
from fastmlp.cnn.training import (
    CHECKPOINT_VERSION,
    MONITORS,
    OPTIMIZERS,
    SCHEDULES,
    Settings,
    Split,
    Trainer,
    Watch,
    evaluate,
    pick_device,
)
from support.cnn import SHAPE, bars, network
from torch.nn.functional import cross_entropy

from fastmlp.experiments.config import extract

pytestmark = pytest.mark.full

NO_TORCHVISION = importlib.util.find_spec("torchvision") is None
needs_torchvision = pytest.mark.skipif(NO_TORCHVISION, reason="torchvision is not installed")


UNIT = Scaling(np.zeros(1, np.float32), np.full(1, 1 / 255, np.float32))


def split(count: int, seed: int, scaling: Scaling | None = UNIT) -> Split:
    pixels, labels = bars(count, seed)
    return Split(Images(pixels, SHAPE, scaling), labels)


def trainer(settings: Settings, *, regularize: str = "none", rows: int = 120, watch: Watch | None = None) -> Trainer:
    return Trainer(network(regularize=regularize), split(rows, 1), split(60, 2), settings, watch)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_a_network_learns() -> None:
    run = trainer(Settings(epochs=12, lr=3e-3, batch_size=16), rows=400)
    done = run.run()
    assert done.stopped == "epochs"
    assert [row["epoch"] for row in done.history] == list(range(1, 13))
    assert done.history[-1]["accuracy"] > 0.9
    assert max(row["val_accuracy"] for row in done.history) > 0.9
    assert all(row["rows_per_second"] > 0 for row in done.history)


def test_a_step_equals_the_formula_of_the_optimizer() -> None:
    """One step of SGD without momentum and one step of Adam give the same weights as explicit formulas."""
    data = split(16, 3)
    for name in ("sgd", "adam"):
        settings = Settings(optimizer=name, lr=0.1, momentum=0.0, batch_size=16, epochs=1, label_smoothing=0.1)
        run = Trainer(network(), data, None, settings)
        done = run.run()
        own = network()
        torch.manual_seed(0 * 1_000_003 + 1)
        order = torch.randperm(16).numpy()
        x = torch.from_numpy(data.images.pixels[order].reshape(-1, *SHAPE)).permute(0, 3, 1, 2).float() / 255
        loss = cross_entropy(own(x), torch.from_numpy(data.labels[order]), label_smoothing=0.1)
        loss.backward()
        assert done.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
        for (_, mine), theirs in zip(own.named_parameters(), run.network.parameters(), strict=True):
            assert mine.grad is not None
            step = mine.grad if name == "sgd" else mine.grad / (mine.grad.abs() + 1e-8)
            torch.testing.assert_close(theirs.detach(), mine.detach() - 0.1 * step, rtol=1e-3, atol=2e-4)


def test_images_that_are_not_shuffled_have_the_same_mini_batches_in_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: dict[bool, list[list[int]]] = {True: [], False: []}
    for shuffle, seen in rows.items():
        run = trainer(Settings(epochs=2, batch_size=50, shuffle=shuffle))
        batch = run.train.images.batch
        monkeypatch.setattr(
            run.train.images, "batch", lambda rows, *given, s=seen, b=batch: s.append([*rows]) or b(rows, *given)
        )
        run.run()
    ordered = list(range(120))
    assert rows[False] == [ordered[:50], ordered[50:100], ordered[100:]] * 2
    first, second = ([row for batch in epoch for row in batch] for epoch in (rows[True][:3], rows[True][3:]))
    assert sorted(first) == ordered != first != second


@pytest.mark.parametrize(("optimizer", "regularize"), [("adam", "dropout"), ("sgd", "dropout"), ("adam", "dropout2d")])
def test_a_resumed_training_ends_with_the_same_weights(optimizer: str, regularize: str) -> None:
    settings = Settings(optimizer=optimizer, lr=1e-3, epochs=4, batch_size=16, schedule="cosine")
    kept: list[bytes] = []
    whole = trainer(settings, regularize=regularize, watch=Watch(checkpoint=kept.append))
    wanted = whole.run()
    assert len(kept) == 4
    for done in (1, 3, 4):
        later = trainer(settings, regularize=regularize)
        torch.rand(7)  # the state of the global generator must not matter
        later.resume(kept[done - 1], "epoch.pt")
        found = later.run()
        assert same_weights(later.network, whole.network)
        assert found.best_epoch == wanted.best_epoch
        assert [row["loss"] for row in found.history] == [row["loss"] for row in wanted.history]
        assert [row["val_loss"] for row in found.history] == [row["val_loss"] for row in wanted.history]


def test_the_weights_of_an_epoch_are_shown_before_its_checkpoint() -> None:
    """Otherwise, a run that is killed between the two would not show the epoch, since it continues after it."""
    seen: list[Any] = []
    watch = Watch(checkpoint=lambda data: seen.append(read_state(data, "a.pt")["network"]))
    run = trainer(Settings(epochs=2, batch_size=16), watch=watch)
    watch.weights = lambda epoch: seen.append((epoch, copy.deepcopy(run.network.state_dict())))
    run.run()
    for number, ((epoch, shown), kept) in enumerate(zip(seen[::2], seen[1::2], strict=True), start=1):
        assert epoch == number
        assert all(torch.equal(shown[name], kept[name]) for name in kept)


def test_a_stopped_epoch_is_discarded() -> None:
    seen: list[int] = []
    kept: list[bytes] = []

    def batch(epoch: int, done: int, *_: Any) -> None:
        seen.append(done)

    watch = Watch(batch=batch, checkpoint=kept.append, stop=lambda: len(seen) >= 11)  # an epoch has 8 batches
    settings = Settings(epochs=3, batch_size=16)
    stopped = trainer(settings, watch=watch)
    done = stopped.run()
    assert (done.stopped, len(done.history), len(kept), seen[-1]) == ("signal", 1, 1, 48)
    later, whole = trainer(settings), trainer(settings)
    later.resume(kept[-1], "epoch.pt")
    later.run()
    whole.run()
    assert same_weights(later.network, whole.network)


@pytest.mark.parametrize("monitor", MONITORS)
def test_the_best_weights_are_restored_after_early_stopping(monitor: str) -> None:
    run = trainer(Settings(epochs=60, lr=2e-2, batch_size=8, patience=3, monitor=monitor), rows=40)
    done = run.run()
    figures = [row[f"val_{monitor}"] for row in done.history]
    assert done.stopped == "patience"
    assert done.best_epoch == 1 + figures.index(min(figures) if monitor == "loss" else max(figures)) == len(figures) - 3
    best = done.history[done.best_epoch - 1]
    assert evaluate(run.network, split(60, 2))[:2] == (best["val_loss"], best["val_accuracy"])


@pytest.mark.parametrize("monitor", MONITORS)
def test_without_restore_best_the_last_weights_are_kept(monitor: str) -> None:
    """Early stopping still counts from the best epoch, also after the training was resumed."""
    settings = Settings(epochs=60, lr=2e-2, batch_size=8, patience=3, monitor=monitor, restore_best=False)
    kept: list[bytes] = []
    run = trainer(settings, rows=40, watch=Watch(checkpoint=kept.append))
    done = run.run()
    figures = [row[f"val_{monitor}"] for row in done.history]
    assert (done.stopped, done.best_epoch) == ("patience", len(figures))
    assert 1 + figures.index(min(figures) if monitor == "loss" else max(figures)) == len(figures) - 3
    last = done.history[-1]
    assert evaluate(run.network, split(60, 2))[:2] == (last["val_loss"], last["val_accuracy"])
    later = trainer(settings, rows=40)
    later.resume(kept[-2], "epoch.pt")
    found = later.run()
    assert (found.best_epoch, found.stopped) == (done.best_epoch, "patience")
    assert same_weights(later.network, run.network)


def test_without_restore_best_a_stopped_epoch_is_discarded() -> None:
    """The weights are then those of the last complete epoch."""
    seen: list[int] = []
    watch = Watch(batch=lambda epoch, done, *_: seen.append(done), stop=lambda: len(seen) >= 11)  # an epoch has 8 batches
    stopped = trainer(Settings(epochs=3, batch_size=16, restore_best=False), watch=watch)
    done, whole = stopped.run(), trainer(Settings(epochs=1, batch_size=16))
    whole.run()
    assert (done.stopped, done.best_epoch) == ("signal", 1)
    assert same_weights(stopped.network, whole.network)


def test_without_validation_the_last_epoch_is_the_best() -> None:
    run = Trainer(network(), split(40, 1), None, Settings(epochs=3))
    done = run.run()
    assert (done.best_epoch, done.history[-1]["val_loss"]) == (3, None)


def test_divergence_restores_the_best_weights() -> None:
    run = trainer(Settings(optimizer="sgd", lr=1e18, epochs=3))
    with pytest.raises(
        DivergedError, match=r"the loss became \w+ in epoch 1: lower the learning rate \(now 1e\+18\)"
    ) as caught:
        run.run()
    assert caught.value.settings == ("lr",)
    assert same_weights(run.network, network())


def test_learning_rates() -> None:
    assert Settings(lr=0.4, schedule="step", lr_gamma=0.5, lr_step=2).learning_rate(5.9) == pytest.approx(0.1)
    cosine = Settings(lr=0.4, schedule="cosine", epochs=4)
    assert [cosine.learning_rate(epoch) for epoch in (0, 2, 4)] == pytest.approx([0.4, 0.2, 0.0])
    assert Settings(lr=0.4).learning_rate(99) == 0.4


def test_damaged_and_foreign_checkpoints() -> None:
    settings = Settings(epochs=1)
    kept: list[bytes] = []
    trainer(settings, watch=Watch(checkpoint=kept.append)).run()
    for damaged in (b"", kept[0][:500], kept[0][:-300]):
        with pytest.raises(FileError, match=r"a\.pt: not a readable PyTorch file"):
            trainer(settings).resume(damaged, "a.pt")
    with pytest.raises(FileError, match=r"a\.pt: the checkpoint does not match the network \(.*\); delete it"):
        trainer(settings, regularize="batch").resume(kept[0], "a.pt")
    with pytest.raises(FileError, match=r"a\.pt: the checkpoint was written with optimizer 'adam', .* set optimizer to 'adam'"):
        trainer(Settings(optimizer="sgd")).resume(kept[0], "a.pt")
    extractor = write_versioned(CHECKPOINT_VERSION, {"table": "", "scaling": {}, "network": {}})
    with pytest.raises(FileError, match=r"a\.pt: not a training checkpoint \(missing: optimizer_name, optimizer, .*\)"):
        trainer(settings).resume(extractor, "a.pt")


def test_a_checkpoint_has_a_format_version() -> None:
    assert read_state(trainer(Settings()).checkpoint(), "a.pt")["format_version"] == CHECKPOINT_VERSION == 1


@pytest.mark.parametrize(("version", "found"), [(2, "format version 2"), (0, "format version 0"), (None, "no format version")])
def test_checkpoints_of_another_format_version_are_refused(version: int | None, found: str) -> None:
    """The format version is checked before the other entries, which are all different from those of version 1."""
    state = {"optimizer": "lion", "weights": [1, 2]} | ({} if version is None else {"format_version": version})
    buffer = io.BytesIO()
    torch.save(state, buffer)
    run = trainer(Settings(epochs=1))
    with pytest.raises(
        FileError,
        match=rf"^a\.pt: {found}, but this version of fastmlp reads format version 1; delete it to train from the start$",
    ):
        run.resume(buffer.getvalue(), "a.pt")
    assert same_weights(run.network, network())


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": "lion"}, "optimizer must be one of adam, adamw, sgd, not 'lion'"),
    ({"schedule": "linear"}, "schedule must be one of"),
    ({"monitor": "f1"}, "monitor must be one of loss, accuracy, not 'f1'"),
    ({"batch_size": 0}, "batch_size must be 1 or more"),
    ({"epochs": 0}, "epochs must be 1 or more"),
    ({"lr": 0.0}, "lr must be a positive number"),
    ({"lr": math.inf}, "lr must be a positive number"),
    ({"momentum": 1.0}, "momentum must be at least 0 and below 1"),
    ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
    ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1"),
    ({"patience": 0}, "patience must be 1 or more"),
]


@pytest.mark.parametrize(("given", "message"), INVALID)
def test_invalid_settings(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DescriptionError, match=message) as caught:
        Settings(**given)
    assert caught.value.settings == tuple(given)


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(DescriptionError, match="device must be auto, cpu or cuda, not 'gpu'") as caught:
        pick_device("gpu")
    assert caught.value.settings == ("device",)
    if not torch.cuda.is_available():
        with pytest.raises(MissingError, match="device 'cuda' needs a CUDA GPU, but none is available; set device to cpu"):
            pick_device("cuda")


# ------------------------------------------------------------------------------------------------ images


def test_pixels_are_scaled_and_channels_come_first() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 4 * 3 * 2), np.uint8)
    shift, factor = np.array([1.0, 2.0], np.float32), np.array([0.5, 0.25], np.float32)
    found = Images(pixels, (4, 3, 2), Scaling(shift, factor)).batch(np.array([4, 0])).numpy()
    wanted = (pixels.reshape(5, 4, 3, 2)[[4, 0]] - shift) * factor
    np.testing.assert_array_equal(found, wanted.transpose(0, 3, 1, 2))
    each = rng.normal(size=(2, 24)).astype(np.float32)
    found = Images(pixels, (4, 3, 2), Scaling(*each)).batch(slice(1, 3)).numpy()
    wanted = ((pixels[1:3] - each[0]) * each[1]).reshape(2, 4, 3, 2)
    np.testing.assert_array_equal(found, wanted.transpose(0, 3, 1, 2))


@needs_torchvision
def test_each_image_is_augmented_separately() -> None:
    pixels = np.full((64, 64), 9, np.uint8)
    pixels[:, 0] = 200  # the pixel in the upper left corner
    images = Images(pixels, SHAPE)
    flip = Augmentation(flip=0.5).transform(8, 8)
    torch.manual_seed(0)
    flipped = images.batch(np.arange(64), flip).numpy()[:, 0]
    assert {(image[0, 0], image[0, 7]) for image in flipped} == {(200, 9), (9, 200)}
    moved = images.batch(np.arange(64), Augmentation(shift=2).transform(8, 8)).numpy()[:, 0]
    assert moved.shape == (64, 8, 8)
    assert len({tuple(np.argwhere(image == 0).ravel()) for image in moved}) > 5
    blanked = images.batch(np.arange(64), Augmentation(erase=0.5).transform(8, 8)).numpy()[:, 0]
    assert 10 < sum((image == 0).any() for image in blanked) < 54
    assert Augmentation().transform(8, 8) is None


@needs_torchvision
def test_only_training_images_are_augmented() -> None:
    settings = Settings(epochs=1, lr=1e-9, augmentation=Augmentation(erase=1.0))
    run = Trainer(network(), split(60, 2), split(60, 2), settings)
    row = run.run().history[0]
    assert row["val_loss"] == pytest.approx(evaluate(network(), split(60, 2))[0], rel=1e-6)
    assert row["loss"] != pytest.approx(row["val_loss"], rel=1e-5)


def test_invalid_augmentations() -> None:
    for given, message in (({"flip": 1.5}, "flip must be a probability"), ({"shift": -1}, "shift must be 0 or more")):
        with pytest.raises(DescriptionError, match=message) as caught:
            Augmentation(**given)  # type: ignore[arg-type]
        assert caught.value.settings == tuple(given)


def test_the_settings_of_extract_have_the_same_names() -> None:
    """`fastmlp.experiments` must not import PyTorch, so it has copies of these names; they equal those of the extractor."""
    assert extract.SCHEDULES == SCHEDULES
    assert tuple(extract.DEFAULT_LEARNING_RATE) == OPTIMIZERS
