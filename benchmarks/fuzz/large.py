"""Large files of the formats that fastmlp reads, for the measurement of the memory."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.fuzz.samples import Sample, folder, idx_bytes, npy_bytes, npz_bytes, single
from benchmarks.fuzz.trained import MODEL_NAME, PROVENANCE, checkpoint_bytes, extractor_bytes, saved
from fastmlp.data.readers.tensors import tensor_bytes
from fastmlp.models.model import Model
from fastmlp.nn.network import Network


class Large(NamedTuple):
    """A large sample, and the size of its content without compression."""

    sample: Sample
    content: int


def rows(size: int, features: int = 64) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return random features of about `size` bytes, and labels."""
    rng = np.random.default_rng(0)
    count = size // (4 * features)
    return rng.random((count, features), np.float32), np.arange(count) % 2


def csv_text(size: int) -> bytes:
    x, _ = rows(size // 3)
    lines = [",".join(f"{value:.8f}" for value in row) + f",{index % 2}\n" for index, row in enumerate(x.tolist())]
    return (",".join([*(f"a{index}" for index in range(64)), "label"]) + "\n" + "".join(lines)).encode()


def csv(size: int) -> Large:
    text = csv_text(size)
    return Large(single("data.csv", text), len(text))


def csv_gz(size: int) -> Large:
    text = csv_text(size)
    return Large(single("data.csv.gz", gzip.compress(text, 1, mtime=0)), len(text))


def predicted(size: int) -> Large:
    """Return a table of a number and a text; the features are the number and three indicators in float64."""
    text = b"size,kind,label\n" + b"1.5,a,no\n2.25,b,yes\n" * (size // 20)
    return Large(single("data.csv", text), max(len(text), 2 * (size // 20) * 4 * 8))


def parquet(size: int) -> Large:
    import pyarrow as pa
    import pyarrow.parquet as pq

    x, y = rows(size)
    table = pa.table({**{f"a{index}": column for index, column in enumerate(x.T)}, "y": y})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return Large(single("data.parquet", buffer.getvalue()), table.nbytes)


def npz(size: int) -> Large:
    x, y = rows(size)
    return Large(single("data.npz", npz_bytes({"x": x, "y": y}, compressed=True)), x.nbytes + y.nbytes)


def npy_folder(size: int) -> Large:
    x, y = rows(size)
    return Large(folder({"x.npy": npy_bytes(x), "y.npy": npy_bytes(y)}), x.nbytes + y.nbytes)


def npy(size: int) -> Large:
    x, _ = rows(size)
    return Large(single("rows.npy", npy_bytes(x)), x.nbytes)


def safetensors(size: int) -> Large:
    x, y = rows(size)
    return Large(single("data.safetensors", tensor_bytes({"x": x, "y": y}, {"classes": '["no", "yes"]'})), x.nbytes + y.nbytes)


def idx(size: int) -> Large:
    images = np.random.default_rng(0).integers(0, 256, (size // 784, 28, 28), np.uint8)
    return Large(single("train-images-idx3-ubyte", idx_bytes(images)), images.nbytes)


def idx_gz(size: int) -> Large:
    sample, content = idx(size)
    data = gzip.compress(sample.files[sample.target], 1, mtime=0)
    return Large(single(f"{sample.target}.gz", data), content)


def idx_folder(size: int) -> Large:
    images, content = idx(size)
    labels = idx_bytes((np.arange(size // 784) % 10).astype(np.uint8))
    return Large(folder({**images.files, "train-labels-idx1-ubyte": labels}), content)


def mapping(size: int) -> Large:
    text = "".join(f"{label} {32 + label % 90}\n" for label in range(size // 12)).encode()
    return Large(single("emnist-mapping.txt", text), len(text))


def picture(name: str, kind: str, **options: Any) -> Callable[[int], Large]:
    """Return a function that makes a large image of random pixels in colour."""

    def make(size: int) -> Large:
        from PIL import Image

        side = int((size / 3) ** 0.5)
        pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **options)
        return Large(single(name, buffer.getvalue()), pixels.nbytes)

    return make


def image_folder(size: int) -> Large:
    from PIL import Image

    buffer, side = io.BytesIO(), 100
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)).save(buffer, "png")
    data, count = buffer.getvalue(), size // side**2
    return Large(folder({f"{'ab'[index % 2]}/{index}.png": data for index in range(count)}), count * side**2)


def document(name: str, text: Callable[[int], str], inner: bool = False) -> Callable[[int], Large]:
    """Return a function that makes a large text file, in a folder if `inner` is true."""

    def make(size: int) -> Large:
        data = text(size).encode()
        return Large((folder({name: data}) if inner else single(name, data)), len(data))

    return make


def json_object(size: int) -> str:
    entry = {"name": "x" * 20, "values": [0.123456789, 1, 2, 3, None, True]}
    return json.dumps({"format_version": 1, "sha256": {}, "rows": [entry] * (size // len(json.dumps(entry)))})


def log(size: int) -> str:
    line = '{{"epoch":{},"loss":0.123456789,"accuracy":0.987654321,"val_loss":null,"val_accuracy":null,"lr":0.001}}\n'
    return "".join(map(line.format, range(1, size // 90)))


# ------------------------------------------------------------------------------------------------ networks


def pt(size: int) -> Large:
    import torch

    x, y = (torch.from_numpy(one) for one in rows(size))
    buffer = io.BytesIO()
    torch.save({"x": x, "y": y}, buffer)
    return Large(single("data.pt", buffer.getvalue()), x.nbytes + y.nbytes)


def wide_model(size: int) -> Model:
    """Return a model whose float32 weights have about `size` bytes."""
    network = Network((2048, max(size // 4 // 2048, 2), 2))
    return Model(network, np.zeros(network.parameters, np.float32), classes=("no", "yes"))


def model(size: int) -> Large:
    found = wide_model(size)
    return Large(single(MODEL_NAME, saved(found)), found.parameters.nbytes)


def prediction(size: int) -> Large:
    """Return a large file of images of 784 pixels, and a model of them."""
    network = Network((784, 2))
    small = Model(network, network.initial_parameters(seed=0), classes=("no", "yes"))
    x, _ = rows(size, 784)
    return Large(folder({MODEL_NAME: saved(small), "rows.npz": npz_bytes({"x": x})}), x.nbytes)


def checkpoint(size: int) -> Large:
    """Return a checkpoint with the best weights, the current weights and two slots of the optimizer."""
    data = checkpoint_bytes(model=wide_model(size // 4))
    return Large(single("step-000000000004.safetensors", data), len(data))


def features(size: int) -> Large:
    x, y = rows(size)
    found = {"x": x, "y": y, "validation": np.array([1]), "extractor": np.frombuffer(extractor_bytes(), np.uint8)}
    return Large(
        single("features.safetensors", tensor_bytes(found, {"classes": '["no", "yes"]', "provenance": PROVENANCE})), x.nbytes
    )


def extractor(size: int) -> Large:
    """Return an extractor with a large dense layer."""
    data = extractor_bytes(pixels=64, dense=size // 4 // (2 * 64**2))
    return Large(single("extractor.pt", data), len(data))


def cnn_checkpoint(size: int) -> Large:
    """Return a checkpoint of another network, which is refused after it was read."""
    import torch

    buffer, half = io.BytesIO(), {"output.weight": torch.zeros(size // 8)}
    state = {"format_version": 1, "optimizer_name": "sgd", "optimizer": {}, "history": [], "best_epoch": 0, "best_score": 0.0}
    torch.save(state | {"network": half, "best_network": {"output.weight": torch.ones(size // 8)}}, buffer)
    return Large(single("checkpoint.pt", buffer.getvalue()), size)


def weights(size: int) -> Large:
    import torch

    buffer = io.BytesIO()
    torch.save({"conv.weight": torch.zeros(size // 4)}, buffer)
    return Large(single("weights.pth", buffer.getvalue()), size)


LARGE: dict[str, Callable[[int], Large]] = {
    "csv": csv,
    "csv-gz": csv_gz,
    "predicted-table": predicted,
    "parquet": parquet,
    "npz": npz,
    "npy-folder": npy_folder,
    "npy": npy,
    "safetensors": safetensors,
    "idx": idx,
    "idx-gz": idx_gz,
    "idx-folder": idx_folder,
    "mapping": mapping,
    "pt": pt,
    "model": model,
    "predict": prediction,
    "checkpoint": checkpoint,
    "features": features,
    "extractor": extractor,
    "cnn-checkpoint": cnn_checkpoint,
    "cnn-weights": weights,
    "png": picture("image.png", "png", compress_level=1),
    "jpeg": picture("image.jpg", "jpeg", quality=95),
    "gif": picture("image.gif", "gif"),
    "tiff": picture("image.tif", "tiff"),
    "webp": picture("image.webp", "webp", lossless=True, quality=0, method=0),
    "bmp": picture("image.bmp", "bmp"),
    "pgm": picture("image.ppm", "ppm"),
    "image-folder": image_folder,
    "config": document("config.toml", lambda size: "hidden = [" + "100, " * (size // 5) + "1]\n"),
    "toml": document("a.toml", lambda size: "".join(f"key{index} = {index / 8}\n" for index in range(size // 20))),
    "json": document("a.json", json_object),
    "result": document("result.json", json_object, inner=True),
    "run-data": document("data.json", json_object, inner=True),
    "manifest": document("manifest.json", json_object, inner=True),
    "metrics": document("metrics.jsonl", log, inner=True),
}
