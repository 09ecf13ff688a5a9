"""Samples of the files that training and extraction write: models, checkpoints, feature files, run folders, extractors."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.durability.trials import SETTINGS, quick_runs, write_data
from benchmarks.fuzz.samples import ENCODING, Sample, arrays, folder, npy_bytes, npz_bytes, single, text, written
from fastmlp.data.images.polarity import ImageStats
from fastmlp.data.readers.tensors import tensor_bytes
from fastmlp.engines.base import RowMetrics, State
from fastmlp.experiments.config.train import TrainConfig
from fastmlp.experiments.folder import MANIFEST_FILES, write_manifest
from fastmlp.experiments.training_run import run_training
from fastmlp.files import json_bytes
from fastmlp.models.model import Model
from fastmlp.nn.network import Network
from fastmlp.nn.scaling import Scaling
from fastmlp.training.checkpoints import file as checkpoints
from fastmlp.training.checkpoints.compare import settings_table
from fastmlp.training.result import History
from fastmlp.training.settings import Settings

MODEL_NAME = "model.safetensors"
# Durations and others that differ between runs, so that the mutants of a seed would not be the same.
VARYING = ("seconds", "eval_seconds", "seconds_per_epoch", "rows_per_second", "gflops", "versions", "out", "data_seconds")
LOG = {"epoch": 1, "loss": 0.5, "accuracy": 0.75, "val_loss": None, "val_accuracy": None, "lr": 0.1, "rows": 4}
PROVENANCE = json.dumps(
    {
        "key": "0" * 64,
        "settings": {"epochs": 1},
        "network": {"image_shape": [2, 2, 1]},
        "layer": "flatten",
        "images": {"name": "digits", "sha256": "0" * 64},
        "cnn": {},
    }
)

# ------------------------------------------------------------------------------------------------ models


def tiny_model(**fields: Any) -> Model:
    """Return a model of two inputs, a hidden layer of two units, and two classes."""
    network = Network((2, 2, 2), dropout=0.1)
    return Model(network, network.initial_parameters(seed=0), **{"classes": ("no", "yes")} | fields)


def table_model() -> Model:
    """Return a model of the table `samples.TABLE`."""
    network = Network((4, 2, 2))
    parameters = network.initial_parameters(seed=0)
    return Model(network, parameters, classes=("no", "yes"), encoding=ENCODING, text_labels=True, backend="numpy")


def image_model() -> Model:
    """Return a model of grey images of 2x2 pixels."""
    network = Network((4, 2, 2))
    stats = ImageStats(background=0.0, background_std=0.0, mean=60.0)
    scaling = Scaling("zscore", np.zeros(4, np.float32), np.full(4, 1 / 255, np.float32))
    parameters = network.initial_parameters(seed=0)
    return Model(network, parameters, scaling, ("a", "b"), (2, 2, 1), image_stats=stats)


def regression_model() -> Model:
    """Return a regression model with scaled targets, in float64."""
    network = Network((3, 2, 1), output="identity", loss="mse")
    scaling = Scaling("zscore", np.zeros(1, np.float32), np.ones(1, np.float32))
    return Model(network, network.initial_parameters(seed=0).astype(np.float64), target_scaling=scaling)


def saved(model: Model) -> bytes:
    """Return the bytes of a model file."""
    return written(lambda place: model.save(place / MODEL_NAME))[MODEL_NAME]


def models() -> list[Sample]:
    found = [tiny_model(), table_model(), image_model(), regression_model(), feature_model()]
    return [single(MODEL_NAME, saved(model)) for model in found]


def feature_model() -> Model:
    """Return a model of the features of images, with their extractor."""
    network = Network((2, 2))
    return Model(network, network.initial_parameters(seed=0), None, ("a", "b"), (4, 4, 1), extractor=extractor_bytes())


def predictions() -> list[Sample]:
    """Return folders with a model, and a file of rows to predict."""
    rows = npz_bytes({"x": np.zeros((2, 2), np.float32)})
    table = b"size,kind\n1,a\n2,b\n"
    picture = npz_bytes({"x": np.array([[0, 0, 255, 0], [255, 0, 255, 255]], np.uint8)})
    pairs = ((tiny_model(), {"rows.npz": rows}), (table_model(), {"rows.csv": table}), (image_model(), {"rows.npz": picture}))
    return [folder({MODEL_NAME: saved(model)} | files) for model, files in pairs]


def checkpoint_bytes(partial: bool = False, model: Model | None = None) -> bytes:
    """Return the bytes of a checkpoint after an epoch; `partial` also has a part of the next epoch.

    model : the model in the checkpoint; None for a network 2-2-2
    """
    model = tiny_model() if model is None else model
    slots = np.zeros((2, model.network.parameters), np.float32)
    metrics = RowMetrics(np.array([0.5, 0.25], np.float32), np.array([True, False]))
    rest = checkpoints.PartialEpoch(metrics, [], 0, 0.5, 0.0) if partial else None
    state = State(model.parameters, slots, 4)
    checkpoint = checkpoints.Checkpoint(state, model, 1, History([LOG | {"seconds": 0.5, "eval_seconds": 0.25}]), rest)
    fields = None if rest is None else {"steps": [], "since": 0, "seconds": 0.5, "eval_seconds": 0.0}
    environment = {"backend": "numpy", "processor": "znver4", "numpy": "2"}
    record = checkpoints.Record(1, 4, 1, settings_table(Settings()), {}, "0" * 64, environment, checkpoint.history, fields)
    name = "step-000000000004.safetensors"
    return written(lambda place: checkpoints.write(place / name, checkpoint, record))[name]


def checkpoint_files() -> list[Sample]:
    return [single("step-000000000004.safetensors", checkpoint_bytes(partial)) for partial in (False, True)]


def features() -> list[Sample]:
    found = {name: values for name, values in arrays().items() if name != "classes"} | {"validation": np.array([1])}
    found["x"], found["x_test"] = (found[name].reshape(-1, 4).astype(np.float32) for name in ("x", "x_test"))
    found["extractor"] = np.frombuffer(extractor_bytes(), np.uint8)
    texts = {"classes": np.array(["no", "yes"]), "provenance": np.array(PROVENANCE)}
    return [
        single("features.npz", npz_bytes(found | texts)),
        single("features.safetensors", tensor_bytes(found, {"classes": '["no", "yes"]', "provenance": PROVENANCE})),
        folder({f"{name}.npy": npy_bytes(array) for name, array in (found | texts).items()}),
    ]


# ------------------------------------------------------------------------------------------------ run folders


@functools.cache
def run_files() -> dict[str, bytes]:
    """Return the files of a finished run, without models and figures; values that vary between runs are constants."""
    names = (*MANIFEST_FILES[1:], "manifest.json", "data.json", "metrics.jsonl", "timings.jsonl", "classes.jsonl")

    def run(place: Path) -> None:
        with quick_runs():
            run_training(TrainConfig(**SETTINGS, data=str(write_data(place / "data.npz")), out=str(place / "run")), quiet=True)
        for path in (place / "run").glob("*.json*"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            path.write_bytes(b"".join(json_bytes(constant(json.loads(line))) for line in lines))
        config = (place / "run/config.toml").read_text().replace(str(place), "")
        (place / "run/config.toml").write_text(config)
        write_manifest(place / "run")

    found = written(run)
    return {name: found[f"run/{name}"] for name in names}


def constant(value: Any) -> Any:
    """Return a decoded JSON value in which values that vary between runs are replaced with constants."""
    if isinstance(value, Mapping):
        return {key: 0.5 if key in VARYING else constant(item) for key, item in value.items()}
    return [constant(item) for item in value] if isinstance(value, list) else value


def runs() -> list[Sample]:
    """Return a finished and an unfinished run."""
    unfinished = {name: data for name, data in run_files().items() if name not in ("manifest.json", "result.json")}
    return [folder(run_files()), folder(unfinished)]


def manifests() -> list[Sample]:
    return [folder({name: run_files()[name] for name in (*MANIFEST_FILES[1:], "manifest.json")})]


def file_of_run(*names: str) -> list[Sample]:
    """Return folders with one file of a run each."""
    return [folder({name: run_files()[name]}) for name in names]


def seeds() -> list[Sample]:
    found = text("seeds.json", {"format_version": 1, "runs": [{"seed": 0, "test": {"loss": 0.5}}, {"seed": 1}], "out": ""})
    return [folder(found[0].files)]


# ------------------------------------------------------------------------------------------------ networks in PyTorch


@functools.cache
def extractor_bytes(pixels: int = 4, dense: int = 0) -> bytes:
    """Return the bytes of a feature extractor with two filters for grey images.

    dense : size of a dense layer after the filters; 0 for global pooling and no dense layer
    """
    from fastmlp.cnn.description import Description, make_blocks
    from fastmlp.cnn.extractor import Extractor, make_network
    from fastmlp.cnn.images import Scaling as PixelScaling

    blocks = make_blocks((2,), pool=("none" if dense else "global",), regularize="batch")
    description = Description(image_shape=(pixels, pixels, 1), classes=2, blocks=blocks, dense=(dense,) * bool(dense))
    scaling = PixelScaling(np.zeros(pixels**2, np.float32), np.full(pixels**2, 1 / 255, np.float32))
    return Extractor(description, make_network(description, 0), scaling).to_bytes()


def extractors() -> list[Sample]:
    return [single("extractor.pt", extractor_bytes())]


def trainer() -> Any:
    """Return a trainer of a small convolutional network, which has not trained yet."""
    from fastmlp.cnn.description import Description, make_blocks
    from fastmlp.cnn.extractor import make_network
    from fastmlp.cnn.images import Images
    from fastmlp.cnn.training import Settings as CnnSettings
    from fastmlp.cnn.training import Split, Trainer

    description = Description(image_shape=(4, 4, 1), classes=2, blocks=make_blocks((2,), pool=("global",)))
    split = Split(Images(np.zeros((2, 16), np.float32), (4, 4, 1)), np.array([0, 1]))
    return Trainer(make_network(description, 0), split, None, CnnSettings(optimizer="sgd"))


def cnn_checkpoints() -> list[Sample]:
    from fastmlp.cnn.checkpoint import LOG_KEYS, VALIDATION_KEYS

    found = trainer()
    found.history.append({name: 1 if name == "epoch" else 0.5 for name in (*LOG_KEYS, *VALIDATION_KEYS)})
    return [single("checkpoint.pt", found.checkpoint())]


def backbone() -> Any:
    """Return a network with the attributes of `cnn.network.Backbone`, but a small body."""
    from collections import OrderedDict

    from torch import nn

    class Small(nn.Module):
        name, head = "small", "head"

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 2), head=nn.Linear(2, 2)))

    return Small()


def weights() -> list[Sample]:
    import torch

    buffer = io.BytesIO()
    torch.manual_seed(0)
    torch.save(backbone().body.state_dict(), buffer)
    return [single("weights.pth", buffer.getvalue())]
