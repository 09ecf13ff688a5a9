"""Measure the speed of a CNN in training and feature extraction: python -m benchmarks.cnn_speed [--rounds 7] [--out FILE.json]

training : images per second of whole training steps (network of cs776-cnn-4, batch size 64, Adam). The variants are the
    channels_last memory format (used by fastmlp.cnn), the contiguous format, bfloat16 (autocast), and torch.compile
extraction : images per second of computing features from uint8 images. For comparison, the forward pass of the same layers
    is timed alone, on float32 images in memory and with the same batch size

Rounds of the variants are interleaved. The images are random, since the speed does not depend on their content. A variant that
fails on this machine is left out, and the reason is reported.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastmlp.cnn.description import Description, make_blocks
from fastmlp.cnn.extractor import Extractor, make_network
from fastmlp.cnn.images import Scaling
from fastmlp.cnn.network import up_to
from fastmlp.cnn.training import EVALUATED
from torch.nn.functional import cross_entropy

from benchmarks.epochs import machine
from fastmlp.bench.rounds import min_median_max
from fastmlp.data.features import extract_rows
from fastmlp.files import write_json

SHAPE, BATCH, STEPS = (28, 28, 1), 64, 20
NETWORK = Description(image_shape=SHAPE, classes=10, blocks=make_blocks((16, 32, 64, 128, 256), pool="max"), dense=(512,))
IMAGES = 8 * EVALUATED


def stepper(memory: Any, autocast: bool = False, compiled: bool = False) -> Callable[[], None]:
    """Return a function that runs STEPS training steps."""
    network = make_network(NETWORK, 0).to(memory_format=memory)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), fused=False)
    called = torch.compile(network) if compiled else network
    x = torch.rand(BATCH, 1, *SHAPE[:2]).contiguous(memory_format=memory)
    y = torch.randint(0, 10, (BATCH,))

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
                z = called(x)
            cross_entropy(z.float(), y).backward()
            optimizer.step()

    return steps


VARIANTS: dict[str, dict[str, Any]] = {
    "channels_last": {"memory": torch.channels_last},
    "contiguous": {"memory": torch.contiguous_format},
    "channels_last, bfloat16": {"memory": torch.channels_last, "autocast": True},
    "channels_last, torch.compile": {"memory": torch.channels_last, "compiled": True},
}


def extraction() -> dict[str, Callable[[], None]]:
    """Return the two functions to be timed: feature extraction by fastmlp, and the forward pass alone."""
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 784), np.uint8)
    scaling = Scaling(np.full(1, 127.5, np.float32), np.full(1, 1 / 127.5, np.float32))
    extractor = Extractor(NETWORK, make_network(NETWORK, 0), scaling)
    layers = up_to(make_network(NETWORK, 0), "flatten").eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.from_numpy(extractor_input(pixels)).permute(0, 3, 1, 2)

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, IMAGES, EVALUATED):
                layers(x[start : start + EVALUATED])

    def ours() -> None:
        extract_rows(extractor, pixels)

    return {"extraction": ours, "bare forward pass": bare}


def extractor_input(pixels: Any) -> Any:
    """Convert pixels to scaled float32 images, the input of the forward pass alone."""
    return ((pixels.astype(np.float32) - 127.5) / 127.5).reshape(-1, *SHAPE)


def images_per_second(calls: dict[str, Callable[[], None]], images: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measure the images per second of each call; every round runs all calls."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):  # the first round is a warm-up
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number:
                seconds[name].append(images / (time.perf_counter() - began))
    return {name: min_median_max(one) for name, one in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    calls, left_out = {}, {}
    for name, variant in VARIANTS.items():
        try:
            call = stepper(**variant)
            call()
            calls[name] = call
        except Exception as error:  # torch raises many types if a compiler or a data type is missing
            left_out[name] = " ".join(str(error).split())[:200]
    found = images_per_second(calls, STEPS * BATCH, options.rounds) | images_per_second(extraction(), IMAGES, options.rounds)
    for name, row in found.items():
        print(f"{name}: {row['median']:,.0f} images/s ({row['least']:,.0f} to {row['most']:,.0f})")
    share = found["extraction"]["median"] / found["bare forward pass"]["median"]
    print(f"extraction: {share:.1%} of the speed of the forward pass alone; left out: {left_out or 'nothing'}")
    if options.out:
        about = {
            "machine": machine(),
            "torch": str(torch.__version__),
            "torch_threads": torch.get_num_threads(),
            "rounds": options.rounds,
        }
        write_json(options.out, about | {"images_per_second": found, "extraction_share": share, "left_out": left_out})


if __name__ == "__main__":
    main()
