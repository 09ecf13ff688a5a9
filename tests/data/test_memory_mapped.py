"""Tests of memory-mapped data: results are bitwise the same as for arrays in memory, and the rows are not copied.

They also test that memory use is bounded: in addition to the network, a run with the compiled engine allocates at most BOUND
bytes plus BOUND_PER_ROW bytes per labelled row. This is measured as RssAnon. The pages of memory-mapped files (RssFile) are
not counted, because the operating system evicts them when memory is short.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engines import same_bits
from support.problems import Keeper, set_up

from benchmarks import memmap
from benchmarks.cases import Case
from fastmlp.data import checks
from fastmlp.data.dataset import RawArrays, check_dataset
from fastmlp.data.load import load_data
from fastmlp.data.rows import Subset, is_mapped
from fastmlp.data.scaling import fit_scaling
from fastmlp.data.splits import split, split_rows
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.evaluation import evaluate_run
from fastmlp.experiments.plan import make_plan
from fastmlp.experiments.training_run import run_training
from fastmlp.models.metrics import evaluate_with_predictions
from fastmlp.nn.network import Network
from fastmlp.nn.scaling import SCALINGS
from fastmlp.training.api import train
from fastmlp.training.loop import train_task
from fastmlp.training.settings import TrainingData, make_task

BOUND, BOUND_PER_ROW = 64 << 20, 64

NETWORK = Network((12, 9, 3))  # ReLU and plain SGD as in CHILD, so only one kernel per dtype of x is compiled
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (400, 12), np.uint8)
Y = RNG.integers(0, 3, 400)
TRAIN, VALIDATION = split_rows(Y, (0.3,), seed=4)


def mapped(path: Path, x: np.ndarray) -> np.ndarray:
    np.save(path / "rows.npy", x)
    return np.load(path / "rows.npy", mmap_mode="r")


@pytest.fixture(params=[np.uint8, np.float32])
def x(request: pytest.FixtureRequest) -> np.ndarray:
    return PIXELS if request.param == np.uint8 else PIXELS / np.float32(200)


# ------------------------------------------------------------------------------------------------ the same bits


def timeless_history(training: Any) -> list[dict[str, Any]]:
    """Return the history without the measured times and speeds."""
    clock = ("seconds", "eval_seconds", "rows_per_second")
    return [{key: value for key, value in row.items() if key not in clock} for row in training.history]


def outcome(backend: str, rows: Any, validation: Any, **changes: Any) -> tuple[Any, ...]:
    """Train, and return the parameters after each epoch, the final state, the parameters of the model, and the history."""
    keeper = Keeper()
    settings = set_up(backend=backend, seed=3, **changes)
    scaling = fit_scaling("zscore", rows[0])
    training = train(NETWORK, rows, settings=settings, validation=validation, scaling=scaling, callbacks=[keeper])
    return tuple(keeper.parameters), training.state, training.model.parameters, str(timeless_history(training))


def test_training_on_a_mapped_file_gives_the_same_bits(backend: str, x: np.ndarray, tmp_path: Path) -> None:
    assert same_bits(outcome(backend, (mapped(tmp_path, x), Y), None), outcome(backend, (x, Y), None))


def test_training_on_a_subset_gives_the_bits_of_its_copy(backend: str, x: np.ndarray, tmp_path: Path) -> None:
    whole = mapped(tmp_path, x)
    subsets = [(Subset(whole, rows), Y[rows]) for rows in (TRAIN, VALIDATION)]
    copies = [(x[rows], Y[rows]) for rows in (TRAIN, VALIDATION)]
    assert same_bits(outcome(backend, *subsets), outcome(backend, *copies))
    other = [copies[0], (x[VALIDATION], (Y[VALIDATION] + 1) % 3)]
    assert not same_bits(outcome(backend, *subsets), outcome(backend, *other))


def test_a_subset_can_have_weights_and_regression_targets() -> None:
    network = Network((12, 9, 2), loss="squared-error")
    targets = np.random.default_rng(1).random((400, 2))
    weights = np.random.default_rng(2).random(400) + 0.5
    found, wanted = (
        train(
            network,
            (rows, targets[TRAIN]),
            settings=set_up(),
            scaling=fit_scaling("unit", rows),
            sample_weight=weights[TRAIN],
        )
        for rows in (Subset(PIXELS, TRAIN), PIXELS[TRAIN])
    )
    assert same_bits(found.state, wanted.state)
    assert timeless_history(found) == timeless_history(wanted)


def test_max_time_stops_training_on_a_subset_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.engines.chunks.CHUNK_SECONDS", 1e-9)  # one batch per call
    training = train(NETWORK, (Subset(PIXELS, TRAIN), Y[TRAIN]), settings=set_up(max_time=1e-9), scaling=None)
    assert training.stopped == "time" and 0 < training.history[0]["rows"] < len(TRAIN)


@pytest.mark.parametrize("kind", SCALINGS)
def test_scalings_of_a_subset_have_the_bits_of_its_copy(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    chosen = rng.permutation(3000)[:2500]
    for values in (
        rng.integers(0, 9, (3000, 5), np.uint8),
        rng.normal(1e3, 1, (3000, 5)).astype(np.float32),
        np.ones((3000, 5)),
    ):
        found, wanted = fit_scaling(kind, Subset(mapped(tmp_path, values), chosen)), fit_scaling(kind, values[chosen])
        assert same_bits((found.shift, found.factor), (wanted.shift, wanted.factor))


def test_evaluation_of_a_subset_equals_that_of_its_copy(backend: str, x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    model = train(NETWORK, (x, Y), settings=set_up(backend=backend), scaling=None).model
    monkeypatch.setattr("fastmlp.nn.blocks.BLOCK_BYTES", 7 * x.itemsize * 12)
    subset = Subset(x, VALIDATION)
    assert model.evaluate(subset, Y[VALIDATION]) == model.evaluate(x[VALIDATION], Y[VALIDATION])
    assert same_bits(model.predict_proba(subset), model.predict_proba(x[VALIDATION]))


def test_runs_on_a_folder_and_on_its_npz_are_identical(tmp_path: Path) -> None:
    classes = ["a", "b", "c"]
    np.savez(tmp_path / "data.npz", x=PIXELS, y=Y, classes=classes)
    (tmp_path / "data").mkdir()
    for name, array in {"x": PIXELS, "y": Y, "classes": classes}.items():
        np.save(tmp_path / "data" / f"{name}.npy", array)

    def run(source: str) -> dict[str, Any]:
        config = TrainConfig(
            data=str(tmp_path / source), out=f"{tmp_path}/{source} run", hidden=(9,), epochs=3, backend="numpy"
        )
        result = run_training(config, quiet=True).result
        return {key: result[key] for key in ("test", "validation", "train", "best_epoch")} | {"sha": result["data"]["sha256"]}

    found = run("data")
    assert found == run("data.npz")
    one, other = (Path(f"{tmp_path}/{name} run", "model.safetensors").read_bytes() for name in ("data", "data.npz"))
    assert one == other
    again = evaluate_run(tmp_path / "data run", split="all")
    assert all(again[name] == found[name] for name in ("test", "validation", "train"))


# ------------------------------------------------------------------------------------------------ no copies


@pytest.mark.parametrize("kind", [np.ndarray, Subset])
def test_splits_of_a_mapped_file_are_subsets_and_others_copies(kind: Any, tmp_path: Path) -> None:
    data = check_dataset(RawArrays(mapped(tmp_path, PIXELS) if kind is Subset else PIXELS, Y))
    splits = split(data, **TrainConfig(seed=5).split_sizes())
    indices = split_rows(Y, (0.2, 0.2), seed=5)
    for name, rows in zip(("train", "validation", "test"), indices, strict=True):
        x, y = splits[name].x, splits[name].y
        assert type(x) is kind
        assert np.array_equal(np.asarray(x), PIXELS[rows]) and np.array_equal(y, Y[rows])


def test_the_values_of_a_file_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The values of a file are checked when it is loaded, and not again in training, validation or evaluation."""
    folder, scanned = tmp_path / "data", []
    folder.mkdir()
    np.save(folder / "x.npy", PIXELS.astype(np.float32))
    np.save(folder / "y.npy", Y)
    first_not_finite = checks.first_not_finite
    monkeypatch.setattr(checks, "first_not_finite", lambda x: scanned.append(len(x)) or first_not_finite(x))
    config = TrainConfig(data=str(folder), epochs=2, backend="numpy", out=str(tmp_path / "run"))
    result = run_training(config, quiet=True).result
    assert scanned == [len(PIXELS)] and result["test"]["accuracy"] >= 0
    scanned.clear()
    evaluate_run(tmp_path / "run", split="all")
    assert scanned == [len(PIXELS)]
    scanned.clear()
    train(Network((PIXELS.shape[1], 3)), (PIXELS.astype(np.float32), Y), settings=set_up(epochs=1), scaling=None)
    assert scanned == [len(PIXELS)]


