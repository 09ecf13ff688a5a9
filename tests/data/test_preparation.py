"""Tests that splits and scalings match their definitions. The checks of single arrays are tested in test_dataset.py."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from fastmlp.data.scaling import CHUNK_ROWS, STATISTICS, fit_scaling
from fastmlp.data.splits import split_rows
from fastmlp.errors import ConfigError, DataError
from fastmlp.nn.scaling import SCALINGS, Scaling

# --- splitting ---


def check_partition(splits, n: int) -> None:
    """Assert that every row is in exactly one split."""
    np.testing.assert_array_equal(np.sort(np.concatenate(splits)), np.arange(n))


def test_check_partition_detects_missing_and_duplicate_rows():
    for splits in (([0, 1],), ([0, 1], [1, 2])):
        with pytest.raises(AssertionError):
            check_partition(splits, 3)


@pytest.mark.parametrize(
    ("n", "sizes", "counts"),
    [
        (60000, (0.2,), (48000, 12000)),
        (60000, (10000,), (50000, 10000)),
        (1797, (0.2,), (1438, 359)),
        (101, (0.25, 7, 0), (69, 25, 7, 0)),
        (3, (0.5,), (1, 2)),
        (5, (), (5,)),
        (5, (0.0,), (5, 0)),
        (5, (np.int64(1), np.float32(0.5)), (2, 1, 2)),
    ],
)
def test_sizes_of_splits(n, sizes, counts):
    splits = split_rows(np.zeros(n), sizes)
    assert tuple(map(len, splits)) == counts and all(rows.dtype == np.int64 for rows in splits)
    check_partition(splits, n)


def test_a_split_is_a_function_of_the_seed():
    y = np.arange(1000) % 7
    for stratify in (False, True):
        first, again, other = (split_rows(y, (0.3,), stratify, seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first[1], again[1])
        assert not np.array_equal(first[1], other[1])
        assert len(np.intersect1d(first[1], other[1])) < 200  # by chance, about 90 rows are in both splits
    assert [len(split_rows(y, (0.3,), seed=seed)[1]) for seed in (0, 2**63, 2**64 - 1)] == [300] * 3


def test_splits_are_in_the_order_of_one_shuffle():
    expected = np.random.Generator(np.random.Philox(key=[5, 2])).permutation(50)
    rest, first, second = split_rows(np.zeros(50), (10, 5), seed=5)
    np.testing.assert_array_equal(np.concatenate([first, second, rest]), expected)
    for rows in split_rows(np.arange(50) % 2, (10, 5), stratify=True, seed=5):
        np.testing.assert_array_equal(rows, [row for row in expected if row in rows])


def largest_remainder(counts, size: int) -> list[int]:
    """Return the class counts of a split of this size by Hamilton's method, implemented as in a textbook."""
    quotas = [size * count / sum(counts) for count in counts]
    seats = [int(quota) for quota in quotas]
    for index in sorted(range(len(counts)), key=lambda i: (-(quotas[i] - seats[i]), i))[: size - sum(seats)]:
        seats[index] += 1
    return seats


@pytest.mark.parametrize("sizes", [(25,), (37, 11), (40, 40)])
def test_stratified_counts_are_proportional_by_largest_remainder(sizes):
    counts = [50, 31, 17, 9]
    y = np.random.default_rng(0).permutation(np.repeat([2, 0, 3, 9], counts))
    counts = [31, 50, 17, 9]  # in the order of the labels 0, 2, 3, 9
    splits = split_rows(y, sizes, stratify=True)
    check_partition(splits, len(y))
    for size, rows in zip(sizes, splits[1:], strict=True):
        found = [int((y[rows] == label).sum()) for label in (0, 2, 3, 9)]
        assert found == largest_remainder(counts, size) and len(rows) == size


def test_only_stratified_splits_have_fixed_class_counts():
    y = np.repeat([0, 1], [990, 10])
    plain = {int(y[split_rows(y, (0.2,), False, seed)[1]].sum()) for seed in range(20)}
    stratified = {int(y[split_rows(y, (0.2,), True, seed)[1]].sum()) for seed in range(20)}
    assert stratified == {2} and len(plain) > 1


