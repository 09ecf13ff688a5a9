"""Tests of README, CONTRIBUTING and docs/: Python examples run, links exist, and commands have the options that are shown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from support.processes import ROOT

from fastmlp.commands.program import program

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LARGEST_README = 7_000  # maximum size in bytes
TALLEST_FIGURE = 900  # maximum height in pixels


WITH_EXAMPLES = [README, *(ROOT / "docs" / name for name in ("python.md", "activations.md", "estimators.md"))]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.name)
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastmlp.nn.activations.CUSTOM", {})  # a registered function keeps the names of its example alive
    names: dict[str, Any] = {}  # later examples of a page continue the earlier ones
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    assert float(capsys.readouterr().out.split()[-1]) > 0.95


def test_readme_is_one_page_with_figures_of_moderate_size() -> None:
    text = README.read_text()
    assert len(text.encode()) <= LARGEST_README
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert {"docs/speed.png", "docs/curves.png"} <= set(figures)
    for figure in figures:
        head = (ROOT / figure).read_bytes()[:24]
        assert head.startswith(b"\x89PNG")
        assert int.from_bytes(head[20:24], "big") <= TALLEST_FIGURE, figure


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each `fastmlp` command in the shell blocks and inline code of a page."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    lines += re.findall(r"`(fastmlp [^`]+)`", text)
    for line in lines:
        for command in line.split("&&"):
            words = shlex.split(command, comments=True)
            if words and Path(words[0]).name == "fastmlp":
                yield words[1:]


def unknown_flags(words: list[str]) -> list[str]:
    """Return the flags of a command line that the command and its subcommands do not have."""
    command: Any = program
    known, unknown = {"--help", "-h", "--version"}, []
    for word in words:
        if isinstance(command, click.Group) and word in command.commands:
            command = command.commands[word]
            known |= {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
        elif word.startswith("--") and word.partition("=")[0] not in known:
            unknown.append(word)
    return unknown


def test_commands_have_the_flags_that_the_pages_show() -> None:
    shown = [words for page in PAGES for words in commands_of(page.read_text())]
    assert len(shown) > 20
    assert [words for words in shown if unknown_flags(words)] == []
    assert unknown_flags(["train", "--epochz", "3"]) == ["--epochz"]
    assert unknown_flags(["evaluate", "--hidden", "3"]) == ["--hidden"]
