"""A small valid file of every format that fastmlp reads, and the reader of each."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from support.data import idx

ROWS = 12
SHAPE = (8, 8)
PIXELS = np.random.default_rng(0).integers(0, 256, (ROWS, *SHAPE), np.uint8)
LABELS = np.arange(ROWS, dtype=np.uint8) % 2
TABLE = "width,colour,label\n" + "".join(f"{row / 4},{'red' if row % 3 else 'blue'},{'ab'[row % 2]}\n" for row in range(ROWS))
RUN = ["--hidden", "4", "--epochs", "2", "--backend", "numpy", "--quiet"]
BACKBONE, BACKBONE_SHAPE = "shufflenet_v2_x0_5", (32, 32, 3)  # a backbone with few weights


def write_samples(folder: Path) -> None:
    """Write the files of all readers in `READERS` to an empty folder. Needs PyTorch and torchvision."""
    write_tables(folder)
    write_arrays(folder)
    write_images(folder)
    write_run(folder)
    write_networks(folder)
    from fastmlp.experiments.recipes.recipe import FOLDER

    shutil.copy(FOLDER / "ours.toml", folder / "recipes.toml")


def write_tables(folder: Path) -> None:
    """Write table.csv, table.csv.gz and table.parquet."""
    import pyarrow.csv
    import pyarrow.parquet

    (folder / "table.csv").write_text(TABLE)
    (folder / "table.csv.gz").write_bytes(gzip.compress(TABLE.encode()))
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(folder / "table.csv"), folder / "table.parquet")


def write_arrays(folder: Path) -> None:
    """Write arrays.npz, arrays.safetensors, arrays.pt, and the folders npy, idx, packed and emnist."""
    import torch
    from safetensors.numpy import save_file

    arrays = {"x": PIXELS, "y": LABELS}
    np.savez_compressed(folder / "arrays.npz", **arrays, classes=["a", "b"])
    save_file(arrays, folder / "arrays.safetensors")
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, folder / "arrays.pt")
    for name in ("npy", "idx", "packed", "emnist"):
        (folder / name).mkdir()
    for name, array in arrays.items():
        np.save(folder / "npy" / f"{name}.npy", array)
        word = {"x": "images", "y": "labels"}[name]
        (folder / "idx" / f"train-{word}").write_bytes(idx(array))
        (folder / "packed" / f"train-{word}.gz").write_bytes(gzip.compress(idx(array)))
        (folder / "emnist" / f"emnist-letters-train-{word}").write_bytes(idx(array))
    (folder / "emnist" / "emnist-letters-mapping.txt").write_text("0 65\n1 66\n")


def write_images(folder: Path) -> None:
    """Write a folder of images in several formats, with a subfolder per class."""
    from PIL import Image

    for row, suffix in enumerate(("png", "jpg", "bmp", "gif", "tif", "webp")):
        path = folder / "images" / "ab"[row % 2] / f"{row}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[row]).save(path)


def write_run(folder: Path) -> None:
    """Write a run folder, run, the output folder of a training with several seeds, seeds, and features of images."""
    from support.cli import ok

    ok("train", "--data", folder / "table.csv", *RUN, "--out", folder / "run")
    ok("train", "--data", folder / "table.csv", *RUN, "--seeds", "2", "--out", folder / "seeds")
    cnn = ["--filters", "2", "--dense", "4", "--epochs", "1", "--device", "cpu", "--quiet"]
    ok("extract", "--data", folder / "arrays.npz", *cnn, "--out", folder / "features.npz")
    ok("train", "--data", folder / "features.npz", *RUN, "--out", folder / "of-features")


def write_networks(folder: Path) -> None:
    """Write cnn.pt, a checkpoint of the CNN of `cnn_trainer`, and weights.pt, the weights of a torchvision network."""
    import torch
    from fastmlp.cnn.network import build_backbone

    trainer = cnn_trainer()
    trainer.run()
    (folder / "cnn.pt").write_bytes(trainer.checkpoint())
    torch.save(build_backbone(BACKBONE, BACKBONE_SHAPE, 2, 0).body.state_dict(), folder / "weights.pt")


def cnn_trainer() -> Any:
    """Return a trainer of a small CNN, which has not been run."""
    from fastmlp.cnn.images import Images, Scaling
    from fastmlp.cnn.training import Settings, Split, Trainer

    from support.cnn import SHAPE as IMAGE_SHAPE
    from support.cnn import bars, network

    pixels, labels = bars(8, 0)
    scaling = Scaling(np.zeros(1, np.float32), np.full(1, 1 / 255, np.float32))
    return Trainer(network(), Split(Images(pixels, IMAGE_SHAPE, scaling), labels), None, Settings(epochs=1, batch_size=4))


# ------------------------------------------------------------------------------------------------ readers


def data(name: str) -> Callable[[Path], Any]:
    """Return a function that loads a data set of the folder with `load_data`."""

    def read(folder: Path) -> Any:
        from fastmlp.data.load import load_data

        return load_data(folder / name)

    return read


def read_image(folder: Path) -> Any:
    from fastmlp.data.readers.images import load_images

    return load_images([folder / "images" / "a" / "0.png"], (*SHAPE, 1))


def read_config(folder: Path) -> Any:
    from fastmlp.experiments.config.sources import resolve

    return resolve({}, {}, folder / "run" / "config.toml")


def read_recipe(folder: Path) -> Any:
    from fastmlp.experiments.recipes.recipe import read_recipes

    return list(read_recipes(folder / "recipes.toml"))


def read_result(folder: Path) -> Any:
    from fastmlp.experiments.folder import read_data, read_result

    return read_result(folder / "run" / "result.json"), read_data(folder / "run")


def read_history(folder: Path) -> Any:
    from fastmlp.experiments.folder import read_history

    return read_history(folder / "run")


def read_manifest(folder: Path) -> Any:
    from fastmlp.experiments.folder import check_manifest

    return check_manifest(folder / "run")


def read_seeds(folder: Path) -> Any:
    from fastmlp.experiments.sweeps.seeds import read_seeds

    return read_seeds(folder / "seeds")


def read_compared(folder: Path) -> Any:
    from fastmlp.experiments.sweeps.stored import read_entry

    return read_entry(folder / "seeds", "validation"), read_entry(folder / "run", "validation")


def read_model(folder: Path) -> Any:
    from fastmlp.models.model import load

    return load(folder / "run" / "model.safetensors", backend="numpy")


def read_checkpoint(folder: Path) -> Any:
    from fastmlp.training.checkpoints.file import files_of, read

    return read(files_of(folder / "run")[-1])


def read_extractor(folder: Path) -> Any:
    from fastmlp.cnn.extractor import from_bytes

    from fastmlp.models.model import load

    extractor = load(folder / "of-features", backend="numpy").extractor
    assert extractor is not None
    return from_bytes(extractor, "model.safetensors")


def read_cnn_checkpoint(folder: Path) -> Any:
    return cnn_trainer().resume((folder / "cnn.pt").read_bytes(), "cnn.pt")


def read_weights(folder: Path) -> Any:
    from fastmlp.cnn.network import build_backbone, load_weights

    return load_weights(build_backbone(BACKBONE, BACKBONE_SHAPE, 2, 0), folder / "weights.pt", None)


# Each function reads files that `write_samples` has written to a folder.
READERS: Mapping[str, Callable[[Path], Any]] = {
    "csv": data("table.csv"),
    "csv.gz": data("table.csv.gz"),
    "parquet": data("table.parquet"),
    "npz": data("arrays.npz"),
    "npy folder": data("npy"),
    "safetensors": data("arrays.safetensors"),
    "pt": data("arrays.pt"),
    "idx": data("idx"),
    "idx.gz": data("packed"),
    "mapping file": data("emnist"),
    "image folder": data("images"),
    "image": read_image,
    "features": data("features.npz"),
    "config": read_config,
    "recipe": read_recipe,
    "result": read_result,
    "history": read_history,
    "manifest": read_manifest,
    "seeds": read_seeds,
    "compared run": read_compared,
    "model": read_model,
    "checkpoint": read_checkpoint,
    "extractor": read_extractor,
    "cnn checkpoint": read_cnn_checkpoint,
    "cnn weights": read_weights,
}


# ------------------------------------------------------------------------------------------------ files with code


class Payload:
    """An object whose pickle creates a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def write_hostile(folder: Path) -> dict[str, Callable[[], Any]]:
    """Write files with pickles of a `Payload` to an empty folder; return the call that reads each file, which must fail.

    Loading one of the pickles would create the folder `executed`.
    """
    import torch
    from fastmlp.cnn.network import build_backbone, load_weights

    from fastmlp.data.load import load_data
    from fastmlp.models.model import load

    payload = Payload(folder / "executed")
    array = np.array([payload], object)
    for name in ("plain.npz", "plain.pt", "plain.safetensors", "cnn.pt"):
        (folder / name).write_bytes(pickle.dumps({"x": payload, "y": payload}))
    np.savez(folder / "objects.npz", x=array, y=array, allow_pickle=True)
    (folder / "npy").mkdir()
    for name in ("x", "y"):
        np.save(folder / "npy" / f"{name}.npy", array, allow_pickle=True)
    torch.save({"x": payload, "y": payload}, folder / "zip.pt")
    torch.save({"x": payload, "y": payload}, folder / "old.pt", _use_new_zipfile_serialization=False)
    backbone = build_backbone(BACKBONE, BACKBONE_SHAPE, 2, 0)
    names = ("plain.npz", "plain.pt", "plain.safetensors", "objects.npz", "npy", "zip.pt", "old.pt")
    return {
        **{name: partial(load_data, folder / name) for name in names},
        "model": partial(load, folder / "plain.safetensors", backend="numpy"),
        "cnn checkpoint": lambda: cnn_trainer().resume((folder / "cnn.pt").read_bytes(), "cnn.pt"),
        "cnn weights": partial(load_weights, backbone, folder / "zip.pt", None),
    }
