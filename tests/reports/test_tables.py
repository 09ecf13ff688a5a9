"""Tests of the tables that compare runs: aligned text, Markdown, LaTeX and CSV, also with special characters in names."""

from __future__ import annotations

import csv
import html
import io
import re
from typing import Any

import pytest
from markdown_it import MarkdownIt
from rich.cells import cell_len

from fastmlp.reports.tables import STYLES, Cell, Table, comparison_text, escape_latex, escape_markdown, markdown_text

NAMES = [
    "a|b",
    "50% & more",
    "_private_",
    "snake_case_name",
    "__dunder__",
    "*bold* **bolder**",
    "`code` \\ back",
    "<b>tag</b> &amp;",
    "[link](x) ![y](z)",
    "~~gone~~ $x^2$ #1",
    "{brace} ~ ^ '\"",
    "a--b---c",
    "数据 ü",
]


def make_run(name: str, **changes: Any) -> dict[str, Any]:
    run = {
        "name": name,
        "folder": f"runs/{name}",
        "data": "digits",
        "network": "784x128x10",
        "parameters": 101_770,
        "metrics": {"accuracy": 0.98051, "loss": 0.074591, "macro_f1": 0.98},
        "std": None,
        "best_epoch": 22,
        "epochs": 32,
        "max_epochs": 50,
        "seconds": 1.234567,
        "backend": "numba",
        "finished": True,
    }
    return run | changes


def make_result(*runs: dict[str, Any], settings: dict[str, Any] | None = None, best: dict[str, Any] | None = None) -> Any:
    metrics = list(runs[0]["metrics"])
    best = {name: [] for name in metrics} | (best or {})
    return {"split": "test", "metrics": metrics, "runs": list(runs), "best": best, "settings": settings or {}}


SWEEP = make_run(
    "seeds",
    metrics={"accuracy": 0.975, "loss": 0.2, "macro_f1": None},
    std={"accuracy": 0.00812, "loss": 0.01},
    best_epoch=12.25,
    epochs=1234.5,
    seconds=1234.5,
)
KILLED = make_run(
    "killed",
    metrics=dict.fromkeys(("accuracy", "loss", "macro_f1")),
    network=None,
    parameters=None,
    best_epoch=None,
    epochs=3,
    seconds=None,
    backend=None,
    finished=False,
)
RESULT = make_result(
    make_run("a"),
    SWEEP,
    KILLED,
    settings={"hidden": [[400, 100], [], [8]], "lr": [0.001, 1e-05, None], "stratify": [True, False, True]},
    best={"accuracy": ["a"], "loss": ["a"]},
)

TEXT = """\
run     data set  network     parameters    test accuracy    test loss   test macro F1  best epoch   epochs  seconds  engine
a       digits    784x128x10     101,770           0.9805*     0.07459*         0.9800          22       32     1.23  numba
seeds   digits    784x128x10     101,770  0.9750 ± 0.0081   0.2 ± 0.01               –        12.2  1,234.5    1,234  numba
killed  digits    –                    –                –            –               –           –  3 of 50        –  –
* best value

setting   a        seeds  killed
hidden    400,100  none   8
lr        0.001    1e-05  –
stratify  true     false  true"""


def test_text_is_aligned_and_the_best_values_are_marked() -> None:
    assert comparison_text(RESULT, "text") == TEXT


def test_best_values_are_also_bold_on_a_terminal() -> None:
    bold = comparison_text(RESULT, "text", color=True)
    assert re.findall(r"\x1b\[1m *([^\x1b]*)\x1b\[0m\*", bold) == ["0.9805", "0.07459"]
    assert re.sub(r"\x1b\[[0-9]+m", "", bold) == TEXT


def test_wide_and_unprintable_characters() -> None:
    result = make_result(make_run("数据"), make_run("b\x1b[2J\n"), settings={"data": ["x\r", "y"]})
    lines = comparison_text(result, "text").splitlines()
    assert [line.split("  ")[0] for line in lines[1:3]] == ["数据", r"b\x1b[2J\n"]
    assert len({cell_len(line.partition("digits")[0]) for line in lines[1:3]}) == 1
    assert lines[5].split() == ["data", r"x\r", "y"]
    for style in STYLES:
        assert all(line.isprintable() for line in comparison_text(result, style).split("\n"))


def test_a_single_run_has_neither_marks_nor_a_table_of_settings() -> None:
    assert len(comparison_text(make_result(make_run("a")), "text").splitlines()) == 2
    assert comparison_text(make_result(make_run("a")), "latex").count(r"\begin{tabular}") == 1
    assert "setting" not in comparison_text(make_result(make_run("a")), "markdown")


def test_the_validation_split_is_abbreviated_in_headings() -> None:
    result = make_result(make_run("a")) | {"split": "validation"}
    assert "val accuracy" in comparison_text(result, "text")


# ------------------------------------------------------------------------------------------------ Markdown


