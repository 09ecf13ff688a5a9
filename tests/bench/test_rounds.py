"""Tests of `fastmlp bench`: agreement of the losses before timing, the result, verdicts, and the command line.

No test asserts a duration or a speed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import forget_settings, ok, refused

from fastmlp.bench import rounds as bench
from fastmlp.bench.cases import CASES, Case, Source, choose_cases, parse_sizes, synthetic_rows
from fastmlp.bench.contestant import OwnEngine, Task
from fastmlp.bench.rivals import RIVALS, Sklearn, contestants
from fastmlp.bench.rounds import BenchSettings, Disagreement, Entry, run_bench, verdict
from fastmlp.data.dataset import Dataset
from fastmlp.engines import BACKENDS
from fastmlp.errors import ConfigError, DivergedError, FastMLPError, UnavailableError
from fastmlp.nn.network import Network

TINY = BenchSettings(
    (Case((20, 16, 10), 24),),
    rows=64,
    rounds=2,
    backends=("numpy", "numba", "sklearn"),
    threads=2,
    data="synthetic",
    rest=0.0,
    triad_bytes=4096,
)
ROW = {"network", "batch", "backend", "threads", "seconds_per_epoch", "gflops", "ceiling_share"}
MORE = {"least", "most", "rounds", "seconds", "first_loss", "rows", "data"}
AGAINST = replace(TINY, rows=240, backends=("numba", "sklearn"), rounds=1)
VARIABLES = ("NETWORK", "BATCH_SIZE", "ALL", "ROWS", "ROUNDS", "BACKENDS", "OUT", "DATASET")


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return run_bench(TINY)


# ------------------------------------------------------------------------------------------------ the result


def test_a_row_for_each_backend_and_two_for_our_compiled_engine(result: dict[str, Any]) -> None:
    assert [row["backend"] for row in result["rows"]] == ["numpy", "numba", "numba", "sklearn"]
    assert [row["threads"] for row in result["rows"] if row["backend"] == "numba"] == [1, 2]
    assert sorted(row["backend"] for row in result["slower"]) == ["numpy", "sklearn"]
    assert result["left_out"] == []


def test_rows_have_the_documented_keys_and_values(result: dict[str, Any]) -> None:
    ceilings = {one["threads"]: one["gflops"] for one in result["ceiling"]}
    assert set(ceilings) == {1, 2}
    for row in result["rows"] + result["slower"]:
        assert set(row) == ROW | MORE
        assert (row["network"], row["batch"], row["rows"], row["data"]) == ("20-16-10", 24, 64, "synthetic")
        assert len(row["seconds"]) == row["rounds"] == 2
        assert row["least"] == min(row["seconds"]) > 0
        assert row["most"] == max(row["seconds"])
        assert row["seconds_per_epoch"] == pytest.approx(sum(row["seconds"]) / 2)
        assert row["gflops"] == pytest.approx(Network((20, 16, 10)).flops_per_row * 64 / row["seconds_per_epoch"] / 1e9)
        assert row["ceiling_share"] == pytest.approx(row["gflops"] / ceilings[row["threads"]])


def test_the_faster_number_of_threads_is_shown(result: dict[str, Any]) -> None:
    for name in ("numpy", "sklearn"):
        best, worse = ([row for row in result[key] if row["backend"] == name] for key in ("rows", "slower"))
        assert best[0]["seconds_per_epoch"] <= worse[0]["seconds_per_epoch"]


def test_the_machine_and_the_settings_are_reported(result: dict[str, Any]) -> None:
    assert {"date", "processor", "name", "cores", "threads", "load"} <= set(result["machine"])
    assert {"python", "numpy", "numba", "llvmlite", "scikit-learn"} <= set(result["versions"])
    assert (result["settings"]["rounds"], result["settings"]["optimizer"], result["settings"]["rate"]) == (2, "sgd", 0.01)
    assert all(one["triad"] > 0 for one in result["ceiling"])


def test_contestants_take_turns_on_the_same_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the warm-up, contestants are timed in turn in each round. In a round, all use the same order of rows."""
    seen = []
    original = OwnEngine.epoch

    def epoch(self: OwnEngine, order: Any) -> float:
        seen.append((self.backend, self.threads, tuple(order)))
        return original(self, order)

    monkeypatch.setattr(OwnEngine, "epoch", epoch)
    monkeypatch.setattr(bench, "PROBE", 2)
    run_bench(replace(TINY, backends=("numpy", "numba")))
    who = [("numpy", 1), ("numpy", 2), ("numba", 1), ("numba", 2)]
    first, timed = seen[:10], seen[10:]  # the reference and four contestants make two calls each
    assert [one[:2] for one in first[2::2]] == [one[:2] for one in first[3::2]] == who
    assert {one[2] for one in first[0::2]} == {first[1][2][:48]}  # the probe has the first rows of the epoch
    assert [one[:2] for one in timed] == who * 2
    orders = [{one[2] for one in part} for part in (first[1::2], timed[:4], timed[4:])]
    assert [len(one) for one in orders] == [1, 1, 1]
    assert len(set.union(*orders)) == 3
    assert all(sorted(order) == list(range(64)) for (order,) in orders)


