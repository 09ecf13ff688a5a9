"""Tests that model files are saved and loaded, and that every kind of damage is reported in one line with the file name."""

from __future__ import annotations

import dataclasses
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as parse
from safetensors.numpy import save as to_bytes
from support.engines import same_bits

from fastmlp.data.images.polarity import ImageStats
from fastmlp.data.scaling import fit_scaling
from fastmlp.errors import DataError
from fastmlp.models.file import FILE_NAME, digest
from fastmlp.models.model import Model, load
from fastmlp.nn.network import Network

NETWORK = Network((4, 3, 2), activation="leaky-relu:0.25", dropout=0.5, l2=0.125, label_smoothing=0.25)
X = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)


def make_model(network: Network = NETWORK, **changes: Any) -> Model:
    defaults: dict[str, Any] = {
        "parameters": network.initial_parameters(3),
        "scaling": fit_scaling("zscore", X),
        "classes": ("no", "yes"),
        "image_shape": (2, 2, 1),
        "backend": "numpy",
    }
    return Model(network, **{**defaults, **changes})


MODELS: dict[str, Model] = {
    "everything": make_model(),
    "nothing": make_model(scaling=None, classes=("a", "b"), image_shape=None),
    "float64": make_model(parameters=NETWORK.initial_parameters(3, np.float64)),
    "regression": make_model(
        Network((4, 5, 3, 2), ("gelu", "elu:0.3"), (0.0, 0.2), "squared-error", "sigmoid", l1=1e-3, init="normal:0.3"),
        classes=(),
        image_shape=None,
    ),
    "loss with a parameter": make_model(Network((4, 3, 2), loss="huber:1.5"), classes=(), image_shape=None),
    "no hidden layer": make_model(Network((4, 2))),
    "statistics of images": make_model(image_stats=ImageStats(0.5, 1.25, 30, 0)),
    "special characters": make_model(classes=('Größe "1"', "猫\\")),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_equals_the_saved_one(tmp_path: Path, name: str) -> None:
    model = MODELS[name]
    model.save(tmp_path / "a.safetensors")
    other = load(tmp_path / "a.safetensors", backend="numpy")
    assert other.network == model.network
    assert (other.classes, other.image_shape, other.image_stats) == (model.classes, model.image_shape, model.image_stats)
    assert same_bits(other.parameters, model.parameters)
    if model.scaling is None:
        assert other.scaling is None
    else:
        assert other.scaling is not None
        assert other.scaling.kind == model.scaling.kind
        assert same_bits(other.scaling.shift, model.scaling.shift)
        assert same_bits(other.scaling.factor, model.scaling.factor)
    assert same_bits(other.forward(X), model.forward(X))
    assert same_bits(other.predict(X), model.predict(X))


def test_a_loaded_model_has_the_same_predictions_in_every_engine(tmp_path: Path, backend: str) -> None:
    network = Network((4, 12, 3))
    model = make_model(network, classes=("a", "b", "c"), backend=backend)
    model.save(tmp_path / "a.safetensors")
    other = load(tmp_path / "a.safetensors", backend=backend, threads=2)
    assert (other.backend, other.threads) == (backend, 2)
    assert same_bits(other.forward(X), model.forward(X))


def test_a_model_can_be_loaded_from_its_run_folder(tmp_path: Path) -> None:
    make_model().save(tmp_path / FILE_NAME)
    assert same_bits(load(tmp_path).parameters, make_model().parameters)
    assert same_bits(load(str(tmp_path)).parameters, make_model().parameters)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    """Saving the same model again writes an identical file, so the hash of the file identifies the model."""
    contents = set()
    for number in range(16):
        make_model().save(tmp_path / str(number))
        contents.add((tmp_path / str(number)).read_bytes())
    assert len(contents) == 1


def test_other_programs_can_read_the_file(tmp_path: Path) -> None:
    """A model file is a plain safetensors file with the documented tensor names and shapes."""
    make_model().save(tmp_path / "a")
    tensors = parse((tmp_path / "a").read_bytes())
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "layers.0.weight": (4, 3),
        "layers.0.bias": (3,),
        "layers.1.weight": (3, 2),
        "layers.1.bias": (2,),
        "scaling.shift": (4,),
        "scaling.factor": (4,),
    }
    (w, _), _ = NETWORK.views(make_model().parameters)
    assert same_bits(tensors["layers.0.weight"], np.ascontiguousarray(w))


