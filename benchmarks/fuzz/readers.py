"""The functions of fastmlp that read files, each with samples of its format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.fuzz import samples, trained
from benchmarks.fuzz.outcomes import Target
from benchmarks.fuzz.samples import ENCODING, Sample


class Reader(NamedTuple):
    """A function that reads a path, and a function that returns samples that it reads without an error.

    names_file : whether error messages must contain the name of the file
    needs_torch : whether the samples or the function need PyTorch
    prints : whether a library in C behind the reader prints messages about damaged files, which cannot be turned off
    expands : whether the content may be much larger than the file, since it is compressed, or the file declares its size
    """

    name: str
    samples: Callable[[], list[Sample]]
    read: Callable[[Path], Any]
    names_file: bool = True
    needs_torch: bool = False
    expands: bool = False
    prints: bool = False

    def target(self) -> Target:
        """Return what is sent to another process."""
        return Target(self.name, self.read, self.samples(), self.names_file, self.expands, self.prints)


def load_data(path: Path) -> Any:
    from fastmlp.data.load import load_data as load

    return load(path)


def load_columns(path: Path) -> Any:
    """Read the features of a table for a model, as `predict` does."""
    from fastmlp.data.tables.load import load_features

    return load_features(path, ENCODING, ENCODING.n_features)


def read_rows(path: Path) -> Any:
    """Read rows of numbers, as `predict` does."""
    from fastmlp.experiments.prediction import read_arrays

    return read_arrays(path)[0].sum()  # a memory-mapped file is read only here


def read_features(path: Path) -> Any:
    from fastmlp.data.features import read_features as read

    return read(path)


def read_model(path: Path) -> Any:
    import fastmlp

    return repr(fastmlp.load(path))


def predict(folder: Path) -> Any:
    """Predict rows with a model; both are in a folder."""
    from fastmlp.experiments.prediction import predict_files

    rows = folder / ("rows.csv" if (folder / "rows.csv").exists() else "rows.npz")
    return predict_files(folder / trained.MODEL_NAME, [rows], backend="numpy", open_extractor=extractor_of)


def extractor_of(data: bytes, name: str) -> Any:
    """Restore the extractor in a model, which only mutants have."""
    from fastmlp.cnn.extractor import from_bytes

    return from_bytes(data, name)


def read_checkpoint(path: Path) -> Any:
    from fastmlp.training.checkpoints.file import read

    return read(path)


def read_idx(path: Path) -> Any:
    from fastmlp.data.readers.idx import read_idx as read

    return read(path)


def read_mapping(path: Path) -> Any:
    from fastmlp.data.readers.idx_folder import read_mapping as read

    return read(path)


def read_image(path: Path) -> Any:
    """Read an image in colour with its own size, and as grey pixels of a given size."""
    from fastmlp.data.readers.images import load_images
    from fastmlp.data.readers.images import read_image as read

    read(path, 3)
    return load_images([path], (3, 2, 1))


def read_config(path: Path) -> Any:
    from fastmlp.experiments.config.sources import resolve

    return resolve({}, {}, path)


def read_extract_config(path: Path) -> Any:
    from fastmlp.experiments.config.extract import ExtractConfig
    from fastmlp.experiments.config.sources import resolve_as

    return resolve_as(ExtractConfig, {}, {}, path)


def read_run_config(path: Path) -> Any:
    from fastmlp.experiments.config.sources import read_config as read

    return read(path / "config.toml")


def read_json(path: Path) -> Any:
    from fastmlp.files import read_json as read

    return read(path)


def read_toml(path: Path) -> Any:
    from fastmlp.files import read_toml as read

    return read(path)


def read_result(folder: Path) -> Any:
    from fastmlp.experiments.folder import read_result as read

    return read(folder / "result.json")


def read_data(folder: Path) -> Any:
    from fastmlp.experiments.folder import read_data as read

    return read(folder)


def read_history(folder: Path) -> Any:
    from fastmlp.experiments.folder import read_history as read

    return read(folder)


def read_seeds(folder: Path) -> Any:
    from fastmlp.experiments.sweeps.seeds import read_seeds as read

    return read(folder)


def check_manifest(folder: Path) -> Any:
    from fastmlp.experiments.folder import check_manifest as check

    return check(folder, ("config.toml", "result.json"))


def read_run(folder: Path) -> Any:
    """Read a run folder, as `compare` does."""
    from fastmlp.experiments.sweeps.stored import read_entry

    return [read_entry(folder, split) for split in ("test", "validation")]


def open_extractor(path: Path) -> Any:
    from fastmlp.cnn.extractor import from_bytes

    return from_bytes(path.read_bytes(), str(path)).width


def resume_cnn(path: Path) -> Any:
    return trained.trainer().resume(path.read_bytes(), str(path))


def load_weights(path: Path) -> Any:
    from fastmlp.cnn.network import load_weights as load

    return load(trained.backbone(), path, None)


CONFIG = """data = "digits"
hidden = [32, 16]
lr = 0.01
epochs = 3
schedule = "cosine"
dropout = [0.1, 0.2]
max-time = "2m"
val_fraction = 0.1
scale = "zscore"
predictions = false
"""
EXTRACT_CONFIG = (
    'data = "digits"\nfilters = [8, 16]\npool = ["max", "global"]\nlr = 1e-3\nflip = 0.5\nfeature_dtype = "float16"\n'
)
NESTED_TOML = (
    "# notes\ntitle = \"a\"\nday = 2020-01-02T03:04:05Z\n[a.b]\nc = [1, 2.5e3, \"x\", {d = true}]\n[[e]]\nf = '''x\ny'''\n"
)
JSON = '{"format_version": 1, "a": [1, 2.5, -3e10, null, true, "\\u00e9"], "b": {"c": {"d": "x"}}}'

_READERS = (
    Reader("csv", samples.csv, load_data),
    Reader("csv-gz", samples.csv_gz, load_data, expands=True),
    Reader("predicted-table", lambda: [*samples.csv()[:2], *samples.csv_gz()[:1]], load_columns, expands=True),
    Reader("parquet", samples.parquet, load_data, expands=True),
    Reader("npz", samples.npz, load_data, expands=True),
    Reader("npy-folder", samples.npy_folder, load_data),
    Reader("npy", samples.npy, read_rows),
    Reader("pt", samples.pt, load_data, needs_torch=True, expands=True),
    Reader("safetensors", samples.safetensors, load_data),
    Reader("model", trained.models, read_model, needs_torch=True),
    Reader("predict", trained.predictions, predict, needs_torch=True, expands=True),
    Reader("checkpoint", trained.checkpoint_files, read_checkpoint),
    Reader("features", trained.features, read_features, needs_torch=True, expands=True),
    Reader("idx", samples.idx, read_idx),
    Reader("idx-gz", samples.idx_gz, read_idx, expands=True),
    Reader("idx-folder", samples.idx_folder, load_data, expands=True),
    Reader("mapping", samples.mapping, read_mapping),
    Reader("png", samples.png, read_image, expands=True),
    Reader("jpeg", samples.jpeg, read_image, expands=True),
    Reader("gif", samples.gif, read_image, expands=True),
    Reader("tiff", samples.tiff, read_image, expands=True, prints=True),
    Reader("webp", samples.webp, read_image, expands=True),
    Reader("bmp", samples.bmp, read_image, expands=True),
    Reader("pgm", samples.pgm, read_image, expands=True),
    Reader("image-folder", samples.image_folder, load_data, expands=True, prints=True),
    Reader("config", lambda: samples.text("config.toml", CONFIG), read_config, names_file=False),
    Reader("extract-config", lambda: samples.text("extract.toml", EXTRACT_CONFIG), read_extract_config, names_file=False),
    Reader("run-config", lambda: trained.file_of_run("config.toml"), read_run_config),
    Reader("toml", lambda: samples.text("a.toml", CONFIG, NESTED_TOML), read_toml),
    Reader("json", lambda: samples.text("a.json", JSON), read_json),
    Reader("result", lambda: trained.file_of_run("result.json"), read_result),
    Reader("run-data", lambda: trained.file_of_run("data.json"), read_data),
    Reader("metrics", lambda: trained.file_of_run("metrics.jsonl"), read_history),
    Reader("seeds", trained.seeds, read_seeds),
    Reader("manifest", trained.manifests, check_manifest),
    Reader("run", trained.runs, read_run),
    Reader("extractor", trained.extractors, open_extractor, needs_torch=True),
    Reader("cnn-checkpoint", trained.cnn_checkpoints, resume_cnn, needs_torch=True),
    Reader("cnn-weights", trained.weights, load_weights, needs_torch=True),
)
READERS = {reader.name: reader for reader in _READERS}
