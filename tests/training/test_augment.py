"""Tests of image augmentation: distribution of the transformations, effect on pixels, and training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import ok
from support.engines import same_bits
from support.problems import set_up

import fastmlp.engines.chunks
import fastmlp.training.loop
from fastmlp.data.rows import Subset
from fastmlp.data.scaling import fit_scaling
from fastmlp.engines import make_engine
from fastmlp.engines.base import EngineSpec, State
from fastmlp.errors import ConfigError, DataError
from fastmlp.models.model import load
from fastmlp.nn.network import Network
from fastmlp.nn.optimizers import Optimizer
from fastmlp.nn.philox import generator
from fastmlp.training.api import train, train_many
from fastmlp.training.augment import Augmentation, augment, sample_augmentation

SHAPE = (5, 4, 2)
NETWORK = Network((40, 12, 3), dropout=0.2)
AUGMENTED: dict[str, Any] = {"flip": 0.5, "shift": 2, "epochs": 3, "seed": 5}


def images(count: int, dtype: str = "uint8", seed: int = 0) -> Any:
    """Return random images without zeros, so that padding with zeros can be detected."""
    return np.random.default_rng(seed).integers(1, 256, (count, 40)).astype(dtype)


def labels(count: int) -> Any:
    return np.arange(count, dtype=np.int32) % 3


def pixel_by_pixel(x: Any, shape: Any, augmentation: Augmentation) -> Any:
    """Augment images with loops over all pixels, following the definition."""
    before = x.reshape(-1, *shape)
    after = np.zeros_like(before)
    height, width, _ = shape
    for number, (mirrored, (down, right)) in enumerate(zip(*augmentation, strict=True)):
        for row in range(height):
            for column in range(width):
                if 0 <= row + down < height and 0 <= column + right < width:
                    after[number, row + down, column + right] = before[number, row, width - 1 - column if mirrored else column]
    return after.reshape(x.shape)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(("flip", "shift"), [(0.5, 0), (0.0, 1), (0.5, 2), (1.0, 7), (0.0, 0)])
def test_augmentation_matches_the_definition(dtype: str, flip: float, shift: int) -> None:
    x = images(60, dtype)
    original = x.copy()
    augmentation = sample_augmentation(3, 1, 60, flip, shift)
    found = augment(x, SHAPE, augmentation)
    assert found.dtype == x.dtype
    assert same_bits(found, pixel_by_pixel(x, SHAPE, augmentation))
    assert same_bits(x, original)
    assert same_bits(found, x) == (flip == shift == 0)


def test_distribution_of_augmentations() -> None:
    mirrored, offsets = sample_augmentation(1, 2, 30_000, 0.3, 2)
    assert mirrored.mean() == pytest.approx(0.3, abs=0.01)
    for direction in offsets.T:
        np.testing.assert_allclose(np.bincount(direction + 2) / 30_000, 0.2, atol=0.01)
    assert abs(np.corrcoef(offsets.T)[0, 1]) < 0.02
    same, epoch, seed = (sample_augmentation(*at, 30_000, 0.3, 2) for at in ((1, 2), (1, 3), (2, 2)))
    assert same_bits(same.offsets, offsets)
    assert same_bits(same.mirrored, mirrored)
    assert (epoch.offsets != offsets).mean() > 0.5
    assert (seed.offsets != offsets).mean() > 0.5
    assert not sample_augmentation(0, 1, 1000, 0.0, 2).mirrored.any()


def test_training_equals_an_explicit_loop_over_augmented_rows(backend: str) -> None:
    """Training equals direct engine calls on augmented rows; the validation split is not augmented."""
    x, y = images(50), labels(50)
    scaling = fit_scaling("unit", x)
    settings = set_up(backend=backend, **AUGMENTED)
    training = train(NETWORK, (x, y), settings=settings, scaling=scaling, validation=(x, y), image_shape=SHAPE)
    engine = make_engine(backend, EngineSpec(NETWORK, Optimizer("sgd"), batch_size=16, seed=5, scaling=scaling))
    engine.load(State(NETWORK.initial_parameters(5), np.empty((0, NETWORK.parameters), np.float32), 0))
    for epoch in range(1, 4):
        order = generator(5, "order", epoch).permutation(50)
        augmented = pixel_by_pixel(x[order], SHAPE, sample_augmentation(5, epoch, 50, 0.5, 2))
        engine.train(augmented, y[order], np.arange(50), np.full(4, 0.1))
    assert same_bits(training.state, engine.state())
    engine.close()
    assert training.model.image_shape == SHAPE
    last = np.log(training.model.predict_proba(x))[np.arange(50), y]
    assert training.history[training.best_epoch - 1]["val_loss"] == pytest.approx(-last.mean(), rel=1e-6)
    plain = train(NETWORK, (x, y), settings=set_up(backend=backend, epochs=3, seed=5), scaling=scaling)
    assert not same_bits(plain.state, training.state)


def test_chunks_subsets_and_train_many_give_the_same_bits(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, weights = images(50), labels(50), np.linspace(1, 2, 50)
    settings = set_up(backend=backend, threads=1, **AUGMENTED)
    given: dict[str, Any] = {"scaling": fit_scaling("unit", x), "image_shape": SHAPE}
    whole = train(NETWORK, (x, y), settings=settings, sample_weight=weights, **given)
    monkeypatch.setattr(fastmlp.engines.chunks, "CHUNK_SECONDS", 1e-9)
    rows = np.random.default_rng(1).permutation(80)[:50]
    scattered = np.zeros((80, 40), np.uint8)
    scattered[rows] = x
    (other,) = train_many([(NETWORK, settings)], (Subset(scattered, rows), y), sample_weight=weights, **given)
    assert same_bits(whole.state, other.state)  # type: ignore[union-attr]
    unweighted = train(NETWORK, (x, y), settings=settings, **given)
    assert not same_bits(whole.state, unweighted.state)


def test_augmentation_of_rows_that_are_not_images_is_rejected() -> None:
    x, y = images(50), labels(50)
    for changes in ({"flip": 0.5}, {"shift": 1}):
        with pytest.raises(ConfigError, match="flip and shift can only be used with images"):
            train(NETWORK, (x, y), settings=set_up(**changes), scaling=None)
        with pytest.raises(ConfigError, match=r"jobs\[0\]: flip and shift can only be used with images"):
            train_many([(NETWORK, set_up(**changes))], (x, y), scaling=None)
    with pytest.raises(DataError, match="image_shape"):
        train(NETWORK, (x, y), settings=set_up(flip=0.5), image_shape=(5, 5, 2), scaling=None)


def test_the_train_command_with_augmentation(tmp_path: Path) -> None:
    """The written config.toml reproduces the augmented run, and the model stores the image shape."""
    small = ["--hidden", "8", "--epochs", "2", "--backend", "numpy", "-q"]
    ok("train", *small, "--flip", "0.5", "--shift", "1", "--out", tmp_path / "a")
    ok("train", "--config", tmp_path / "a/config.toml", "-q", "--out", tmp_path / "again")
    ok("train", *small, "--out", tmp_path / "plain")
    a, again, plain = (load(tmp_path / name / "model.safetensors") for name in ("a", "again", "plain"))
    assert same_bits(a.parameters, again.parameters)
    assert not same_bits(a.parameters, plain.parameters)
    assert a.image_shape == plain.image_shape == (28, 28, 1)