def test_saving_replaces_the_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    make_model().save(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert load(tmp_path / "a").network == NETWORK


def test_saving_into_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no/a"):
        make_model().save(tmp_path / "no" / "a")


# ------------------------------------------------------------------------------------------------ damage


def refused(path: Path, message: str | None = None) -> str:
    """Load a file that must be rejected. Return the error message, which must be one line that contains the file name."""
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, bytes]:
    """Return a path to write to, and the bytes of a small model file."""
    make_model(Network((4, 2)), image_shape=None).save(tmp_path / "a")
    return tmp_path / "b", (tmp_path / "a").read_bytes()


def test_every_flipped_bit_is_detected(small: tuple[Path, bytes]) -> None:
    path, content = small
    damaged = bytearray(content)
    for position in range(len(content)):
        for bit in range(8):
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                refused(path)
            except BaseException as error:
                error.add_note(f"byte {position}, bit {bit}, near {content[max(0, position - 20) : position + 20]!r}")
                raise
            damaged[position] ^= 1 << bit
    path.write_bytes(damaged)
    assert load(path).network == Network((4, 2))


def test_every_truncation_is_detected(small: tuple[Path, bytes]) -> None:
    path, content = small
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refused(path)


def test_appended_bytes_are_detected(small: tuple[Path, bytes]) -> None:
    path, content = small
    for tail in (b"\0", b"\0" * 64, content):
        path.write_bytes(content + tail)
        refused(path)


def test_swapped_tensors_are_detected(tmp_path: Path) -> None:
    """The SHA-256 hash detects that two tensors of equal shape are swapped, which safetensors itself does not detect."""
    model = make_model()
    model.save(tmp_path / "a")
    tensors, metadata = contents(tmp_path / "a")
    swap = {"scaling.shift": "scaling.factor", "scaling.factor": "scaling.shift"}
    (tmp_path / "b").write_bytes(to_bytes({swap.get(k, k): v for k, v in tensors.items()}, metadata))
    assert "damaged" in refused(tmp_path / "b")


def contents(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors and the metadata of a model file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return parse(data), json.loads(data[8 : 8 + length])["__metadata__"]


def forge(path: Path, tensors: dict[str, Any] | None = None, text: str | None = None, **header: Any) -> Path:
    """Write a model file with a valid SHA-256 hash, in which the given tensors and header fields are replaced.

    The value None removes a tensor, and the value `...` (Ellipsis) removes a header field.
    """
    make_model().save(path)
    found, metadata = contents(path)
    fields = json.loads(metadata["fastmlp"])
    fields.update(header)
    text = json.dumps({k: v for k, v in fields.items() if v is not ...}) if text is None else text
    found = {k: v for k, v in {**found, **(tensors or {})}.items() if v is not None}
    path.write_bytes(to_bytes(found, {"fastmlp": text, "sha256": digest(text, found)}))
    return path


def test_forge_without_changes_writes_a_valid_file(tmp_path: Path) -> None:
    assert load(forge(tmp_path / "a")).network == NETWORK


def test_a_file_without_a_field_of_the_network_that_was_added_later_has_its_default(tmp_path: Path) -> None:
    older = {name: value for name, value in dataclasses.asdict(NETWORK).items() if name not in ("hidden", "random_biases")}
    assert load(forge(tmp_path / "a", network=older)).network == NETWORK
    assert load(forge(tmp_path / "b", network=older | {"random_biases": True})).network.random_biases is True


W = np.ones((4, 3), np.float32)
BAD_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "weight missing": ({"layers.1.weight": None}, "layers.1.weight"),
    "bias missing": ({"layers.0.bias": None}, "layers.0.bias"),
    "first weight missing": ({"layers.0.weight": None}, "layers.0.weight"),
    "transposed": ({"layers.0.weight": np.ascontiguousarray(W.T)}, r"layers.0.weight .*\(4, 3\)"),
    "too wide": ({"layers.0.weight": np.ones((4, 4), np.float32)}, r"layers.0.weight .*\(4, 3\)"),
    "flat": ({"layers.0.weight": W.ravel()}, "layers.0.weight"),
    "a single bias": ({"layers.0.bias": np.ones(1, np.float32)}, "layers.0.bias"),
    "NaN": ({"layers.0.weight": W * np.float32(np.nan)}, "not finite"),
    "infinite": ({"layers.1.bias": np.full(2, np.inf, np.float32)}, "not finite"),
    "unknown tensor": ({"layers.2.weight": W}, "layers.2.weight"),
    "integers": ({"layers.0.weight": W.astype(np.int64)}, "layers.0.weight"),
    "half precision": ({"layers.0.weight": W.astype(np.float16)}, "layers.0.weight"),
    "two precisions": ({"layers.1.weight": np.ones((3, 2), np.float64)}, "layers.1.weight"),
    "shift missing": ({"scaling.shift": None}, "scaling.shift"),
    "factor missing": ({"scaling.factor": None}, "scaling.factor"),
    "NaN in the scaling": ({"scaling.factor": np.full(4, np.nan, np.float32)}, "not finite"),
    "scaling of other features": (
        {"scaling.shift": np.ones(5, np.float32), "scaling.factor": np.ones(5, np.float32)},
        "scaling",
    ),
    "scaling of two lengths": ({"scaling.shift": np.ones(5, np.float32)}, "scaling"),
    "scaling in float64": ({"scaling.shift": np.ones(4)}, "scaling"),
}