def traced(call: Any) -> int:
    """Return the peak number of bytes that Python and NumPy allocate during a call."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_no_pass_over_the_rows_copies_them(dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With blocks of 64 KiB, a run on 10 MB of data allocates less than 2 MB, so it makes no copy, not even a boolean one."""
    monkeypatch.setattr("fastmlp.nn.blocks.BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr("fastmlp.data.scaling.CHUNK_VALUES", 1 << 13)
    count = 10_000_000 // (1000 * np.dtype(dtype).itemsize)
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "x.npy", np.tile(np.arange(1000).astype(dtype), (count, 1)))
    np.save(tmp_path / "a" / "y.npy", np.arange(count) % 3)
    network = Network((1000, 3))

    def run() -> None:
        data = load_data(tmp_path / "a")
        assert is_mapped(data.x) and data.sha256
        splits = split(data, **TrainConfig().split_sizes())
        scaling = fit_scaling("zscore", splits["train"].x)
        settings = set_up(epochs=1)
        given = TrainingData(splits["train"], splits["validation"], scaling=scaling)
        training = train_task(make_task(network, settings, given))
        for rows in splits.values():
            evaluate_with_predictions(training.model, rows)

    run()  # does the lazy imports, so that they are not counted below
    assert traced(run) < 2_000_000
    x = load_data(tmp_path / "a").x
    assert traced(lambda: x[TRAIN].astype(np.float32)) > 1_000_000  # control: a copy would be detected


