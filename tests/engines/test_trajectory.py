"""Three epochs on Fashion-MNIST: the NumPy and Numba engines have the same losses, with and without dropout.

The settings are those of the documented command. With learning rates about ten times higher, training amplifies rounding
errors: float32 and float64 runs of the NumPy engine alone then differ as much as the two engines do.
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
from fastmlp.nn.optimizers import SGD
from fastmlp.training.api import train
from fastmlp.training.settings import Settings

RAW = Path(os.environ.get("FASTMLP_DATA", "no folder")) / "FashionMNIST" / "raw"

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not RAW.is_dir(), reason="FASTMLP_DATA is not a folder that contains FashionMNIST/raw"),
]


def read(name: str, header: int) -> Any:
    """Return the bytes of an IDX file after its header; the file may be gzipped."""
    plain = RAW / name
    data = plain.read_bytes() if plain.exists() else gzip.decompress((RAW / f"{name}.gz").read_bytes())
    return np.frombuffer(data, np.uint8)[header:]


@pytest.fixture(scope="module")
def fashion() -> tuple[Any, Any]:
    """All training images, uint8 of shape (60000, 784), and their labels."""
    return read("train-images-idx3-ubyte", 16).reshape(-1, 784), read("train-labels-idx1-ubyte", 8)


@pytest.fixture(autouse=True)
def one_blas_thread() -> Iterator[None]:
    """Limit NumPy to one thread, since these products are too small to benefit from a second thread on a busy machine."""
    with threadpool_limits(1):
        yield


def losses(data: tuple[Any, Any], backend: str, dropout: float, seed: int = 0, epochs: int = 3) -> Any:
    """Train, and return the loss and the validation loss of each epoch, (epochs, 2)."""
    x, y = data
    settings = Settings(SGD(0.001), epochs=epochs, batch_size=64, seed=seed, backend=backend)
    training = train(
        Network((784, 128, 10), activation="relu", dropout=dropout),
        (x[:50_000], y[:50_000]),
        settings=settings,
        scaling=fit_scaling("zscore", x[:50_000]),
        validation=(x[50_000:], y[50_000:]),
    )
    return np.array([(row["loss"], row["val_loss"]) for row in training.history])


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_losses_of_three_epochs_agree(fashion: tuple[Any, Any], numba_backend: str, dropout: float) -> None:
    specified = losses(fashion, "numpy", dropout)
    np.testing.assert_allclose(losses(fashion, numba_backend, dropout), specified, rtol=1e-4)
    assert specified[-1, 0] < 0.7 * specified[0, 0]  # the loss decreases


def test_the_comparison_sees_another_path(fashion: tuple[Any, Any]) -> None:
    """With another seed, the losses of the first epoch differ by more than the tolerance."""
    one, other = (losses(fashion, "numpy", 0.0, seed, epochs=1) for seed in (0, 1))
    assert (np.abs(one / other - 1) > 1e-3).all()
