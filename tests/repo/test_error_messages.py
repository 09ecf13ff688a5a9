"""Error messages of the library name settings as in Python; only the command line mentions flags."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fastmlp

PACKAGE = Path(fastmlp.__file__).parent
FLAG = re.compile(r"(?<![\w-])--[a-z]")
HAVE_DOCSTRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def strings_with_flags(name: str, text: str) -> list[str]:
    """Return the string constants in source code, except docstrings, that contain a command-line flag."""
    tree = ast.parse(text)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, HAVE_DOCSTRINGS) and node.body and isinstance(node.body[0], ast.Expr)
    }
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [
        f"{name}:{node.lineno}: {node.value!r}" for node in constants if FLAG.search(node.value) and id(node) not in docstrings
    ]


def test_no_string_of_the_library_contains_a_flag() -> None:
    """Neither error messages nor help texts contain flags; the command line converts names in backticks into flags."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "commands"]
    assert len(files) > 50
    found = [line for path in files for line in strings_with_flags(str(path.relative_to(PACKAGE)), path.read_text("utf-8"))]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "planted",
    [
        "raise ConfigError('give --val-fraction')",
        "raise ConfigError(f'{name} needs a split; give --val-fraction {name}')",
        "REMEDY = '(--clip-norm 1)'",
        "def f():\n    'Docstring with --flag.'\n    return 'choose another --out'",
    ],
)
def test_a_planted_flag_is_found(planted: str) -> None:
    assert len(strings_with_flags("planted", planted)) == 1


@pytest.mark.parametrize("allowed", ['"""Docstring with --flag."""', "x = 'a -- b'", "x = 'a---b'", "# --flag\nx = '-v'"])
def test_other_strings_are_allowed(allowed: str) -> None:
    assert strings_with_flags("allowed", allowed) == []
