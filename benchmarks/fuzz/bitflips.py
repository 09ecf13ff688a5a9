"""Flip every bit of a small checkpoint and of a small model file: python -m benchmarks.fuzz.bitflips [--out FILE.json]

Reading must raise DataError. A flip is harmless if the file is still read with the same contents, for example a flip in the
padding of the safetensors header; harmless flips are listed.
The exit status is 1 if a flip changes the content without an error, or raises another exception.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.fuzz.__main__ import about
from benchmarks.fuzz.trained import MODEL_NAME, checkpoint_bytes, saved, tiny_model
from fastmlp.errors import DataError
from fastmlp.files import write_json
from fastmlp.models.file import read as read_model
from fastmlp.models.file import read_file
from fastmlp.training.checkpoints.file import read as read_checkpoint

Read = Callable[[Path], Any]
Flip = tuple[int, int]  # a byte and a bit of it


class Flips(NamedTuple):
    """Results of flipping the bits of a file.

    detected : number of flips that raised DataError
    harmless : flips that do not change the contents
    undetected : flips that change the contents without an error
    other : messages of exceptions other than DataError
    """

    detected: int
    harmless: list[Flip]
    undetected: list[Flip]
    other: list[str]


def files() -> dict[str, tuple[bytes, Read]]:
    """Return the bytes of each file, and the function that reads it."""
    return {
        MODEL_NAME: (saved(tiny_model()), read_model),
        "step-000000000004.safetensors": (checkpoint_bytes(), read_checkpoint),
    }


def content(path: Path) -> tuple[dict[str, str], list[tuple[str, str, tuple[int, ...], bytes]]]:
    """Return all that a file contains: the metadata, and the name, dtype, shape and bytes of each tensor."""
    metadata, tensors = read_file(path)
    return metadata, [
        (name, one.dtype.str, one.shape, np.ascontiguousarray(one).tobytes()) for name, one in sorted(tensors.items())
    ]


def flip(path: Path, data: bytes, read: Read, flips: Iterable[Flip]) -> Flips:
    """Read a file with each of the given bits flipped.

    path : where the files are written
    """
    path.write_bytes(data)
    read(path)
    before, detected = content(path), 0
    harmless, undetected, other = [], [], []
    for byte, bit in flips:
        flipped = bytearray(data)
        flipped[byte] ^= 1 << bit
        path.write_bytes(flipped)
        try:
            read(path)
        except DataError:
            detected += 1
        except BaseException as error:  # a panic of a library in Rust is not a subclass of Exception
            other.append(f"{path.name}: byte {byte}, bit {bit}: {type(error).__name__}: {error}")
        else:
            (harmless if content(path) == before else undetected).append((byte, bit))
    return Flips(detected, harmless, undetected, other)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args(arguments)
    rows, wrong = [], []
    for name, (data, read) in files().items():
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = flip(Path(folder, name), data, read, ((byte, bit) for byte in range(len(data)) for bit in range(8)))
        row = {"file": name, "bytes": len(data), "flips": 8 * len(data), "seconds": time.perf_counter() - started}
        rows.append(row | found._asdict())
        wrong += [f"{name}: byte {byte}, bit {bit} is not detected" for byte, bit in found.undetected] + found.other
        print(f"{name}: {found.detected:,} of {8 * len(data):,} flips detected, {len(found.harmless)} harmless", flush=True)
    if options.out:
        write_json(options.out, {**about(), "files": rows})
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