def html_cells(text: str) -> list[list[str]]:
    """Return the content of the cells of the Markdown tables in a text, as GitHub renders them."""
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    rows = re.findall(r"<tr>(.*?)</tr>", rendered, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


def test_markdown() -> None:
    text = comparison_text(RESULT, "markdown")
    first, second = text.split("\n\n")
    assert len({len(line) for line in first.splitlines()}) == 1
    assert first.splitlines()[1].startswith("| ------ | -------- | ---------- | ---------: | ")
    rows = html_cells(text)
    assert rows[1][4:7] == ["<strong>0.9805</strong>", "<strong>0.07459</strong>", "0.9800"]
    assert rows[3][0] == "killed"
    assert rows[4] == ["setting", "a", "seeds", "killed"]
    assert len(second.splitlines()) == 5


@pytest.mark.parametrize("name", NAMES)
def test_names_in_markdown_are_shown_as_they_are(name: str) -> None:
    table = Table(["run", name], [False, True], [[Cell(name), Cell(name, best=True)]])
    heading, row = html_cells(markdown_text(table))
    assert [html.unescape(cell) for cell in heading] == ["run", name]
    assert row[1] == f"<strong>{row[0]}</strong>"
    assert "<" not in row[0]
    assert html.unescape(row[0]) == name


def test_underscores_inside_words_and_dollars() -> None:
    assert escape_markdown("snake_case_name") == "snake_case_name"
    assert escape_markdown("$x$") == r"\$x\$"  # GitHub would show a formula


# ------------------------------------------------------------------------------------------------ LaTeX


def test_latex() -> None:
    text = comparison_text(RESULT, "latex")
    lines = text.splitlines()
    assert lines[0] == r"% needs \usepackage{booktabs}"
    assert lines[2:6] == [
        r"\begin{tabular}{lllrrrrrrrl}",
        r"\toprule",
        r"run & data set & network & parameters & test accuracy & test loss & test macro F1 & best epoch & epochs & seconds"
        r" & engine \\",
        r"\midrule",
    ]
    assert lines[6] == (
        r"a & digits & 784x128x10 & 101,770 & \textbf{0.9805} & \textbf{0.07459} & 0.9800 & 22 & 32 & 1.23 & numba \\"
    )
    assert r"0.9750 $\pm$ 0.0081 & 0.2 $\pm$ 0.01 & \textendash{} &" in lines[7]
    assert text.count(r"\bottomrule") == text.count(r"\end{tabular}") == 2
    assert all(line.count(" & ") == 10 for line in (lines[4], *lines[6:9]))


LATEX = {
    "50% & more_or #1 $x$": r"50\% \& more\_or \#1 \$x\$",
    "{a} \\ b": r"\{a\} \textbackslash{} b",
    "a ~ b ^ c": r"a \textasciitilde{} b \textasciicircum{} c",
    "<a|b>": r"\textless{}a\textbar{}b\textgreater{}",
    "a--b---c-d": "a-{}-b-{}-{}-c-d",
    "[a] *b": "{[}a] {*}b",
    "?`!`": "?{`}!{`}",
    "R² ± –": r"R$^2$ $\pm$ \textendash{}",
    "a\nb": r"a\textbackslash{}nb",
}


@pytest.mark.parametrize("name", LATEX)
def test_latex_is_escaped(name: str) -> None:
    assert escape_latex(name) == LATEX[name]


# ------------------------------------------------------------------------------------------------ CSV


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_unrounded_numbers_and_settings_as_columns() -> None:
    rows = read_csv(comparison_text(RESULT, "csv"))
    assert [row["run"] for row in rows] == ["a", "seeds", "killed"]
    assert [row["accuracy"] for row in rows] == ["0.98051", "0.975", ""]
    assert [row["accuracy_std"] for row in rows] == ["", "0.00812", ""]
    assert [row["settings.hidden"] for row in rows] == ["400,100", "none", "8"]
    assert [row["settings.lr"] for row in rows] == ["0.001", "1e-05", ""]
    assert [row["finished"] for row in rows] == ["true", "true", "false"]
    assert {row["split"] for row in rows} == {"test"}
    assert [row["parameters"] for row in rows] == ["101770", "101770", ""]


def test_csv_without_seeds_has_no_deviations() -> None:
    text = comparison_text(make_result(make_run("a")), "csv")
    assert text.splitlines()[0] == (
        "run,folder,data,network,parameters,split,accuracy,loss,macro_f1,best_epoch,epochs,seconds,backend,finished"
    )
    assert not text.endswith("\n")


@pytest.mark.parametrize("name", [*NAMES, 'comma, "quote"\nline'])
def test_names_in_csv_are_read_back(name: str) -> None:
    (row,) = read_csv(comparison_text(make_result(make_run(name)), "csv"))
    shown = name.replace("\n", r"\n")  # each run is one line
    assert (row["run"], row["folder"]) == (shown, f"runs/{shown}")
