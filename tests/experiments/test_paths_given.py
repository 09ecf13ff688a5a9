"""Public functions that take paths: other values are refused with an error of fastmlp, which names the argument."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastmlp
from fastmlp import data, experiments, reports
from fastmlp.bench import write_bench
from fastmlp.data.download import data_folder
from fastmlp.errors import ConfigError

NETWORK = fastmlp.Network((4, 3, 2))
MODEL = fastmlp.Model(NETWORK, NETWORK.initial_parameters(seed=0), backend="numpy")
X, Y = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
COUNTS = np.eye(2, dtype=np.int64)


def train(**given: Any) -> Any:
    return fastmlp.train(NETWORK, (X, Y), epochs=1, backend="numpy", **given)


CALLS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "save": ("path", MODEL.save),
    "load": ("path", fastmlp.load),
    "load_data": ("source", fastmlp.load_data),
    "load_data, folder": ("data_dir", lambda bad: fastmlp.load_data("mnist", bad)),
    "train, checkpoints": ("checkpoints", lambda bad: train(checkpoints=bad)),
    "train, resume": ("resume", lambda bad: train(resume=bad)),
    "fetch_data": ("data_dir", lambda bad: data.fetch_data("mnist", bad)),
    "list_data": ("data_dir", data.list_data),
    "verify_data": ("data_dir", lambda bad: data.verify_data("mnist", bad)),
    "compare_runs": ("paths", experiments.compare_runs),
    "compare_runs, list": ("paths", lambda bad: experiments.compare_runs([bad])),
    "compare_runs, figure": ("out", lambda bad: experiments.compare_runs(["a"], out=bad)),
    "evaluate_run": ("path", experiments.evaluate_run),
    "evaluate_run, data": ("source", lambda bad: experiments.evaluate_run("a", bad)),
    "evaluate_run, predictions": ("predictions", lambda bad: experiments.evaluate_run("a", predictions=bad)),
    "evaluate_run, mistakes": ("mistakes", lambda bad: experiments.evaluate_run("a", mistakes=bad)),
    "predict_files": ("path", lambda bad: experiments.predict_files(bad, ["a"])),
    "predict_files, inputs": ("inputs", lambda bad: experiments.predict_files("a", bad)),
    "predict_files, list": ("inputs", lambda bad: experiments.predict_files("a", [bad])),
    "predict_files, figure": ("show", lambda bad: experiments.predict_files("a", ["b"], show=bad)),
    "plot_confusion": ("path", lambda bad: reports.plot_confusion(COUNTS, ["a", "b"], bad)),
    "write_bench": ("folder", lambda bad: write_bench({}, bad)),
}


@pytest.mark.parametrize("bad", [123, 3.5, b"a", X, {1: 2}], ids=lambda bad: type(bad).__name__)
@pytest.mark.parametrize("call", CALLS)
def test_other_values_than_paths_are_refused(call: str, bad: Any) -> None:
    name, function = CALLS[call]
    with pytest.raises(ConfigError, match=rf"^{name} must be a path \(str or pathlib.Path\), not \w+$"):
        function(bad)


@pytest.mark.parametrize("call", CALLS)
def test_empty_text_is_not_the_current_folder(call: str) -> None:
    name, function = CALLS[call]
    with pytest.raises(ConfigError, match=rf"^{name} is empty; give a path$"):
        function("")


def test_one_input_may_be_given_without_a_list(tmp_path: Path) -> None:
    MODEL.save(tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", x=X)
    one = experiments.predict_files(tmp_path / "a.safetensors", tmp_path / "a.npz", backend="numpy")
    assert one == experiments.predict_files(tmp_path / "a.safetensors", [tmp_path / "a.npz"], backend="numpy")
    assert len(one) == len(X)


def test_the_folder_of_a_user_who_does_not_exist() -> None:
    assert data_folder("~no-such-user-of-this-machine/a") == Path("~no-such-user-of-this-machine/a")
    assert data_folder("~/a") == Path.home() / "a"