@pytest.mark.parametrize("damage", BAD_TENSORS)
def test_tensors_must_match_the_description(tmp_path: Path, damage: str) -> None:
    tensors, message = BAD_TENSORS[damage]
    refused(forge(tmp_path / "a", tensors), message)


GOOD = {"sizes": [4, 3, 2], "activation": ["relu"], "dropout": [0.0]}
UNREADABLE = r": invalid model description \("  # the message of msgspec follows
BAD_HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "newer version": ({"format_version": 2}, "format version 2, "),
    "version zero": ({"format_version": 0}, "format version 0, "),
    "version missing": ({"format_version": ...}, "no format version, "),
    "version as true": ({"format_version": True}, "format version True, "),
    "version as float": ({"format_version": 1.0}, "format version 1.0, "),
    "version as text": ({"format_version": "one"}, "format version 'one', "),
    "unknown field": ({"colour": "red"}, UNREADABLE),
    "network missing": ({"network": ...}, UNREADABLE),
    "network of another type": ({"network": [4, 3, 2]}, UNREADABLE),
    "sizes missing": ({"network": {"activation": ["relu"]}}, UNREADABLE),
    "unknown field of the network": ({"network": {**GOOD, "colour": "red"}}, "the network has unknown fields colour"),
    "unknown sizes": ({"network": {**GOOD, "sizes": [0, 3, 0]}}, UNREADABLE),
    "sizes as text": ({"network": {**GOOD, "sizes": ["four", 3, 2]}}, UNREADABLE),
    "fractional sizes": ({"network": {**GOOD, "sizes": [4.5, 3, 2]}}, UNREADABLE),
    "one size": ({"network": {**GOOD, "sizes": [4]}}, r"sizes must be .* not \(4,\)"),
    "negative size": ({"network": {**GOOD, "sizes": [4, -3, 2]}}, r"sizes must be .* not \(4, -3, 2\)"),
    "unknown activation": ({"network": {**GOOD, "activation": ["rleu"]}}, "activation 'rleu', which is not built in"),
    "too many activations": ({"network": {**GOOD, "activation": ["relu", "relu"]}}, "activation has 2 values"),
    "dropout of one": ({"network": {**GOOD, "dropout": [1.0]}}, r"dropout must be .* not 1\.0"),
    "unknown loss": ({"network": {**GOOD, "loss": "hinge"}}, "unknown loss 'hinge'"),
    "unknown init": ({"network": {**GOOD, "init": "random"}}, "unknown init 'random'"),
    "classes missing": ({"classes": ...}, UNREADABLE),
    "class numbers": ({"classes": [0, 1]}, UNREADABLE),
    "too few classes": ({"classes": ["only"]}, "classes has 1 names"),
    "too many classes": ({"classes": ["a", "b", "c"]}, "classes has 3 names"),
    "title of a terminal": (
        {"classes": ["a", "b\x1b]0;title\x07"]},
        r"classes\[1\]: the class name .* the control character U\+001B",
    ),
    "line break in a class name": (
        {"classes": ["a\nb", "c"]},
        r"classes\[0\]: the class name 'a\\nb' contains the control character",
    ),
    "tab in a class name": ({"classes": ["a\tb", "c"]}, r"classes\[0\]: the class name 'a\\tb' contains the control character"),
    "reversed text": ({"classes": ["a\u202eb", "c"]}, r"classes\[0\]: .* contains the bidirectional control character"),
    "image shape of two numbers": ({"image_shape": [2, 2]}, UNREADABLE),
    "image shape of other features": ({"image_shape": [28, 28, 1]}, r"image_shape \(28, 28, 1\) has 784 pixels"),
    "statistics with a word": ({"image_stats": {"background": "dark", "background_std": 0, "mean": 30}}, UNREADABLE),
    "statistics without the mean": ({"image_stats": {"background": 0, "background_std": 0}}, UNREADABLE),
    "unknown scaling": ({"scaling": "zscor"}, "unknown scaling 'zscor'; did you mean 'zscore'"),
    "scaling that is a number": ({"scaling": 3}, UNREADABLE),
    "scaling missing, but not its tensors": ({"scaling": None}, r"tensor scaling\.factor is not part of the network"),
}