def test_an_engine_without_its_device_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_cuda(spec: Any) -> Any:
        raise UnavailableError("no CUDA device")

    monkeypatch.setitem(BACKENDS, "cuda", make_cuda)
    found = run_bench(replace(TINY, backends=("numpy", "cuda"), rounds=1))
    assert found["left_out"] == [
        {"network": "20-16-10", "batch": 24, "backend": "cuda", "threads": None, "reason": "no CUDA device"}
    ]
    with pytest.raises(UnavailableError, match="no backend is available; no CUDA device"):
        run_bench(replace(TINY, backends=("cuda",)))


def test_a_missing_package_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = run_bench(replace(TINY, backends=("numpy", "torch"), rounds=1))
    assert {row["backend"] for row in found["rows"]} == {"numpy"}
    assert {one["reason"] for one in found["left_out"]} == {"torch is not installed: pip install torch"}


def test_a_contestant_for_another_timer() -> None:
    task = TINY.task(TINY.cases[0], synthetic_rows(64, 20, 10))
    specified = bench.specified_losses(task)
    (contestant,) = contestants(["numba"], 1)
    with bench.ready(contestant, task, specified):
        assert contestant.epoch(bench.order_of(1, 64)) < specified[1] < specified[0]
    with (
        pytest.raises(FastMLPError, match="does not agree with the reference implementation"),
        bench.ready(contestant, task, (1.0, 1.0)),
    ):
        pass


# ------------------------------------------------------------------------------------------------ agreement


class LateMistake(Sklearn):
    """Contestant whose loss is correct in the first call of `epoch` (the probe) and wrong afterwards."""

    calls = 0

    def epoch(self, order: Any) -> float:
        self.calls += 1
        return super().epoch(order) * (1.0 if self.calls == 1 else 1.01)


class WrongLearningRate(Sklearn):
    def prepare(self, task: Task) -> None:
        super().prepare(replace(task, learning_rate=task.learning_rate * 1.5))


class WrongStart(Sklearn):
    def prepare(self, task: Task) -> None:
        super().prepare(replace(task, start=task.start * np.float32(1.02)))


class WrongOrder(Sklearn):
    def epoch(self, order: Any) -> float:
        return super().epoch(np.arange(len(order)))


@pytest.mark.parametrize("wrong", [WrongLearningRate, WrongStart, WrongOrder, LateMistake])
def test_a_contestant_that_disagrees_is_not_timed(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RIVALS, "sklearn", wrong)
    found = run_bench(AGAINST)
    assert {row["backend"] for row in found["rows"]} == {"numba"}
    assert [(one["backend"], one["threads"]) for one in found["left_out"]] == [("sklearn", 1), ("sklearn", 2)]
    assert "does not agree with the reference implementation" in found["left_out"][0]["reason"]
    assert found["verdicts"][0]["ratio"] is None


def test_an_engine_of_fastmlp_that_disagrees_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    original = OwnEngine.prepare

    def prepare(self: OwnEngine, task: Task) -> None:
        original(self, replace(task, learning_rate=2 * task.learning_rate) if self.backend == "numba" else task)

    monkeypatch.setattr(OwnEngine, "prepare", prepare)
    with pytest.raises(Disagreement, match=r"numba \(1 thread\) does not agree"):
        run_bench(TINY)


