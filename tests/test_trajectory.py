"""Three epochs on the real Fashion-MNIST: both engines walk the same path, with and without dropout."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmlp.network import Network
from fastmlp.optimizers import Schedule
from fastmlp.preprocess import fit_scaling
from fastmlp.training import Settings, train

RAW = Path(os.environ.get("FASTMLP_DATA", "no folder")) / "FashionMNIST" / "raw"

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not RAW.is_dir(), reason="FASTMLP_DATA names no folder with FashionMNIST/raw"),
]


def read(name: str, header: int) -> Any:
    """Bytes of an IDX file after its header, gzipped or plain."""
    plain = RAW / name
    data = plain.read_bytes() if plain.exists() else gzip.decompress((RAW / f"{name}.gz").read_bytes())
    return np.frombuffer(data, np.uint8)[header:]


@pytest.fixture(scope="module")
def fashion() -> tuple[Any, Any]:
    """All training images, (60000, 784) uint8, and their classes."""
    return read("train-images-idx3-ubyte", 16).reshape(-1, 784), read("train-labels-idx1-ubyte", 8)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_losses_of_three_epochs_agree(fashion: tuple[Any, Any], numba_backend: str, dropout: float) -> None:
    x, y = fashion
    network = Network((784, 128, 10), activation="relu", dropout=dropout)
    scaling = fit_scaling("unit", x)
    part = slice(0, 50_000)
    histories = []
    for backend in ("numpy", numba_backend):
        settings = Settings(Schedule(0.05), epochs=3, batch_size=64, backend=backend)
        training = train(
            network, x[part], y[part], settings=settings, scaling=scaling, validation=(x[50_000:], y[50_000:])
        )
        histories.append([(row["loss"], row["val_loss"]) for row in training.history])
    specified, found = np.array(histories)
    np.testing.assert_allclose(found, specified, rtol=1e-4)
    # a path worth comparing: it learns, and other seeds are further apart than the tolerance
    assert (np.diff(specified[:, 0]) < 0).all()
    assert specified[-1, 1] < 0.5


def test_the_comparison_sees_another_path(fashion: tuple[Any, Any]) -> None:
    """Another order of the rows changes the losses by more than the tolerance."""
    x, y = fashion
    losses = []
    for seed in (0, 1):
        settings = Settings(Schedule(0.05), epochs=1, batch_size=64, seed=seed, backend="numpy")
        network = Network((784, 128, 10))
        losses.append(
            train(network, x, y, settings=settings, scaling=fit_scaling("unit", x[:1000])).history[0]["loss"]
        )
    assert abs(losses[0] / losses[1] - 1) > 1e-3
