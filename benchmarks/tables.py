"""Write README's tables from the committed JSON files: python -m benchmarks.tables [--check]

A table stands between `<!-- table NAME -->` and `<!-- end -->`. With --check nothing is written, and a table that differs
from its JSON is an error; the tests run it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def about(machine: dict[str, Any]) -> str:
    return (
        f"{machine['date']}, {machine['cores']} cores ({machine['processor']}), Python {machine['python']}, "
        f"NumPy {machine['numpy']}, Numba {machine['numba']}"
    )


def epochs_table(result: dict[str, Any]) -> str:
    lines = [
        "| network, batch | NumPy, s (threads) | Numba, s | GFLOP/s | times faster (range over the rounds) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        seconds, ratio = row["seconds"], row["ratio"]
        lines.append(
            f"| {row['network']}, {row['batch']} | {seconds['numpy']:.3f} ({row['numpy_threads']}) | {seconds['numba']:.3f} "
            f"| {row['gflops']['numba']:.0f} | {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f}) |"
        )
    machine = result["machine"]
    threads = f"Numba on {machine['cores']} threads, NumPy on its better number"
    note = f"{about(machine)}; median of {result['rounds']} rounds; {threads}."
    return "\n".join([*lines, "", note])


def accuracy_table(result: dict[str, Any]) -> str:
    lines = [
        "| command | published | ours | epochs (best) | training, s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        published = f"{row['published']:.2%}" if row["published"] else "–"
        lines.append(
            f"| `{row['command']}` | {published} | {row['test_accuracy']:.2%} | {row['epochs']} ({row['best_epoch']}) "
            f"| {row['training_seconds']:.1f} |"
        )
    note = f"{about(result['machine'])}; one run each, seed 0. Training is the median epoch times the epochs."
    return "\n".join([*lines, "", note])


def twins_table(result: dict[str, Any]) -> str:
    lines = [
        "| network, dropout | trained by | best epoch | validation loss | validation | test |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for twin in result["rows"]:
        for name in ("ours", "pytorch"):
            row = twin[name]
            lines.append(
                f"| {twin['network']}, {twin['dropout'][0]:g} | {name} | {row['epoch']} | {row['validation_loss']:.4f} "
                f"| {row['validation_accuracy']:.2%} | {row['test_accuracy']:.2%} |"
            )
    return "\n".join([*lines, "", f"{about(result['machine'])}, PyTorch {result['torch']}; one run each, seed 0."])


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "epochs": epochs_table,
    "accuracy": accuracy_table,
    "twins": twins_table,
}


def filled(text: str) -> str:
    """The text with each table made anew from its JSON file."""
    for name, make in TABLES.items():
        table = make(json.loads((RESULTS / f"{name}.json").read_text()))
        pattern = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = pattern.subn(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", text)
        if count != 1:
            sys.exit(f"README must have one table {name!r}, but has {count}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    readme = ROOT / "README.md"
    before = readme.read_text()
    after = filled(before)
    if options.check and after != before:
        sys.exit("README's tables differ from benchmarks/results; run python -m benchmarks.tables")
    if not options.check:
        readme.write_text(after)


if __name__ == "__main__":
    main()