def test_dropout_masks_may_differ_only_in_other_libraries() -> None:
    x, y, _ = synthetic_rows(64, 20, 10)
    network = Network((20, 16, 10), dropout=0.5)
    task = Task(network, x, y, network.initial_parameters(0), 2, 0.01)
    plain = replace(task, network=Network((20, 16, 10)))
    strict = bench.PROBE_AGREEMENT, bench.AGREEMENT
    assert bench.tolerances(OwnEngine("numba", 1), task) == strict
    assert bench.tolerances(Sklearn(1), plain) == strict
    assert bench.tolerances(Sklearn(1), task) == pytest.approx((strict[0] + 0.02 + 1 / 4, strict[1] + 0.02 + 1 / 8))


def test_a_training_that_diverges_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LEARNING_RATE", 1e30)
    monkeypatch.setitem(bench.DEFAULT_LEARNING_RATE, "sgd", 1e30)
    with pytest.raises(DivergedError, match="diverges") as raised:
        run_bench(TINY)
    assert raised.value.settings == ("data", "optimizer")


# ------------------------------------------------------------------------------------------------ verdicts


def entries(**seconds: list[float]) -> list[Entry]:
    return [Entry(OwnEngine(name, 2), 1.0, values) for name, values in seconds.items()]


def test_verdict_when_we_win() -> None:
    found = verdict(entries(numba=[1.0, 2.0, 1.0], numpy=[3.0, 4.0, 4.0], jax=[2.0, 5.0, 2.5]))
    assert found["ratio"] == {"median": 2.5, "least": 2.0, "most": 2.5}
    assert found["text"] == "fastest: numba (2 threads), 2.50 times as fast as jax (2 threads) (2.00 to 2.50 over 3 rounds)"


def test_verdict_when_we_lose() -> None:
    found = verdict(entries(numba=[2.0, 2.0, 2.0], jax=[1.0, 1.6, 2.5]))
    assert (found["ours"], found["rival"]) == ("numba (2 threads)", "jax (2 threads)")
    assert found["ratio"] == {"median": 0.8, "least": 0.5, "most": 1.25}
    assert found["text"] == (
        "fastmlp is slower: jax (2 threads) is 1.25 times as fast as numba (2 threads) "
        "(0.80 to 2.00 over 3 rounds, not in every round)"
    )


def test_verdict_without_a_comparison() -> None:
    for group in (entries(numba=[1.0]), entries(numpy=[1.0], jax=[2.0])):
        found = verdict(group)
        assert found["ratio"] is None
        assert found["text"] == f"fastest: {group[0].label}; nothing to compare with"


# ------------------------------------------------------------------------------------------------ cases and rows


def test_cases_from_flags() -> None:
    assert choose_cases([], []) == CASES[:1]
    assert choose_cases([], [], everything=True) == CASES
    assert choose_cases(["4-3", "5-2", "4-3"], [8, 9]) == tuple(Case(s, b) for s in ((4, 3), (5, 2)) for b in (8, 9))
    for text in ("784", "784-", "a-b", "784-0-10", "784--10", "4-1", ""):
        with pytest.raises(ConfigError, match="784-128-10"):
            parse_sizes(text)
    with pytest.raises(ConfigError, match="the full table has fixed networks") as raised:
        choose_cases(["4-3"], [], everything=True)
    assert raised.value.settings == ("all", "network", "batch_size")
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        choose_cases([], [0])


def test_rows_are_the_first_columns_of_the_data_scaled() -> None:
    from fastmlp import load_data

    rows = Source("digits", 100).rows_for(Case((300, 16, 10), 8))
    digits = load_data("digits")
    assert (rows.name, rows.x.dtype, rows.x.shape) == ("digits", np.float32, (100, 300))
    assert rows.x.flags.c_contiguous
    np.testing.assert_allclose(rows.x, digits.x[:100, :300] / 255, atol=1e-6)
    np.testing.assert_array_equal(rows.y, digits.y[:100])


