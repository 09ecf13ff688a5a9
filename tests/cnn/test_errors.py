"""Exceptions have the names of the settings to change, and their messages do not contain command-line flags."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastmlp.cnn import errors
from fastmlp.cnn.description import Block, Description, make_blocks

FLAG = re.compile(r"(?<![\w-])--[a-z]")
PIP = re.compile("pip install .*")  # advice to run pip may contain flags of pip
SOURCES = sorted(Path(errors.__file__).parent.glob("*.py"))


def describe(*blocks: Block, **more: Any) -> Description:
    return Description(**({"image_shape": (8, 8, 1), "classes": 3, "blocks": blocks} | more))


# Calls that raise an exception, and the expected `settings` of the exception.
INVALID: list[tuple[Callable[[], Any], tuple[str, ...]]] = [
    (lambda: Block(filters=0), ("filters",)),
    (lambda: Block(filters=1, pool="median"), ("pool",)),
    (lambda: Block(filters=1, dropout=1.0), ("dropout",)),
    (lambda: Block(filters=1, pool_kernel=2, pool_padding=2), ("pool_padding", "pool_kernel")),
    (lambda: make_blocks((1, 2), kernel=(1, 2, 3)), ("kernel",)),
    (lambda: describe(*make_blocks((2,), kernel=20)), ("kernel", "padding")),
    (lambda: describe(*make_blocks((2,), pool="max", pool_kernel=20)), ("pool",)),
    (describe, ("filters",)),
    (lambda: describe(Block(filters=1), dense=(0,)), ("dense",)),
    (lambda: describe(Block(filters=1), init="zeros"), ("init",)),
    (lambda: describe(Block(filters=1), classes=1), ()),
]


@pytest.mark.parametrize(("call", "settings"), INVALID)
def test_errors_carry_the_settings_to_change(call: Callable[[], Any], settings: tuple[str, ...]) -> None:
    with pytest.raises(errors.DescriptionError) as caught:
        call()
    assert caught.value.settings == settings


def test_settings_are_optional() -> None:
    assert errors.CNNError("message").settings == ()
    assert str(errors.FileError("message", settings=["weights"])) == "message"
    assert errors.FileError("message", settings=["weights"]).settings == ("weights",)


@pytest.mark.parametrize("source", SOURCES, ids=[path.stem for path in SOURCES])
def test_no_string_contains_a_flag(source: Path) -> None:
    tree = ast.parse(source.read_text("utf-8"))
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [text for text in strings if FLAG.search(PIP.sub("", text))] == []
