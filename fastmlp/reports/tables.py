"""Tables that compare runs, as text, Markdown, LaTeX and CSV.

`metrics_table` and `settings_table` create tables from the result of `experiments.comparison.compare_runs`, and
`comparison_text` formats them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastmlp.errors import printable
from fastmlp.reports.text import bold, csv_text

Comparison = Mapping[str, Any]  # result of `experiments.comparison.compare_runs`

STYLES = ("text", "markdown", "latex", "csv")
NOTHING = "–"  # shown for a value that a run does not have
# For each metric: its name in tables, and the format of its values.
METRIC_FORMATS = {
    "accuracy": ("accuracy", ".4f"),
    "loss": ("loss", ".4g"),
    "macro_f1": ("macro F1", ".4f"),
    "r2": ("R²", ".4f"),
    "mae": ("MAE", ".4g"),
    "rmse": ("RMSE", ".4g"),
}
SPLITS = {"validation": "val"}  # short names of splits in headings
LATEX_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "²": r"$^2$",
    "–": r"\textendash{}",
    "`": "{`}",  # ?` and !` are ligatures, which are typeset as an inverted question mark or exclamation mark
    "[": "{[}",  # at the start of a row, it would start an optional argument of \\ or \midrule
    "*": "{*}",  # at the start of a row, \\ would be read as \\*
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


class Cell(NamedTuple):
    """Text of a cell, and whether it is the best value of its column."""

    text: str
    best: bool = False


class Table(NamedTuple):
    """A table: the headings, whether each column is aligned right, and the rows."""

    headings: Sequence[str]
    right: Sequence[bool]
    rows: Sequence[Sequence[Cell]]


def comparison_text(result: Comparison, style: str, *, color: bool = False) -> str:
    """Return the tables of a comparison, without a final newline.

    Parameters
    ----------
    result : result of `compare_runs`
    style : "text": aligned columns, where an asterisk marks the best values; "markdown"; "latex": for the package booktabs; or
        "csv": one row per run, with unrounded numbers and the settings that differ as additional columns
    color : whether the best values in a text are also bold, by means of terminal escape codes
    """
    if style == "csv":
        return comparison_csv(result)
    metrics, settings = metrics_table(result), settings_table(result)
    tables = [metrics, settings] if settings.rows else [metrics]
    if style == "markdown":
        return "\n\n".join(map(markdown_text, tables))
    if style == "latex":
        return "\n\n".join(["% needs \\usepackage{booktabs}", *map(latex_text, tables)])
    texts = [aligned_text(table, color) for table in tables]
    if any(cell.best for row in metrics.rows for cell in row):
        texts[0] += "\n* best value"
    return "\n\n".join(texts)


# ------------------------------------------------------------------------------------------------ tables


def metrics_table(result: Comparison) -> Table:
    """Return the table of the runs: one row per run, with its metrics, its size and its duration."""
    split = SPLITS.get(result["split"], result["split"])
    names = [f"{split} {METRIC_FORMATS[metric][0]}" for metric in result["metrics"]]
    headings = ["run", "data set", "network", "parameters", *names, "best epoch", "epochs", "seconds", "engine"]
    right = [False, False, False, *[True] * (len(headings) - 4), False]
    return Table(headings, right, [[*run_cells(run, result)] for run in result["runs"]])


def run_cells(run: Mapping[str, Any], result: Comparison) -> list[Cell]:
    """Return the row of a run in `metrics_table`."""
    metrics = [Cell(metric_text(run, name), run["name"] in result["best"][name]) for name in result["metrics"]]
    epochs = count_text(run["epochs"])
    if not run["finished"]:
        epochs += f" of {run['max_epochs']}"
    texts = [run["name"], run["data"], run["network"] or NOTHING, count_text(run["parameters"])]
    ends = [count_text(run["best_epoch"] or None), epochs, seconds_text(run["seconds"]), run["backend"] or NOTHING]
    return [*map(Cell, texts), *metrics, *map(Cell, ends)]


def metric_text(run: Mapping[str, Any], name: str) -> str:
    """Return the value of a metric, with its standard deviation if the run has several seeds.

    >>> metric_text({"metrics": {"accuracy": 0.98}, "std": {"accuracy": 0.00234}}, "accuracy")
    '0.9800 ± 0.0023'
    """
    if (value := run["metrics"][name]) is None:
        return NOTHING
    text = format(value, METRIC_FORMATS[name][1])
    return text if run["std"] is None else f"{text} ± {run['std'][name]:.2g}"


def count_text(value: float | None) -> str:
    """Return a whole number, or the mean of whole numbers, as text.

    >>> count_text(101770), count_text(12.333), count_text(None)
    ('101,770', '12.3', '–')
    """
    return NOTHING if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def seconds_text(value: float | None) -> str:
    """Return a duration as text: three significant digits, or whole seconds.

    >>> seconds_text(0.12345), seconds_text(1234.5), seconds_text(None)
    ('0.123', '1,234', '–')
    """
    return NOTHING if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def settings_table(result: Comparison) -> Table:
    """Return the table of the settings that differ: one row per setting, and one column per run."""
    headings = ["setting", *(run["name"] for run in result["runs"])]
    rows = [[Cell(name), *(Cell(setting_text(value)) for value in values)] for name, values in result["settings"].items()]
    return Table(headings, [False] * len(headings), rows)


def setting_text(value: Any) -> str:
    """Return the value of a setting as on the command line.

    >>> setting_text([400, 100]), setting_text([]), setting_text(True), setting_text(0.001), setting_text(None)
    ('400,100', 'none', 'true', '0.001', '–')
    """
    if isinstance(value, list):
        return ",".join(map(setting_text, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return NOTHING if value is None else str(value)


# ------------------------------------------------------------------------------------------------ formats


def aligned_text(table: Table, color: bool = False) -> str:
    """Return a table as text with aligned columns; best values are marked by an asterisk.

    >>> print(aligned_text(Table(["run", "loss"], [False, True], [[Cell("a"), Cell("0.5", True)], [Cell("b"), Cell("12")]])))
    run  loss
    a     0.5*
    b      12
    """
    headings, rows = [printable(text) for text in table.headings], []
    for row in table.rows:
        rows.append([Cell(printable(cell.text), cell.best) for cell in row])
    marked = [any(row[column].best for row in rows) for column in range(len(headings))]
    lines = []
    for row in padded([[*map(Cell, headings)], *rows], table.right):
        # If a column has asterisks, the other cells get a space instead, so that its numbers are aligned.
        cells = [f"{bold(text, color)}*" if best else text + " " * mark for (text, best), mark in zip(row, marked, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def padded(rows: Sequence[Sequence[Cell]], right: Sequence[bool]) -> list[list[Cell]]:
    """Return the rows with the texts of each column padded to the same number of terminal columns."""
    from rich.cells import cell_len

    widths = [max(cell_len(row[column].text) for row in rows) for column in range(len(right))]
    found = []
    for row in rows:
        spaces = [" " * (width - cell_len(cell.text)) for cell, width in zip(row, widths, strict=True)]
        parts = zip(row, spaces, right, strict=True)
        found.append([Cell(space + text if to_right else text + space, best) for (text, best), space, to_right in parts])
    return found


def markdown_text(table: Table) -> str:
    """Return a table in GitHub Flavored Markdown; best values are bold.

    >>> print(markdown_text(Table(["run", "loss"], [False, True], [[Cell("a|b"), Cell("0.5", True)], [Cell("c"), Cell("12")]])))
    | run  |    loss |
    | ---- | ------: |
    | a\\|b | **0.5** |
    | c    |      12 |
    """
    rows = [[*map(Cell, map(escape_markdown, table.headings))]]
    for row in table.rows:
        rows.append([Cell(f"**{escape_markdown(text)}**" if best else escape_markdown(text)) for text, best in row])
    rule = [Cell("-" * (3 - right) + ":" * right) for right in table.right]
    rows = padded([rows[0], rule, *rows[1:]], table.right)
    rows[1] = [Cell(text.replace(" ", "-")) for text, _ in rows[1]]
    lines = [f"| {' | '.join(cell.text for cell in row)} |" for row in rows]
    return "\n".join(lines)


def escape_markdown(text: str) -> str:
    r"""Return a text with the special characters of Markdown escaped, except underscores inside words, which are not special.

    >>> print(escape_markdown("my_run _x_ a|b *c*"))
    my_run \_x\_ a\|b \*c\*
    """
    text = re.sub(r"([\\`*\[\]<>|~$&])", r"\\\1", printable(text))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def latex_text(table: Table) -> str:
    r"""Return a table in LaTeX, with the rules of the package booktabs; best values are bold.

    >>> print(latex_text(Table(["run", "loss"], [False, True], [[Cell("a_b"), Cell("0.5", True)]])))
    \begin{tabular}{lr}
    \toprule
    run & loss \\
    \midrule
    a\_b & \textbf{0.5} \\
    \bottomrule
    \end{tabular}
    """
    columns = "".join("r" if right else "l" for right in table.right)
    lines = []
    for row in ([*map(Cell, table.headings)], *table.rows):
        cells = [f"\\textbf{{{escape_latex(text)}}}" if best else escape_latex(text) for text, best in row]
        lines.append(f"{' & '.join(cells)} \\\\")
    begin, end = (f"\\begin{{tabular}}{{{columns}}}", "\\toprule"), ("\\bottomrule", "\\end{tabular}")
    return "\n".join([*begin, lines[0], "\\midrule", *lines[1:], *end])


def escape_latex(text: str) -> str:
    r"""Return a text with the special characters of LaTeX escaped.

    >>> print(escape_latex("50% of a_b"))
    50\% of a\_b
    """
    text = "".join(LATEX_CHARACTERS.get(character, character) for character in printable(text))
    return re.sub("-(?=-)", "-{}", text)  # LaTeX typesets two hyphens as a dash


def comparison_csv(result: Comparison) -> str:
    """Return a comparison as CSV with a header line, for other programs: numbers are not rounded, missing values are empty."""
    deviations = any(run["std"] is not None for run in result["runs"])
    header = ["run", "folder", "data", "network", "parameters", "split"]
    for name in result["metrics"]:
        header += [name, f"{name}_std"] if deviations else [name]
    header += ["best_epoch", "epochs", "seconds", "backend", "finished", *(f"settings.{name}" for name in result["settings"])]
    rows = []
    for index, run in enumerate(result["runs"]):
        row = [run[key] for key in ("name", "folder", "data", "network", "parameters")] + [result["split"]]
        for name in result["metrics"]:
            row += [run["metrics"][name], (run["std"] or {}).get(name)] if deviations else [run["metrics"][name]]
        row += [run[key] for key in ("best_epoch", "epochs", "seconds", "backend")] + [setting_text(run["finished"])]
        values = [column[index] for column in result["settings"].values()]
        rows.append([*row, *(None if value is None else setting_text(value) for value in values)])
    return csv_text([header, *rows]).removesuffix("\n")