def test_pixels_of_named_data_stay_bytes() -> None:
    plan = make_plan(TrainConfig())
    assert plan.data.x.dtype == np.uint8
    assert {rows.x.dtype for rows in plan.splits.values()} == {np.dtype(np.uint8)}


def test_pixels_are_scaled_on_use(backend: str) -> None:
    """Training on uint8 pixels makes no float copy of the whole array."""
    pixels = np.random.default_rng(0).integers(0, 256, (20_000, 784), np.uint8)
    labels = np.arange(20_000) % 3
    network, settings = Network((784, 4, 3)), set_up(epochs=1, batch_size=1000, backend=backend)
    scaling = fit_scaling("unit", pixels)
    train(network, (pixels[:9], labels[:9]), settings=settings, scaling=scaling)
    assert traced(lambda: train(network, (pixels, labels), settings=settings, scaling=scaling)) < pixels.nbytes


# ------------------------------------------------------------------------------------------------ bounded memory

# The program of a child process with limited memory. Its first run imports and compiles everything that a run needs. Then
# RLIMIT_DATA, which limits private writable memory but not memory-mapped files, is set to the current memory plus the bound.
CHILD = """
import re, resource, sys, threading, time
import numpy as np
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.training_run import run_training

def owned(field):
    return int(re.search(rf"{field}:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10

def run(name):
    data, out = f"{folder}/{name}", f"{folder}/{name} run"
    config = TrainConfig(data=data, out=out, hidden=(8,), batch_size=256, epochs=1, optimizer="sgd", threads=2)
    return run_training(config, quiet=True).result

def watch():
    while not done.wait(0.005):
        peaks.append(owned("RssAnon"))

folder, bound = sys.argv[1], int(sys.argv[2])
run("small")
limit = owned("VmData") + bound
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
before, done, peaks = owned("RssAnon"), threading.Event(), []
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
result = run("large")
done.set()
watcher.join()
try:
    np.load(f"{folder}/large/x.npy").sum()
    copied = "in memory"
except MemoryError:
    copied = "refused"
print(copied, limit, max(peaks) - before, sum(result["data"]["rows"].values()))
"""


def write_set(folder: Path, rows: int, features: int) -> int:
    """Write x.npy and y.npy, and return the size of x in bytes.

    The file x.npy is sparse after its first 1000 rows, so that it needs little disk space.
    """
    folder.mkdir()
    with (folder / "x.npy").open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (rows, features)}
        np.lib.format.write_array_header_1_0(stream, header)
        end = stream.tell() + rows * features
        stream.write(np.random.default_rng(0).integers(0, 256, (1000, features), np.uint8).tobytes())
        stream.truncate(end)
    np.save(folder / "y.npy", (np.arange(rows) % 10).astype(np.uint8))
    return rows * features


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has RLIMIT_DATA and /proc")
def test_training_on_a_set_larger_than_the_memory_limit(tmp_path: Path, numba_backend: str) -> None:
    rows, features = 250_000, 3072
    write_set(tmp_path / "small", 2_000, features)
    size = write_set(tmp_path / "large", rows, features)
    bound = BOUND + BOUND_PER_ROW * rows
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(bound)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # the stacks of more threads would increase the limit
    shown = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert shown.returncode == 0, shown.stderr
    copied, limit, grown, trained = shown.stdout.split()
    assert copied == "refused", "the memory limit was not enforced"
    assert size > int(limit)
    assert int(grown) <= bound
    assert int(trained) == rows


def test_the_benchmark_runs(tmp_path: Path, numba_backend: str) -> None:
    memmap.write_pixels(tmp_path / "x.npy", 1_000, 12)
    row = memmap.measure(Case((12, 9, 3), 16), tmp_path / "x.npy", rounds=2)
    assert (row["rows"], row["network"], set(row["seconds"])) == (1_000, "12-9-3", {"mapped", "memory"})
    assert 0 < row["speed"]["least"] <= row["speed"]["median"] <= row["speed"]["most"]
