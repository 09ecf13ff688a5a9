"""Small valid files of every format that fastmlp reads.

Each function returns samples of one format. The samples are built by the libraries that fastmlp uses, so that their mutants
look like the files of users. They are a few hundred bytes to a few kilobytes large, because small files are mutated at the
interesting places more often.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.data.readers.tensors import tensor_bytes
from fastmlp.data.tables.encoding import Column, TableEncoding

ENCODING = TableEncoding((Column("size", 0), Column("kind", 1, ("a", "b", "c"))), "label", True, 3)  # of TABLE
TABLE = "size,kind,label\n1.5,a,no\n2,b,yes\n-3e2,a,no\n.25,c,yes\n4,b,no\n"
ROWS = 6  # rows of the data sets


class Sample(NamedTuple):
    """Files by their paths below the folder of the sample, and the path that is given to the reader."""

    target: str
    files: Mapping[str, bytes]


def single(name: str, data: bytes) -> Sample:
    """Return a sample that is a single file."""
    return Sample(name, {name: data})


def folder(files: Mapping[str, bytes]) -> Sample:
    """Return a sample that is a folder."""
    return Sample("data", {f"data/{name}": data for name, data in files.items()})


def written(write: Callable[[Path], object]) -> dict[str, bytes]:
    """Return the files that a function writes to a temporary folder."""
    with tempfile.TemporaryDirectory() as place:
        write(Path(place))
        found = sorted(path for path in Path(place).rglob("*") if path.is_file())
        return {path.relative_to(place).as_posix(): path.read_bytes() for path in found}


def arrays() -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a small data set of images, with test rows."""
    x = np.random.default_rng(0).integers(0, 256, (ROWS, 2, 2), dtype=np.uint8)
    return {"x": x, "y": np.arange(ROWS) % 2, "x_test": x[:2], "y_test": np.array([0, 1]), "classes": np.array(["no", "yes"])}


# ------------------------------------------------------------------------------------------------ tables


def csv() -> list[Sample]:
    pixels = "\n".join(",".join(map(str, [row % 2, *range(row, row + 16)])) for row in range(ROWS))
    pixels = ",".join(["label", *(f"pixel{index}" for index in range(16))]) + "\n" + pixels
    semicolons = TABLE.replace(",", ";").replace(".", ",")
    quoted = 'name,"a ""b""",label\n"x\ny",1,2.5\n"é",2,3.5\nz,3,-1\n'
    dates = "day\ttime\tvalue\n2020-01-02\t08:00\t1\n2020-01-03\t09:30\t2\n2021-02-03\t10:00\t3\n"
    texts = {"utf-8": TABLE, "utf-16": TABLE + "9,ü,no\n", "utf-16-le": TABLE, "utf-8-sig": semicolons}
    return [
        *(single("data.csv", text.encode(encoding)) for encoding, text in texts.items()),
        *(single("data.csv", text.encode()) for text in (quoted, dates, pixels)),
    ]


def csv_gz() -> list[Sample]:
    return [single("data.csv.gz", gzip.compress(sample.files["data.csv"], mtime=0)) for sample in csv()[:3]]


def parquet() -> list[Sample]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = {"a": pa.array([1.5, 2, -3e5, 4]), "b": pa.array([1, 2, 3, 4]), "y": pa.array([True, False, True, True])}
    texts = {"a": pa.array(["x", "y", "x", "z"]), "b": pa.array([1, 2, 3, 4]), "y": pa.array(["no", "yes", "no", "yes"])}
    coded = {"a": pa.array(["u", "v", "u", "w"]).dictionary_encode(), "y": pa.array([0.5, 1, 2, 3], pa.float32())}
    other = {
        "d": pa.array([1, 2, 3], pa.decimal128(9, 2)),
        "t": pa.array([1, 2, 3], pa.timestamp("us")),
        "y": pa.array([1, 2, 3]),
    }
    found = []
    for columns, options in (
        (numbers, {"compression": "NONE"}),
        (texts, {"compression": "SNAPPY"}),
        (texts, {"compression": "NONE", "use_dictionary": False}),
        (coded, {"compression": "ZSTD"}),
        (other, {"compression": "GZIP", "data_page_version": "2.0"}),
    ):
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer, **options)
        found.append(single("data.parquet", buffer.getvalue()))
    return found


