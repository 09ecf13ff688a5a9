"""Tests of random numbers: published test vectors, statistics of dropout masks, and independent streams."""

from __future__ import annotations

import numpy as np
import pytest

from fastmlp.nn.philox import STREAMS, drop_threshold, generator, keep_mask, philox4x32

# Known answers from the file kat_vectors of Random123 (Salmon et al.): counter, key and output of philox4x32-10.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[np.uint64]:
    return [np.uint64(int(word, 16)) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    assert list(philox4x32(*words(counter), *words(key))) == words(answer)


def test_known_answers_in_arrays_and_compiled() -> None:
    from numba import njit

    from fastmlp.engines.cpu.codegen.compiler import compiled_with_callees

    counters = np.array([words(counter) for counter, _, _ in KNOWN])
    keys = np.array([words(key) for _, key, _ in KNOWN])
    answers = np.array([words(answer) for _, _, answer in KNOWN])
    assert np.array_equal(np.stack(philox4x32(*counters.T, *keys.T), axis=1), answers)
    words_of = compiled_with_callees(philox4x32)
    compiled = njit(lambda c0, c1, c2, c3, k0, k1: words_of(c0, c1, c2, c3, k0, k1))  # noqa: PLW0108 - callable from Python
    for counter, key, answer in zip(counters, keys, answers, strict=True):
        assert list(compiled(*counter, *key)) == answer.tolist()


def word_at(seed: int, step: int, layer: int, row: int, column: int) -> int:
    """Compute the random number of one unit with Python integers, following the definition in the docstring of `keep_mask`."""
    c = [column // 4, row, layer, step]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c[column % 4]


@pytest.mark.parametrize("seed", [0, 7, 2**32, 2**64 - 1])
@pytest.mark.parametrize("columns", [1, 3, 4, 5, 9])
def test_masks_follow_their_definition(seed: int, columns: int) -> None:
    mask = keep_mask(seed, 1234567, 3, 6, columns, 0.3)
    wanted = [[word_at(seed, 1234567, 3, r, c) >= round(0.3 * 2**32) for c in range(columns)] for r in range(6)]
    assert mask.tolist() == wanted


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.9])
def test_masks_keep_the_expected_fraction(rate: float) -> None:
    mask = keep_mask(3, 0, 0, 1000, 203, rate)
    deviation = np.sqrt(rate * (1 - rate) / mask.size)
    assert abs(mask.mean() - (1 - rate)) < 4 * deviation
    # the fraction in each column and in each row is within 5 standard deviations
    assert np.abs(mask.mean(axis=0) - (1 - rate)).max() < 5 * np.sqrt(rate * (1 - rate) / 1000)
    assert np.abs(mask.mean(axis=1) - (1 - rate)).max() < 5 * np.sqrt(rate * (1 - rate) / 203)


def test_rate_zero_keeps_all_and_the_threshold_is_proportional_to_the_rate() -> None:
    assert keep_mask(0, 0, 0, 20, 20, 0.0).all()
    assert drop_threshold(0.5) == 2**31
    assert drop_threshold(0.25) == 2**30


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_masks_of_steps_layers_seeds_rows_and_columns_are_independent() -> None:
    base = keep_mask(1, 0, 0, 200, 200, 0.5)
    bound = 5 / np.sqrt(base.size)
    others = {
        "step": keep_mask(1, 1, 0, 200, 200, 0.5),
        "far step": keep_mask(1, 2**31, 0, 200, 200, 0.5),
        "layer": keep_mask(1, 0, 1, 200, 200, 0.5),
        "seed": keep_mask(2, 0, 0, 200, 200, 0.5),
        "high word of the seed": keep_mask(1 + 2**32, 0, 0, 200, 200, 0.5),
        "transposed": base.T,
        "next row": np.roll(base, 1, axis=0),
        "next column": np.roll(base, 1, axis=1),
        "next group of four": np.roll(base, 4, axis=1),
    }
    assert {name for name, other in others.items() if abs(correlation(base, other)) > bound} == set()
    assert correlation(base, keep_mask(1, 0, 0, 200, 200, 0.5)) == pytest.approx(1)


def test_a_smaller_mask_is_a_slice_of_a_larger_one() -> None:
    """Whether a unit is dropped does not depend on the number of rows or on the width of the layer."""
    large = keep_mask(5, 9, 2, 40, 37, 0.4)
    for rows, columns in ((1, 37), (40, 1), (17, 13), (40, 36)):
        assert np.array_equal(keep_mask(5, 9, 2, rows, columns, 0.4), large[:rows, :columns])


def test_a_lower_rate_keeps_a_superset() -> None:
    low, high = (keep_mask(5, 9, 2, 40, 37, rate) for rate in (0.2, 0.6))
    assert (low | ~high).all()
    assert (low & ~high).any()


@pytest.mark.parametrize("seeds", [(0, 1, 2**32), (2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1)])
def test_generators_repeat_and_streams_differ(seeds: tuple[int, ...]) -> None:
    draws = {
        (seed, stream, *counter): tuple(generator(seed, stream, *counter).integers(0, 2**63, 4))
        for seed in seeds
        for stream in STREAMS
        for counter in ((), (1,), (2,), (1, 1))
    }
    for (seed, stream, *counter), numbers in draws.items():
        assert tuple(generator(seed, stream, *counter).integers(0, 2**63, 4)) == numbers
    assert len(set(draws.values())) == len(draws)


@pytest.mark.parametrize("seed", [0, 2**53 + 1, 2**64 - 1])
def test_generators_equal_numpy_philox_with_the_key(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = np.random.Philox(key=np.array([seed, STREAMS["split"]], np.uint64), counter=np.array([0, 0, 7, 0], np.uint64))

    def read_entropy(bits: int) -> int:
        raise AssertionError("entropy was read from the system")

    monkeypatch.setattr("numpy.random.bit_generator.randbits", read_entropy)
    with pytest.raises(AssertionError, match="entropy was read"):
        np.random.Philox(key=1)
    assert np.array_equal(generator(seed, "split", 7).bit_generator.random_raw(9), wanted.random_raw(9))


def test_long_draws_of_neighbouring_counters_do_not_overlap() -> None:
    first = generator(0, "order", 1).integers(0, 2**63, 100_000)
    second = generator(0, "order", 2).integers(0, 2**63, 100_000)
    assert np.intersect1d(first, second).size == 0