@pytest.mark.parametrize("size", [1.0, -0.1, -1, float("nan"), True, "0.2", None])
def test_invalid_sizes_are_rejected(size):
    with pytest.raises(ConfigError, match=r"must be a float in \[0, 1\) \(a fraction\) or a whole number of rows, not "):
        split_rows(np.zeros(10), (size,))


@pytest.mark.parametrize("sizes", [(10,), (11,), (5, 5), (0.5, 0.5), (0.96,)])
def test_splits_that_leave_no_training_rows_are_rejected(sizes):
    with pytest.raises(ConfigError, match="leave none of the 10 rows"):
        split_rows(np.zeros(10), sizes)


def test_other_invalid_arguments_of_split_rows_are_rejected():
    with pytest.raises(ConfigError, match=r"a fraction of 0\.04 of 10 rows rounds to 0 rows"):
        split_rows(np.zeros(10), (0.04,))
    for seed in (-1, 2**64):
        with pytest.raises(ConfigError, match="seed"):
            split_rows(np.zeros(10), (1,), seed=seed)
    for y in (np.zeros((10, 1), np.float32), np.zeros(10)):
        with pytest.raises(ConfigError, match="class labels"):
            split_rows(y, (1,), stratify=True)


@pytest.mark.parametrize(("rows", "sizes"), [(1, (0.5,)), (2, (0.1,)), (2, (0.4, 0.4)), (9, (98,))])
def test_a_class_with_too_few_rows_is_reported(rows, sizes):
    y = np.repeat([0, 7], [100 - rows, rows])
    with pytest.raises(DataError, match=f"class 7 has {rows} rows, too few") as caught:
        split_rows(y, sizes, stratify=True)
    assert "\n" not in str(caught.value)
    split_rows(y, sizes)


# --- scaling ---


def features(dtype=np.float32, rows: int = 2 * CHUNK_ROWS + 11) -> np.ndarray:
    rng = np.random.default_rng(3)
    if dtype == np.uint8:
        return rng.integers(0, 200, (rows, 6), np.uint8)
    return (rng.normal(size=(rows, 6)) * [1, 1e-3, 1e3, 5, 1, 2] + [0, 1, 1e5, -3, 0.1, 7]).astype(dtype)


def defined(kind: str, x: np.ndarray) -> np.ndarray:
    """Return the scaled x in float64, computed from the definition."""
    values = x.astype(np.float64)
    if x.dtype == np.uint8:
        low, high = 0.0, 255.0
    else:
        low, high = values.min(axis=0), values.max(axis=0)
    return {
        "none": lambda: values,
        "unit": lambda: (values - low) / (high - low),
        "symmetric": lambda: 2 * (values - low) / (high - low) - 1,
        "zscore": lambda: (values - values.mean(axis=0)) / values.std(axis=0),
        "zscore-global": lambda: (values - values.mean()) / values.std(),
    }[kind]()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("kind", SCALINGS)
def test_scaled_features_match_the_definition(kind, dtype):
    x = features(dtype)
    scaling = fit_scaling(kind, x)
    wanted = defined(kind, x)
    # The tolerance covers the rounding errors of the shift and of the difference, each half an ulp of the largest value, and
    # those of the factor and of the product.
    largest = np.abs(x.astype(np.float64)).max(axis=0) + np.abs(scaling.shift)
    tolerance = np.finfo(np.float32).eps * (largest * scaling.factor + 2 * np.abs(wanted))
    assert (np.abs(scaling.apply(x) - wanted) <= tolerance).all()


@pytest.mark.parametrize("kind", SCALINGS)
def test_apply_is_exactly_two_float32_operations_on_a_copy(kind):
    for x in (features(), features(np.uint8)):
        before = x.copy()
        scaling = fit_scaling(kind, x)
        found = scaling.apply(x)
        wanted = ((x.astype(np.float32) - scaling.shift) * scaling.factor).astype(np.float32)
        assert found.dtype == np.float32 and found.tobytes() == wanted.tobytes()
        np.testing.assert_array_equal(x, before)
        assert scaling.shift.dtype == scaling.factor.dtype == np.float32 and scaling.shift.shape == (6,)


