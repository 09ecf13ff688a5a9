"""GPU tables of docs/speed.md, made from the results of check.py: fastmlp's engines, and PyTorch on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

NONE_YET = "Not run on a GPU yet, so there are no results; `python -m benchmarks.gpu.check` produces them."
# Display names of backends.
RIVALS = {
    "torch eager": "PyTorch eager",
    "torch CUDA graph": "PyTorch, CUDA graph",
    "torch.compile reduce-overhead": "torch.compile",
}

Row = dict[str, Any]


def gpu_table(result: dict[str, Any] | None) -> str:
    """Return the text of all tables; `result` is None if the check has not been run."""
    if result is None:
        return NONE_YET
    parts = [
        engines_table(result["rows"]),
        variants_table(result.get("variants", [])),
        contests_table(result.get("contests", [])),
        accuracy_text(result.get("accuracy", [])),
        environment_text(result),
    ]
    return "\n\n".join(filter(None, parts))


def environment_text(result: dict[str, Any]) -> str:
    """Describe the GPU, the machine, the package versions and how the times were measured, and list the failed stages."""
    device, machine, versions = result["device"], result["machine"], result["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("numpy", "numba", "torch") if versions.get(name))
    settings = result["settings"]
    text = (
        f"{device['card']} (compute capability {device['capability']}, {device['multiprocessors']} multiprocessors, "
        f"CUDA {device['cuda']}) and {machine['cores']} cores ({machine['processor']}), {machine['date']}, "
        f"Python {versions['python']}, {packages}; milliseconds per epoch of {settings['rows']:,} rows, median of "
        f"{settings['rounds']} rounds ({settings['device_rounds']} for 'CUDA alone'), one epoch of each engine per round."
    )
    failed = [stage["name"] for stage in result["stages"] if stage["state"] != "done"]
    return f"{text} Stages that failed: {'; '.join(failed)}." if failed else text


# ------------------------------------------------------------------------------------------------ tables


def table(rows: Sequence[Row], column_of: Callable[[Row], str], cell: Callable[[Row], str], *, first: str, end: Any) -> str:
    """Return a Markdown table with one line per network and batch size.

    column_of : function that returns the heading of the column in which a row of the results is shown
    cell : function that returns the text of a row of the results
    first : heading of the first column
    end : heading of the last column, and a function that returns its cell from the rows of a line
    """
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


def ratio_text(row: Row | None) -> str:
    """Format the ratio of a row's time to the CUDA engine's time in the same rounds, with its range."""
    if row is None or row["over_cuda"] is None:
        return "–"
    return "{median:.2f} ({least:.2f} to {most:.2f})".format(**row["over_cuda"])


def fastest_other(found: dict[str, Row]) -> str:
    """Return `ratio_text` of the fastest engine other than the CUDA engine."""
    others = [row for row in found.values() if row["backend"] != "cuda"]
    return ratio_text(min(others, key=lambda row: row["seconds_per_epoch"], default=None))


def engine_of(row: Row) -> str:
    """Return the heading of the column that shows a row of the results."""
    if row["backend"] == "numba":
        return f"Numba, {row['threads']} thread{'s' * (row['threads'] > 1)}"
    return {"numpy": "NumPy", "cuda": "CUDA", **RIVALS}[row["backend"]]


def engines_table(rows: Sequence[Row]) -> str:
    """Return the table of fastmlp's engines: NumPy first, CUDA last."""
    order = ("numpy", "numba", "cuda")
    cases = list(dict.fromkeys((row["network"], row["batch"]) for row in rows))

    def sort_key(row: Row) -> tuple[int, int, int]:
        return cases.index((row["network"], row["batch"])), order.index(row["backend"]), row["threads"] or 0

    end = ("fastest CPU / CUDA (range)", fastest_other)
    return table(sorted(rows, key=sort_key), engine_of, milliseconds, first="network, batch", end=end)


def variants_table(rows: Sequence[Row]) -> str:
    """Return the table of the CUDA engine with several optimizers and precisions; the last column is the time on the GPU."""
    if not rows:
        return ""

    def step(found: dict[str, Row]) -> str:
        plain = found.get("sgd, float32")
        return "–" if plain is None else f"{plain['device_microseconds_per_step']:.1f}"

    def variant_of(row: Row) -> str:
        return f"{row['optimizer']}, {row['precision']}" + ", uint8 rows" * row["pixels"]

    end = ("us per step on the device, sgd, float32", step)
    return table(rows, variant_of, milliseconds, first="CUDA alone: network, batch", end=end)


def contests_table(rows: Sequence[Row]) -> str:
    """Return the table of PyTorch on the GPU in milliseconds.

    The last column is the ratio of the fastest time to the CUDA engine's time.
    """
    rivals = [row for row in rows if row["backend"] != "cuda"]
    if not rivals:
        return ""
    end = ("fastest / CUDA (range)", fastest_other)
    return table(rivals, engine_of, milliseconds, first="PyTorch on the GPU: network, batch", end=end)


def accuracy_text(rows: Sequence[Row]) -> str:
    """Describe how the published recipe was trained with the CUDA engine and with a CPU engine."""
    return " ".join(
        f"{row['epochs']} epochs of {row['network']} on MNIST ({row['recipe']}) by {row['engine']}: {row['seconds']:.1f} s, "
        f"test accuracy {row['test_accuracy']:.2%}."
        for row in rows
    )