@pytest.mark.parametrize("damage", BAD_HEADERS)
def test_an_invalid_description_is_rejected(tmp_path: Path, damage: str) -> None:
    header, message = BAD_HEADERS[damage]
    refused(forge(tmp_path / "a", **header), message)


BAD_TEXTS = {
    "not JSON": "format_version = 1",
    "empty": "",
    "truncated": '{"format_version": 1, "network": {"sizes": [4',
    "not Unicode": '{"format_version": 1, "network": "\\ud800"}',
    "deep": '{"format_version": 1, "network": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep in an unknown field": '{"format_version": 1, "network": {"colour": ' + "[" * 100_000 + "]" * 100_000 + "}}",
    "a very long number": '{"format_version": ' + "1" * 5000 + "}",
}


@pytest.mark.parametrize("damage", BAD_TEXTS)
def test_a_description_that_is_not_json_is_rejected(tmp_path: Path, damage: str) -> None:
    refused(forge(tmp_path / "a", text=BAD_TEXTS[damage]), UNREADABLE)


@pytest.mark.parametrize("text", ["[]", "null", "{}"])
def test_a_description_without_a_format_version_is_rejected(tmp_path: Path, text: str) -> None:
    refused(forge(tmp_path / "a", text=text), "no format version, but this version of fastmlp reads format version 1")


@pytest.mark.parametrize("sizes", [[10**6, 10**6, 2], [2**31, 2**31, 2**31], [2**62, 2**62], [10**30, 3, 2], [4, 10**11, 2]])
def test_declared_sizes_are_checked_before_memory_is_allocated(tmp_path: Path, sizes: list[int]) -> None:
    network = {"sizes": sizes, "activation": ["relu"] * (len(sizes) - 2), "dropout": [0.0] * (len(sizes) - 2)}
    refused(forge(tmp_path / "a", network=network))


@pytest.mark.parametrize("missing", ["fastmlp", "sha256", "both"])
def test_a_safetensors_file_without_our_metadata_is_rejected(tmp_path: Path, missing: str) -> None:
    make_model().save(tmp_path / "a")
    tensors, metadata = contents(tmp_path / "a")
    rest = {} if missing == "both" else {key: value for key, value in metadata.items() if key != missing}
    (tmp_path / "b").write_bytes(to_bytes(tensors, rest or None))
    refused(tmp_path / "b", "not a fastmlp model")


OTHER_FILES: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello, this is not a model\n" * 40,
    "zeros": bytes(4096),
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(1000),
    "a pickle": pickle.dumps({"layers.0.weight": W}),
    "zip": b"PK\x03\x04" + bytes(1000),
    "a header longer than the file": struct.pack("<Q", 10**6) + b"{}",
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}" + bytes(100),
    "a header of 2^64 - 1 bytes": struct.pack("<Q", 2**64 - 1) + b"{}" + bytes(100),
    "a header that is not JSON": struct.pack("<Q", 8) + b"notjson!" + bytes(100),
    "a header that is a list": struct.pack("<Q", 8) + b"[]      " + bytes(100),
    "an empty header": struct.pack("<Q", 8) + b"{}      ",
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_other_files_are_rejected(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(OTHER_FILES[kind])
    refused(tmp_path / "a")


@pytest.mark.parametrize("offsets", [[0, 10**15], [10**15, 10**15 + 48], [48, 0], [0, 47], [-48, 0]])
def test_tensor_offsets_outside_the_file_are_rejected(tmp_path: Path, offsets: list[int]) -> None:
    header = {"layers.0.weight": {"dtype": "F32", "shape": [4, 3], "data_offsets": offsets}}
    text = json.dumps(header).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(text)) + text + bytes(48))
    refused(tmp_path / "a")


def test_the_message_for_a_missing_file_has_a_remedy(tmp_path: Path) -> None:
    assert "fastmlp train" in refused(tmp_path / "a", "no such model")
    with pytest.raises(DataError, match=FILE_NAME):
        load(tmp_path)  # an empty folder


def test_a_folder_in_place_of_the_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(DataError, match=FILE_NAME):
        load(tmp_path)


def test_a_file_that_is_too_large_is_rejected_unread(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(17 << 30)  # a sparse file, which needs no disk space
    refused(tmp_path / "a", "bytes")
