"""Regenerate the tables of the documentation from the committed JSON files: python -m benchmarks.tables [--check]

A table is the text between `<!-- table NAME -->` and `<!-- end -->`. With --check, nothing is written, and the script exits
with an error if a table differs from its JSON file. The tests check this, too.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import gpu_table
from fastmlp.bench.estimators import duration
from fastmlp.bench.rivals import NAMES, OURS
from fastmlp.experiments.recipes.compare import shown
from fastmlp.experiments.recipes.recipe import all_recipes

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"

# Display names of backends and packages.
LIBRARIES = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "torch-compile": "torch.compile",
    "sklearn": "scikit-learn",
    "jax": "JAX",
}
RIVAL_PACKAGES = ("torch", "scikit-learn", "jax")


def about(machine: dict[str, Any]) -> str:
    return (
        f"{machine['date']}, {machine['cores']} cores ({machine['processor']}), Python {machine['python']}, "
        f"NumPy {machine['numpy']}, Numba {machine['numba']}"
    )


def where(result: dict[str, Any]) -> str:
    """Describe the machine of the first row and list the PyTorch versions of all rows; rows may be measured separately."""
    torch = ", ".join(sorted({row["machine"]["torch"] for row in result["rows"]}))
    return f"{about(result['rows'][0]['machine'])}, PyTorch {torch}"


def epochs_table(result: dict[str, Any]) -> str:
    """Format the times per epoch, and the time of the fastest other library relative to fastmlp's.

    Other libraries are shown with their faster number of threads.
    """
    rows, verdicts = result["rows"], result["verdicts"]
    ours_last = sorted(rows, key=lambda row: (row["backend"] in OURS, NAMES.index(row["backend"])))
    columns = list(dict.fromkeys(map(column_of, ours_last)))
    heads = ["network, batch", *columns, "GFLOP/s", "of the ceiling", "fastest other / ours (range)"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for verdict in verdicts:
        of_case = [row for row in rows if (row["network"], row["batch"]) == (verdict["network"], verdict["batch"])]
        lines.append(f"| {' | '.join(epochs_cells(verdict, of_case, columns))} |")
    lost = [verdict for verdict in verdicts if verdict["ratio"] and verdict["ratio"]["median"] < 1]
    losses = [f"At {verdict['network']}, batch {verdict['batch']}, {verdict['text']}." for verdict in lost]
    counted = f"fastmlp is fastest in {len(verdicts) - len(lost)} of {len(verdicts)} rows."
    return "\n".join([*lines, "", " ".join([counted, *losses]), "", epochs_note(result)])


def column_of(row: dict[str, Any]) -> str:
    """Return the heading of the column that shows a row of the result."""
    if row["backend"] in OURS and row["threads"]:
        return f"fastmlp {row['backend']}, {row['threads']} thread{'s' * (row['threads'] > 1)}"
    return LIBRARIES.get(row["backend"], row["backend"])


def epochs_cells(verdict: dict[str, Any], rows: list[dict[str, Any]], columns: list[str]) -> list[str]:
    """Return the cells of one case; the number of threads of other libraries is in parentheses."""
    cells = dict.fromkeys(columns, "–")
    for row in rows:
        threads = "" if row["backend"] in OURS or row["threads"] is None else f" ({row['threads']})"
        cells[column_of(row)] = f"{row['seconds_per_epoch']:.3f}{threads}"
    ours = min((row for row in rows if row["backend"] in OURS), key=lambda row: row["seconds_per_epoch"], default=None)
    speed = ["–", "–"]
    if ours is not None:
        share = ours["ceiling_share"]
        speed = [f"{ours['gflops']:.0f}", "–" if share is None else f"{share:.0%}"]
    ratio = verdict["ratio"]
    gain = f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})" if ratio else "–"
    return [f"{verdict['network']}, {verdict['batch']}", *cells.values(), *speed, gain]


def epochs_note(result: dict[str, Any]) -> str:
    """Return the note below the table: date, machine, versions, and the meaning of the values."""
    ceilings = ", ".join(
        f"{one['gflops']:.0f} GFLOP/s and {one['triad']:.0f} GB/s on {one['threads']}" for one in result["ceiling"]
    )
    versions = [f"{LIBRARIES.get(name, name)} {text}" for name, text in result["versions"].items() if name in RIVAL_PACKAGES]
    return (
        f"{about(result['machine'] | result['versions'])}, {', '.join(versions)}; seconds, median of "
        f"{result['settings']['rounds']} rounds, other libraries with their better number of threads (in brackets). "
        f"Ceiling and triad: {ceilings} threads. The columns 'GFLOP/s' and 'of the ceiling' are for our fastest engine."
    )


def claims_table(result: dict[str, Any]) -> str:
    """Format the measured values with their limits."""
    lines = ["| measurement | value (range) | limit | met |", "| --- | --- | --- | --- |"]
    for name, row in result["claims"].items():
        value_range = f" ({row['least']:.3g} to {row['most']:.3g})" if "least" in row else ""
        limit = f"{'at least' if row.get('at_least') else 'at most'} {row['limit']:g} {row['unit']}"
        lines.append(f"| {name} | {row['value']:.3g}{value_range} | {limit} | {'yes' if row['met'] else '**no**'} |")
    note = f"{about(result['machine'] | result['versions'])}; {result['rounds']} rounds."
    return "\n".join([*lines, "", note])


def many_table(result: dict[str, Any]) -> str:
    """Format the parallel efficiency of training many models at once."""
    threads = result["threads"]
    lines = [
        f"| models, {threads} threads | sequential | parallel | parallel efficiency (range) |",
        "| --- " * 4 + "|",
    ]
    for row in result["rows"]:
        seconds = [f"{row[name]['median']:.2f} s" for name in ("alone_seconds", "together_seconds")]
        share = row["efficiency"]
        value_range = f"{share['median']:.0%} ({share['least']:.0%} to {share['most']:.0%})"
        lines.append(f"| {row['models']} x {row['case']} | {' | '.join(seconds)} | {value_range} |")
    machine = f"multiply-adds in registers: {result['machine_scaling']:.0%}"
    return "\n".join([*lines, "", f"{about(result['machine'])}; median of {result['rounds']} rounds; {machine}."])


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
    return "\n".join([*lines, "", f"{where(result)}; one run each, seed 0."])


SPLITS = ("train", "validation", "test")
RECIPE_HEADS = ("recipe", "network", *SPLITS, *(f"{split} loss" for split in SPLITS), "macro F1", "epochs (best)", "s")


def recipes_table(result: dict[str, Any]) -> str:
    """Format one row per network of each recipe: our figures, and in brackets their differences from the published ones."""
    lines = [f"| {' | '.join(RECIPE_HEADS)} |", "| --- " * len(RECIPE_HEADS) + "|"]
    for row in result["rows"]:
        for kind, name in (("cnn", row["title"]), ("mlp", "MLP on its features" if row["cnn"] else row["title"])):
            if row[kind]:
                lines.append(f"| {' | '.join([row['name'], name, *recipe_cells(row[kind])])} |")
    differences = (
        "In brackets: the difference from the published figure, in percentage points for accuracy and for macro F1, which is "
        "that of the validation split. The report of cs776 prints epochs: in its rows, accuracy and loss of the training and "
        "validation splits are those of the best epoch, or of epoch 10 for the CNNs; the training metrics are those during "
        "the epoch."
    )
    seconds = "Seconds were measured on a busy machine, several networks in parallel with one thread each."
    seeds = "One run each, seed 0, unless a mean and standard deviation over seeds are given."
    return "\n".join([*lines, "", f"{where(result)}. {seeds} {differences} {seconds}"])


def recipe_cells(network: dict[str, Any]) -> list[str]:
    """Return the cells of one network: accuracy and loss of the splits, macro F1, epochs and seconds."""
    accuracies, losses = ([figure_cell(network, split, metric) for split in SPLITS] for metric in ("accuracy", "loss"))
    published = {one["metric"]: one["published"] for one in network["figures"]}
    epochs = f"{network['epochs']} ({network['best_epoch']})"
    if "epochs" in published:
        epochs += f"; published {published['epochs']} ({published['best_epoch']})"
    return [*accuracies, *losses, figure_cell(network, "validation", "macro_f1"), epochs, f"{network['seconds']:.0f}"]


def figure_cell(network: dict[str, Any], split: str, metric: str) -> str:
    """Return our value of a metric of a split as text, with the difference from the published value if there is one."""
    of_split = (one for one in network["figures"] if (one["split"], one["metric"]) == (split, metric))
    figure = next(of_split, {"ours": network.get(split, {}).get(metric), "published": None})
    ours, published = figure["ours"], figure["published"]
    if ours is None:
        return "–"
    spread = ""
    if metric == "accuracy" and split in network.get("seeds", {}):
        over = network["seeds"][split]
        ours, spread = over["mean"], f" ± {100 * over['deviation']:.2f} ({len(over['values'])} seeds)"
    difference = "" if published is None else f" ({shown(ours - published, metric, '+')})"
    return shown(ours, metric) + spread + difference


def pooling_table(result: dict[str, Any]) -> str:
    """Format the CNNs of report cs776 with the columns of its own table."""
    heads = ("recipe", "pooling", "kernel", "filters", "initialization", "MLP hidden", "CNN alone", "CNN features, MLP")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in result["rows"]:
        recipe = all_recipes()[row["name"]]
        if row["name"].startswith("cs776-cnn-"):
            assert recipe.extract is not None
            assert recipe.train is not None
            cnn, kernel = recipe.extract, recipe.extract["kernel"][0]
            cells = [cnn["pool"][0], f"{kernel}x{kernel}", "-".join(map(str, cnn["filters"])), cnn.get("init", "random")]
            hidden = "-".join(map(str, recipe.train["hidden"]))
            accuracies = [figure_cell(row[kind], "test", "accuracy") for kind in ("cnn", "mlp")]
            lines.append(f"| {' | '.join([row['name'], *cells, hidden, *accuracies])} |")
    return "\n".join([*lines, "", "Test accuracy in percent, and in brackets the difference from the published one."])


def estimators_table(result: dict[str, Any]) -> str:
    """Format the times of the estimators of both libraries, and their ratio."""
    lines = ["| case | fastmlp | scikit-learn | scikit-learn / fastmlp (range) |", "| --- | --- | --- | --- |"]
    for row in result["rows"]:
        times = [duration(row["seconds"][name]) for name in ("fastmlp", "scikit-learn")]
        spread = "{median:.2f} ({min:.2f} to {max:.2f})".format(**row["ratio"])
        lines.append(f"| {' | '.join([row['case'], *times, spread])} |")
    faster = sum(row["ratio"]["median"] > 1 for row in result["rows"])
    counted = f"fastmlp is faster in {faster} of {len(result['rows'])} rows."
    where, rounds = about(result["machine"] | result["versions"]), [row["rounds"] for row in result["rows"]]
    versions = f"scikit-learn {result['versions']['scikit-learn']}; median of {min(rounds)} to {max(rounds)} rounds"
    return "\n".join([*lines, "", counted, "", f"{where}, {versions}."])


TABLES: dict[str, Callable[[Any], str]] = {
    "epochs": epochs_table,
    "gpu": gpu_table,
    "claims": claims_table,
    "start": claims_table,
    "many": many_table,
    "twins": twins_table,
    "recipes": recipes_table,
    "pooling": pooling_table,
    "estimators": estimators_table,
}

FILES = {"pooling": "recipes"}  # tables whose JSON file has another name

# For each page, the folder of its JSON files and the names of its tables.
PAGES = {
    ROOT / "docs" / "speed.md": (RESULTS, ("epochs", "gpu", "claims", "many", "start")),
    ROOT / "docs" / "estimators.md": (RESULTS, ("estimators",)),
    ROOT / "docs" / "results.md": (RESULTS, ("recipes", "pooling", "twins")),
    RESULTS / "znver3" / "README.md": (RESULTS / "znver3", ("epochs", "claims", "start", "many")),
}


def filled(text: str, folder: Path = RESULTS, names: Sequence[str] = tuple(TABLES)) -> str:
    """Return the text of a page with each table regenerated from its JSON file."""
    for name in names:
        file = folder / f"{FILES.get(name, name)}.json"
        known = None if name == "gpu" and not file.exists() else json.loads(file.read_text())  # GPU results are optional
        table = TABLES[name](known)
        pattern = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = pattern.subn(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", text)
        if count != 1:
            sys.exit(f"the page must have exactly one table {name!r}, but it has {count}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for page, (folder, names) in PAGES.items():
        before = page.read_text()
        after = filled(before, folder, names)
        if options.check and after != before:
            sys.exit(f"the tables of {page} differ from benchmarks/results; run python -m benchmarks.tables")
        if not options.check:
            page.write_text(after)


if __name__ == "__main__":
    main()