# ------------------------------------------------------------------------------------------------ arrays


def npz_bytes(found: Mapping[str, npt.NDArray[Any]], compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **found)  # type: ignore[arg-type]
    return buffer.getvalue()


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz() -> list[Sample]:
    regression = {"x": np.eye(3, 2, dtype=np.float32), "y": np.array([0.5, 1, 2])}
    texts = {"x": np.asfortranarray(np.eye(4, 3)), "y": np.array(["a", "b", "a", "b"])}
    return [
        *(single("data.npz", npz_bytes(arrays(), compressed)) for compressed in (False, True)),
        *(single("data.npz", npz_bytes(found)) for found in (regression, texts)),
    ]


def npy_folder() -> list[Sample]:
    return [folder({f"{name}.npy": npy_bytes(array) for name, array in arrays().items()})]


def npy() -> list[Sample]:
    return [single("rows.npy", npy_bytes(np.arange(6).reshape(3, 2).astype(kind))) for kind in ("u1", "<f4", ">f8", "?")]


def pt() -> list[Sample]:
    import torch

    x, y = torch.arange(12, dtype=torch.float32).reshape(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    found = []
    for content, is_zip in (({"x": x, "y": y}, True), ({"x": x.bfloat16(), "y": y}, True), ((x, y), True), ((x, y), False)):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
        found.append(single("data.pt", buffer.getvalue()))
    return found


def safetensors() -> list[Sample]:
    found = arrays()
    del found["classes"]
    return [
        single("data.safetensors", tensor_bytes(found, {"classes": '["no", "yes"]'})),
        single("data.safetensors", tensor_bytes({"x": np.eye(4, 2), "y": np.arange(4) / 2}, {"note": "regression"})),
    ]


# ------------------------------------------------------------------------------------------------ IDX


def idx_bytes(array: npt.NDArray[Any], code: int = 8) -> bytes:
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def idx() -> list[Sample]:
    images = arrays()["x"]
    return [
        single("train-images-idx3-ubyte", idx_bytes(images)),
        single("train-labels-idx1-ubyte", idx_bytes(np.arange(ROWS, dtype=np.uint8))),
        single("train-images-idx3-double", idx_bytes(images.astype(">f8"), 14)),
        single("qmnist-train-labels-idx2-int", idx_bytes(np.zeros((ROWS, 8), ">i4"), 12)),
    ]


def idx_gz() -> list[Sample]:
    return [single(f"{one.target}.gz", gzip.compress(one.files[one.target], mtime=0)) for one in idx()]


def idx_folder() -> list[Sample]:
    images, labels = idx_bytes(arrays()["x"]), idx_bytes(np.arange(ROWS, dtype=np.uint8) % 2)
    mnist = {"train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": labels}
    tests = {"t10k-images-idx3-ubyte": images, "t10k-labels-idx1-ubyte.gz": gzip.compress(labels, mtime=0)}
    emnist = {f"emnist-mini-{name}": data for name, data in mnist.items()} | {"emnist-mini-mapping.txt": b"0 48\n1 49 105\n"}
    qmnist = {"qmnist-train-images-idx3-ubyte": images}
    qmnist["qmnist-train-labels-idx2-int"] = idx_bytes(np.repeat(np.arange(ROWS, dtype=">i4")[:, None] % 2, 8, 1), 12)
    return [folder(mnist | tests), folder(emnist), folder(qmnist)]


def mapping() -> list[Sample]:
    return [single("emnist-mapping.txt", b"0 48\n1 49\n2 65 97\n")]


# ------------------------------------------------------------------------------------------------ images


def image(mode: str = "L", size: tuple[int, int] = (5, 4)) -> Any:
    """Return a Pillow image with different pixels."""
    from PIL import Image

    grey = Image.frombytes("L", size, bytes(37 * index % 256 for index in range(size[0] * size[1])))
    if mode == "I;16":
        return Image.frombytes("I;16", size, bytes(index % 256 for index in range(2 * size[0] * size[1])))
    return grey.convert("RGB").quantize(4) if mode == "P" else grey.convert(mode)


def image_bytes(mode: str, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def exif() -> bytes:
    """Return EXIF data with an orientation and a text."""
    from PIL import Image

    tags = Image.Exif()
    tags[0x0112], tags[0x010E] = 6, "upright"
    return tags.tobytes()


def pictures(name: str, kind: str, variants: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Sample]:
    return [single(name, image_bytes(mode, kind, **options)) for mode, options in variants]


def png() -> list[Sample]:
    profile, frames = bytes(range(64)), {"save_all": True, "append_images": [image()]}
    variants: list[tuple[str, dict[str, Any]]] = [(mode, {}) for mode in ("L", "RGB", "RGBA", "LA", "1", "I;16")]
    variants += [
        ("P", {}),
        ("P", {"transparency": 0}),
        ("P", {"transparency": b"\0\x80\xff"}),
        ("RGB", {"transparency": (0, 0, 0)}),
    ]
    variants += [("RGB", {"exif": exif()}), ("L", {"icc_profile": profile}), ("L", frames)]
    return pictures("image.png", "png", variants)


def jpeg() -> list[Sample]:
    return pictures("image.jpg", "jpeg", [("L", {}), ("RGB", {"exif": exif()}), ("RGB", {"progressive": True}), ("CMYK", {})])


def gif() -> list[Sample]:
    frames = {"save_all": True, "append_images": [image()]}
    return pictures("image.gif", "gif", [("L", {}), ("P", {"transparency": 0}), ("L", frames)])


def tiff() -> list[Sample]:
    plain = [(mode, {}) for mode in ("L", "RGB", "I;16", "F", "1")]
    packed = [("L", {"compression": kind}) for kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")]
    return pictures("image.tif", "tiff", [*plain, *packed, ("RGB", {"exif": exif()})])


def webp() -> list[Sample]:
    return pictures("image.webp", "webp", [("RGB", {}), ("RGBA", {"lossless": True}), ("RGB", {"exif": exif()})])


def bmp() -> list[Sample]:
    return pictures("image.bmp", "bmp", [("L", {}), ("RGB", {}), ("1", {}), ("P", {})])


def pgm() -> list[Sample]:
    plain = [
        single("image.pgm", b"P2\n# grey\n3 2\n255\n0 1 2\n3 4 255\n"),
        single("image.pgm", b"P5 2 2 65535\n\0\1\0\2\0\3\0\4"),
    ]
    return plain + pictures("image.pgm", "ppm", [("L", {}), ("RGB", {}), ("1", {})])


def image_folder() -> list[Sample]:
    same = {f"{name}/1.png": image_bytes("L", "png") for name in ("cat", "dog")}
    kinds = {"cat/1.bmp": "bmp", "dog/1.tif": "tiff", "eel/1.webp": "webp"}
    return [
        folder(same),
        folder({f"{split}/{name}": data for split in ("train", "test") for name, data in same.items()}),
        folder({name: image_bytes("RGB", kind) for name, kind in kinds.items()}),
    ]


# ------------------------------------------------------------------------------------------------ text files


def text(name: str, *contents: str | Mapping[str, Any]) -> list[Sample]:
    texts = [one if isinstance(one, str) else json.dumps(one, indent=2) for one in contents]
    return [single(name, one.encode()) for one in texts]
