"""Tests of subsets of rows, and of iteration over rows in blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmlp.data.checks import check_rows
from fastmlp.data.pairs import as_split
from fastmlp.data.rows import Subset, first_not_finite, is_mapped, take
from fastmlp.data.scaling import fit_scaling
from fastmlp.errors import DataError
from fastmlp.nn.blocks import blocks, inference_blocks
from fastmlp.nn.network import Network

X = np.arange(30, dtype=np.float32).reshape(10, 3)
CHOSEN = np.array([7, 2, 2, 9])


# ------------------------------------------------------------------------------------------------ subsets


def test_a_subset_behaves_like_its_copy() -> None:
    subset, copy = Subset(X, CHOSEN), X[CHOSEN]
    assert (len(subset), subset.shape, subset.ndim, subset.dtype) == (len(copy), copy.shape, copy.ndim, copy.dtype)
    for key in (slice(1, 3), slice(0, 0), slice(2, 99), np.array([3, 0]), 1):
        assert np.array_equal(subset[key], copy[key])
    assert np.array_equal(np.asarray(subset), copy)
    assert np.asarray(subset, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="copy"):
        np.array(subset, copy=False)


def test_a_subset_copies_its_indices() -> None:
    chosen = CHOSEN.copy()
    subset = Subset(X, chosen)
    chosen[:] = 0
    assert np.array_equal(np.asarray(subset), X[CHOSEN])


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "beyond the end": ([0, 10], "rows 0 to 10, but the array has rows 0 to 9"),
    "negative": ([-1, 2], "rows -1 to 2"),
    "truth values": (np.ones(10, bool), "row indices, not bool"),
    "fractions": ([0.0, 1.0], "row indices, not float64"),
    "a table": ([[0], [1]], "of shape (2, 1)"),
    "a number": (3, "of shape ()"),
}


@pytest.mark.parametrize("damage", BAD_ROWS)
def test_rows_out_of_range_are_rejected(damage: str) -> None:
    """Invalid row indices are rejected when a subset is created, because kernels do not check the bounds of indices."""
    rows, expected = BAD_ROWS[damage]
    with pytest.raises(DataError) as caught:
        Subset(X, rows)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_subset_can_be_empty() -> None:
    assert Subset(X, np.empty(0, np.int64)).shape == (0, 3)
    with pytest.raises(DataError, match="no rows"):
        as_split((Subset(X, np.empty(0, np.int64)), []), "training", Network((3, 2)), np.float32)
    with pytest.raises(DataError, match="fitted to rows"):
        fit_scaling("unit", Subset(X, np.empty(0, np.int64)))


def test_values_are_scattered_to_their_rows() -> None:
    whole = Subset(X, CHOSEN).scatter(np.array([5, 6, 6, 8], np.int32))
    assert whole.dtype == np.int32 and whole.tolist() == [0, 0, 6, 0, 0, 0, 0, 5, 0, 8]
    targets = np.arange(6.0).reshape(3, 2)
    assert np.array_equal(Subset(X, CHOSEN[[0, 1, 3]]).scatter(targets)[CHOSEN[[0, 1, 3]]], targets)


@pytest.mark.parametrize("values", [np.array([5, 6, 7, 8]), np.array([[5, 0], [6, 0], [6, 1], [8, 0]])])
def test_a_row_with_two_targets_is_rejected(values: np.ndarray) -> None:
    """A row that occurs twice with different targets is rejected, because the engine would use only one of the targets."""
    with pytest.raises(DataError, match="row 2 is in the subset more than once"):
        Subset(X, CHOSEN).scatter(values)


def test_views_of_mapped_files_are_recognised(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    for array in (mapped, mapped[1:], mapped.reshape(5, -1), np.asarray(mapped), np.ascontiguousarray(mapped).T):
        assert is_mapped(array)
    for array in (X, X[1:], mapped[CHOSEN], mapped + 0, np.frombuffer(b"abc", np.uint8)):
        assert not is_mapped(array)
    assert isinstance(take(mapped, CHOSEN), Subset)
    assert isinstance(take(X, CHOSEN), np.ndarray)


# ------------------------------------------------------------------------------------------------ checks


def test_a_subset_is_copied_only_if_engines_cannot_read_its_array() -> None:
    for array in (X, X.astype(np.uint8)):
        checked = check_rows(Subset(array, CHOSEN), 3, np.float32)
        assert isinstance(checked, Subset) and checked.array is array
    for array in (X.astype(np.float64), np.asfortranarray(X), X.astype(">f4"), X > 3):
        checked = check_rows(Subset(array, CHOSEN), 3, np.float32)
        assert isinstance(checked, np.ndarray) and checked.flags.c_contiguous and checked.dtype == np.float32
        assert np.array_equal(checked, array[CHOSEN])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_only_the_rows_of_a_subset_must_be_finite(dtype: Any) -> None:
    x = X.astype(dtype)
    x[[0, 2], 1] = np.nan, np.inf
    with pytest.raises(DataError, match="row 1, feature 1 is inf"):
        check_rows(Subset(x, CHOSEN), 3, np.float32)
    x[2] = 0
    check_rows(Subset(x, CHOSEN), 3, np.float32)


def test_a_subset_of_wrong_width_or_dtype_is_rejected() -> None:
    for subset, expected in ((Subset(X, CHOSEN), "rows of 4 features"), (Subset(X.astype(str), CHOSEN), "must be numbers")):
        with pytest.raises(DataError, match=expected):
            check_rows(subset, 4 if "4" in expected else 3, np.float32)


# ------------------------------------------------------------------------------------------------ blocks


@pytest.mark.parametrize("size", [1, 11, 12, 24, 50, 10_000])
@pytest.mark.parametrize("most", [None, 1, 3])
def test_blocks_cover_all_rows_within_the_size_limit(size: int, most: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.nn.blocks.BLOCK_BYTES", size)
    for x in (X, Subset(X, CHOSEN)):
        found = list(blocks(x, most))
        assert [row for rows, _ in found for row in range(rows.start, rows.stop)] == list(range(len(x)))
        assert np.array_equal(np.concatenate([block for _, block in found]), np.asarray(x))
        assert all(block.nbytes <= max(size, 12) and len(block) <= (most or 10) for _, block in found)
    assert list(blocks(X[:0])) == []
    assert [(rows, len(block)) for rows, block in inference_blocks(X[:0], 5)] == [(slice(0, 0), 0)]


@pytest.mark.parametrize(("outputs", "rows"), [(1, 16384), (1024, 16384), (1025, 16368), (65536, 256), (1 << 40, 1)])
def test_blocks_of_inference_limit_the_size_of_the_outputs(outputs: int, rows: int) -> None:
    x = np.broadcast_to(np.float32(0), (40_000, 1))
    sizes = [len(block) for _, block in inference_blocks(x[: 3 * rows + 1], outputs)]
    assert sum(sizes) == min(3 * rows + 1, 40_000)
    assert set(sizes[:-1]) == {rows}
    assert sizes[-1] <= rows


@pytest.mark.parametrize("index", [(0, 0), (4, 2), (9, 1)])
def test_the_first_value_that_is_not_finite_is_found_in_any_block(index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.nn.blocks.BLOCK_BYTES", 36)
    assert first_not_finite(X) is None
    x = X.copy()
    x[index] = np.nan
    assert first_not_finite(x) == index
    x[9, 2] = np.inf
    assert first_not_finite(x) == index
    assert first_not_finite(x[:, 2]) == ((4,) if index == (4, 2) else (9,))
