"""The settings of a run are passed to each subpackage by one function call, from the command line down to the engines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support.cli import ok

from fastmlp.engines.base import EngineSpec
from fastmlp.experiments.config.sources import resolve
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.plan import portable
from fastmlp.training.settings import Settings, Task

SETTINGS = (TrainConfig, Settings, Task, EngineSpec)


class Walk:
    """Profile function (`sys.setprofile`) that records calls between subpackages in which an argument is a settings object."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        callee, caller = subpackage(frame), self.caller(frame)
        if event != "call" or not callee or callee == caller or frame.f_code.co_name == "__init__":
            return
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        call = caller, callee, code.co_name
        if any(isinstance(frame.f_locals.get(name), SETTINGS) for name in names) and call not in self.calls:
            self.calls.append(call)

    @staticmethod
    def caller(frame: FrameType) -> str:
        """Return the subpackage of the nearest caller that belongs to fastmlp, or "" if there is none."""
        found = frame.f_back
        while found is not None and not subpackage(found):
            found = found.f_back
        return "" if found is None else subpackage(found)


def subpackage(frame: FrameType) -> str:
    """Return the name of the subpackage of fastmlp whose code a frame executes, or "" for other code."""
    name = frame.f_globals.get("__name__", "").split(".")
    return name[1] if name[0] == "fastmlp" and len(name) > 1 else ""


def test_settings_enter_each_subpackage_by_one_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for slow in ("result.draw", "training_run.load_matplotlib"):  # profiling makes them very slow
        monkeypatch.setattr(f"fastmlp.experiments.{slow}", lambda *given: None)
    walk = Walk()
    sys.setprofile(walk)
    try:
        ok("train", "-q", "--epochs", "2", "--hidden", "8", "--backend", "numpy", "--out", str(tmp_path / "run"))
    finally:
        sys.setprofile(None)
    training = ["make_task", "train_task"]  # settings are checked before the run folder is created
    assert walk.calls == [
        ("commands", "experiments", "run_training"),
        *(("experiments", "training", name) for name in training),
        ("training", "engines", "make_engine"),
        ("models", "engines", "make_engine"),  # for the evaluation of the trained model
    ]


def test_result_has_the_settings_that_the_command_line_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTMLP_DATA", raising=False)
    flags = {"epochs": "2", "hidden": "8", "backend": "numpy", "seed": "3", "out": str(tmp_path / "run")}
    ok("train", "-q", *(word for name, value in flags.items() for word in (f"--{name}", value)))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    expected = portable(resolve(flags, {}))
    assert result["settings"] == json.loads(json.dumps(expected))
    assert (result["settings"]["seed"], result["settings"]["hidden"]) == (3, [8])
    assert portable(resolve({}, {}, tmp_path / "run" / "config.toml")) == expected
