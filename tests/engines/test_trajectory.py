"""Three epochs on the real Fashion-MNIST: both engines have the same trajectory, with and without dropout.

With the settings of the documented command. Rates some ten times higher make a path that magnifies rounding errors: there
float32 and float64 part as far in the NumPy engine alone.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from fastmlp.data.scaling import fit_scaling
from fastmlp.nn.network import Network
from fastmlp.nn.schedules import Schedule
from fastmlp.training.loop import train
from fastmlp.training.settings import Settings

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


@pytest.fixture(autouse=True)
def one_blas_thread() -> Iterator[None]:
    """NumPy's products are too small here to benefit from a second thread, which is slow on a busy machine."""
    with threadpool_limits(1):
        yield


def losses(data: tuple[Any, Any], backend: str, dropout: float, seed: int = 0, epochs: int = 3) -> Any:
    """Loss and validation loss of each epoch."""
    x, y = data
    settings = Settings(Schedule(0.001), epochs=epochs, batch_size=64, seed=seed, backend=backend)
    training = train(
        Network((784, 128, 10), activation="relu", dropout=dropout),
        x[:50_000],
        y[:50_000],
        settings=settings,
        scaling=fit_scaling("zscore", x[:50_000]),
        validation=(x[50_000:], y[50_000:]),
    )
    return np.array([(row["loss"], row["val_loss"]) for row in training.history])


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_losses_of_three_epochs_agree(fashion: tuple[Any, Any], numba_backend: str, dropout: float) -> None:
    specified = losses(fashion, "numpy", dropout)
    np.testing.assert_allclose(losses(fashion, numba_backend, dropout), specified, rtol=1e-4)
    assert specified[-1, 0] < 0.7 * specified[0, 0]  # it went somewhere


def test_the_comparison_sees_another_path(fashion: tuple[Any, Any]) -> None:
    """With another seed, losses differ by more than the tolerance after one epoch."""
    one, other = (losses(fashion, "numpy", 0.0, seed, epochs=1) for seed in (0, 1))
    assert (np.abs(one / other - 1) > 1e-3).all()