def test_pixels_have_a_fixed_range():
    x = np.array([[0, 3], [10, 3]], np.uint8)
    pixels = np.array([[0, 255]], np.uint8)
    assert fit_scaling("unit", x).apply(pixels).tolist() == [[0, 1]]
    assert fit_scaling("symmetric", x).apply(pixels).tolist() == [[-1, 1]]
    assert fit_scaling("unit", x.astype(np.float32)).apply(pixels).tolist() == [[0, 252]]


def test_none_is_the_identity():
    x = features()
    assert fit_scaling("none", x).apply(x).tobytes() == x.tobytes()


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("value", [0.1, 0.0, -1e30, 1e-42])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])  # only sums of float64 values are rounded
def test_a_constant_feature_gets_factor_one(kind, value, dtype):
    x = np.full((3001, 7), value, dtype)
    scaling = fit_scaling(kind, x)
    assert scaling.factor.tolist() == [1] * 7
    assert (scaling.apply(x) == (x.astype(np.float32) if kind == "none" else 0)).all()


def test_zscore_equals_scikit_learns_scaler():
    x = features()
    x[:, 4] = 0.1
    reference = StandardScaler().fit(x.astype(np.float64))
    scaling = fit_scaling("zscore", x)
    np.testing.assert_allclose(scaling.shift, reference.mean_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(scaling.factor, 1 / reference.scale_, rtol=1e-6)


def test_zscore_of_a_large_mean_and_a_small_deviation_is_accurate():
    x = (np.random.default_rng(0).integers(0, 2, (5000, 1)) * 0.0625 + 1e5).astype(np.float32)
    assert fit_scaling("zscore", x).factor[0] == pytest.approx(1 / x.astype(np.float64).std(), rel=1e-6)


def test_statistics_of_pixels_need_no_float_copy():
    x = np.random.default_rng(0).integers(0, 256, (20000, 784), np.uint8)
    for kind in SCALINGS:
        tracemalloc.start()
        fit_scaling(kind, x)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * x.nbytes  # a float32 copy alone would be four times as large as the pixels


@pytest.mark.parametrize("kind", SCALINGS)
def test_a_scaling_survives_storage_as_a_name_and_arrays(kind):
    x = features()
    scaling = fit_scaling(kind, x)
    stored = json.dumps({name: array.tolist() for name, array in scaling.to_arrays().items()})
    arrays = {name: np.array(values, np.float32) for name, values in json.loads(stored).items()}
    assert Scaling(kind, **arrays).apply(x).tobytes() == scaling.apply(x).tobytes()


def test_invalid_arguments_are_reported():
    x = features()
    with pytest.raises(ConfigError, match="did you mean 'zscore'"):
        fit_scaling("zscor", x)
    for empty in (x[:0], x[0], x[:, :0]):
        with pytest.raises(DataError, match="fitted to rows"):
            fit_scaling("unit", empty)
    with pytest.raises(DataError, match=r"fitted on 6 features, but the data has shape \(2, 5\)"):
        fit_scaling("unit", x).apply(x[:2, :5])


ONES = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("kind", "shift", "factor"),
    [
        ("unknown", ONES, ONES),
        ("unit", ONES, ONES[:2]),
        ("unit", ONES[:, None], ONES[:, None]),
        ("unit", ONES, ONES.astype(np.float64)),
        ("unit", ONES, ONES * np.nan),
        ("unit", ONES[0], ONES[0]),
    ],
)
def test_a_damaged_scaling_is_rejected(kind, shift, factor):
    Scaling("unit", ONES, ONES)
    with pytest.raises(DataError, match="scaling"):
        Scaling(kind, shift, factor)


def test_every_kind_of_scaling_can_be_fitted() -> None:
    assert tuple(STATISTICS) == SCALINGS