@pytest.mark.parametrize("sizes", [(785, 10), (784, 9)])
def test_rows_are_synthetic_where_the_data_do_not_fit(sizes: tuple[int, ...]) -> None:
    rows = Source("digits", 100).rows_for(Case(sizes, 8))
    assert (rows.name, rows.x.shape, int(rows.y.max()) < sizes[-1]) == ("synthetic", (100, sizes[0]), True)


def test_nothing_is_downloaded(tmp_path: Path) -> None:
    assert Source("fashion-mnist", 100, tmp_path).rows_for(CASES[0]).name == "synthetic"
    assert list(tmp_path.iterdir()) == []


def test_synthetic_pixels_are_half_zero_and_learnable() -> None:
    x, y, _ = synthetic_rows(2000, 784, 10)
    assert (x.dtype, y.dtype, float(x.min()), float(x.max()) <= 1) == (np.float32, np.int32, 0.0, True)
    assert 0.4 < float((x == 0).mean()) < 0.6
    centres = np.array([x[y == k].mean(axis=0) for k in range(10)])
    nearest = ((x[:, None, ::16] - centres[None, :, ::16]) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == y).mean() > 0.9


def test_data_without_classes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Dataset("prices", np.zeros((4, 3), np.float32), np.zeros((4, 1), np.float32))
    monkeypatch.setattr("fastmlp.bench.cases.load_data", lambda name, data_dir: plain)
    with pytest.raises(ConfigError, match="no classes"):
        Source("prices.csv", 4).rows_for(Case((3, 2), 2))


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="rows must be at least 1"):
        replace(TINY, rows=0)
    with pytest.raises(ConfigError, match="there is no case to measure"):
        replace(TINY, cases=())
    with pytest.raises(ConfigError, match="unknown activation"):
        replace(TINY, activation="rleu")


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)
    for name in VARIABLES:
        monkeypatch.delenv(f"FASTMLP_{name}", raising=False)


FLAGS = ["--network", "20-16-10", "--rows", "64", "--rounds", "1", "--backends", "numpy,numba", "--data", "synthetic"]


def test_the_command_prints_a_table_and_writes_files(tmp_path: Path) -> None:
    done = ok("bench", *FLAGS, "--out", tmp_path / "a" / "b")
    assert done.stdout.startswith("20-16-10, batch 64, 64 rows of synthetic data\nbackend ")
    assert "fastest: " in done.stdout or "fastmlp is slower: " in done.stdout
    assert "warm-up: numba (1 thread)" in done.stderr
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {"bench.json", "bench.png"}
    assert (tmp_path / "a" / "b" / "bench.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((tmp_path / "a" / "b" / "bench.json").read_text())
    assert {row["backend"] for row in kept["rows"]} == {"numpy", "numba"}


def test_the_command_prints_one_object() -> None:
    done = ok("bench", *FLAGS, "--batch-size", "8", "--batch-size", "9", "--json", "-q", FASTMLP_ROUNDS="2")
    found = json.loads(done.stdout)
    assert done.stderr == ""
    assert {row["batch"] for row in found["rows"]} == {8, 9}
    assert set(found) == {"machine", "versions", "settings", "ceiling", "rows", "slower", "verdicts", "left_out"}
    assert found["settings"]["rounds"] == 1  # the flag overrides the environment variable


def test_the_command_refuses_invalid_settings(tmp_path: Path) -> None:
    assert "unknown backend 'nunba'; did you mean 'numba'?" in refused(2, "bench", "--backends", "nunba")
    assert "rounds must be at least 1" in refused(2, "bench", "--rounds", "0")
    assert "unknown optimizer" in refused(2, "bench", "--optimizer", "adm")
    assert "unknown data set" in refused(3, "bench", "--data", "no-such-data")
    (tmp_path / "file").write_text("")
    assert "choose another folder [--out]" in refused(3, "bench", "--out", tmp_path / "file")
    assert "[--all, --network, --batch-size]" in refused(2, "bench", "--all", "--network", "20-10")


def test_help_shows_examples_before_options() -> None:
    text = ok("bench", "--help").stdout
    assert text == ok("bench", "-h").stdout
    assert text.index("\n  fastmlp bench") < text.index("\n  --network ")
