"""README's table of a machine with a GPU, from what check.py wrote: engines beside each other, and PyTorch on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

NONE_YET = "Not run on a GPU yet, so there are no results; `python -m benchmarks.gpu.check` produces them."
# Backends of contests as people write them.
RIVALS = {
    "torch eager": "PyTorch eager",
    "torch CUDA graph": "PyTorch, CUDA graph",
    "torch.compile reduce-overhead": "torch.compile",
}

Row = dict[str, Any]


def gpu_table(result: dict[str, Any] | None) -> str:
    """All that README shows of a check; None: there has been none."""
    if result is None:
        return NONE_YET
    parts = [
        engines_table(result["rows"]),
        variants_table(result.get("variants", [])),
        contests_table(result.get("contests", [])),
        accuracy_text(result.get("accuracy", [])),
        where(result),
    ]
    return "\n\n".join(filter(None, parts))


def where(result: dict[str, Any]) -> str:
    """Card, machine, versions, what the figures are, and which stages failed."""
    device, machine, versions = result["device"], result["machine"], result["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("numpy", "numba", "torch") if versions.get(name))
    settings = result["settings"]
    text = (
        f"{device['card']} (compute capability {device['capability']}, {device['multiprocessors']} multiprocessors, "
        f"CUDA {device['cuda']}) and {machine['cores']} cores ({machine['processor']}), {machine['date']}, "
        f"Python {versions['python']}, {packages}; milliseconds per epoch of {settings['rows']:,} rows, median of "
        f"{settings['rounds']} rounds ({settings['device_rounds']} for 'CUDA alone'), engines in turn."
    )
    failed = [stage["name"] for stage in result["stages"] if stage["state"] != "done"]
    return f"{text} Stages that failed: {'; '.join(failed)}." if failed else text


# ------------------------------------------------------------------------------------------------ tables


def table(rows: Sequence[Row], column_of: Callable[[Row], str], cell: Callable[[Row], str], *, first: str, end: Any) -> str:
    """A line for each network and batch, a column for each kind of row; `end` : heading and maker of the last cell."""
    columns = list(dict.fromkeys(map(column_of, rows)))
    heading, last = end
    heads = [first, *columns, heading]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for network, batch in dict.fromkeys((row["network"], row["batch"]) for row in rows):
        found = {column_of(row): row for row in rows if (row["network"], row["batch"]) == (network, batch)}
        cells = [cell(found[name]) if name in found else "–" for name in columns]
        lines.append(f"| {network}, {batch} | {' | '.join(cells)} | {last(found)} |")
    return "\n".join(lines)


def milliseconds(row: Row) -> str:
    return f"{1000 * row['seconds_per_epoch']:.2f}"


def times(row: Row | None) -> str:
    """How many times as long a row takes as the CUDA engine in the same rounds, with the range."""
    if row is None or row["over_cuda"] is None:
        return "–"
    return "{median:.2f} ({least:.2f} to {most:.2f})".format(**row["over_cuda"])


def fastest_but_ours(found: dict[str, Row]) -> str:
    """`times` of the fastest that is not the CUDA engine."""
    others = [row for row in found.values() if row["backend"] != "cuda"]
    return times(min(others, key=lambda row: row["seconds_per_epoch"], default=None))


def engine_of(row: Row) -> str:
    """Heading of a row's column."""
    if row["backend"] == "numba":
        return f"Numba, {row['threads']} thread{'s' * (row['threads'] > 1)}"
    return {"numpy": "NumPy", "cuda": "CUDA", **RIVALS}[row["backend"]]


def engines_table(rows: Sequence[Row]) -> str:
    """Our engines beside each other: NumPy first, CUDA last."""
    order = ("numpy", "numba", "cuda")
    cases = list(dict.fromkeys((row["network"], row["batch"]) for row in rows))

    def place(row: Row) -> tuple[int, int, int]:
        return cases.index((row["network"], row["batch"])), order.index(row["backend"]), row["threads"] or 0

    end = ("fastest CPU / CUDA (range)", fastest_but_ours)
    return table(sorted(rows, key=place), engine_of, milliseconds, first="network, batch", end=end)


def variants_table(rows: Sequence[Row]) -> str:
    """The CUDA engine by itself, in all precisions; the last column is of the device alone."""
    if not rows:
        return ""

    def step(found: dict[str, Row]) -> str:
        plain = found.get("sgd, float32")
        return "–" if plain is None else f"{plain['device_microseconds_per_step']:.1f}"

    def variant_of(row: Row) -> str:
        return f"{row['optimizer']}, {row['precision']}" + ", uint8 rows" * row["pixels"]

    end = ("us a step on the device, sgd, float32", step)
    return table(rows, variant_of, milliseconds, first="CUDA alone: network, batch", end=end)


def contests_table(rows: Sequence[Row]) -> str:
    """PyTorch on the device in milliseconds; last, the fastest as a multiple of the CUDA engine, with the range."""
    rivals = [row for row in rows if row["backend"] != "cuda"]
    if not rivals:
        return ""
    end = ("fastest / CUDA (range)", fastest_but_ours)
    return table(rivals, engine_of, milliseconds, first="PyTorch on the GPU: network, batch", end=end)


def accuracy_text(rows: Sequence[Row]) -> str:
    """The published training on both engines."""
    return " ".join(
        f"{row['epochs']} epochs of {row['network']} on MNIST ({row['recipe']}) by {row['engine']}: {row['seconds']:.1f} s, "
        f"test accuracy {row['test_accuracy']:.2%}."
        for row in rows
    )
