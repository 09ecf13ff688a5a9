"""Short descriptions of objects, as text and as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape
from typing import Any

from fastmlp.errors import printable

LINE = 100  # characters; a longer description has one line per value
ROWS = 10  # a longer table shows the first and the last rows


def summary_text(name: str, values: Mapping[str, Any]) -> str:
    """Return the description as text: one line, or if it would be long, one line per value. Control characters are escaped.

    >>> summary_text("Scaling", {"kind": "zscore", "features": 784})
    'Scaling(kind=zscore, features=784)'
    """
    line = f"{name}({', '.join(f'{key}={printable(str(value))}' for key, value in values.items())})"
    if len(line) <= LINE:
        return line
    return "\n".join([name, *(f"  {key}: {shortened(str(value))}" for key, value in values.items())])


def summary_html(name: str, values: Mapping[str, Any]) -> str:
    """Return the description as an HTML table. Values are escaped, because names of classes and of data sets come from files.

    >>> summary_html("Scaling", {"kind": "<b>"})
    '<table><caption>Scaling</caption><tr><th>kind</th><td>&lt;b&gt;</td></tr></table>'
    """
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(shortened(str(value)))}</td></tr>" for key, value in values.items())
    return f"<table><caption>{escape(name)}</caption>{rows}</table>"


def shortened(text: str) -> str:
    """Return the text without line breaks, with control characters escaped, and with at most `LINE` characters."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= LINE else f"{text[: LINE - 4]} ..."


def listed(names: tuple[str, ...], most: int = 4) -> str:
    """Return the number of names and the first of them.

    >>> listed(("cat", "dog")), listed(tuple("abcdef"))
    ('2 (cat, dog)', '6 (a, b, c, d, ...)')
    """
    return f"{len(names)} ({', '.join([*names[:most], *['...'] * (len(names) > most)])})"


def changed(one: Any, default: Any, *always: str) -> dict[str, Any]:
    """Return the fields of a dataclass whose values differ from those of `default`, and the fields in `always`."""
    found = {}
    for field in fields(one):
        value, usual = getattr(one, field.name), getattr(default, field.name)
        text = value.__name__ if isinstance(value, type) else str(value)  # a dtype, such as numpy.float32
        if field.name in always or (value != usual and text != str(usual)):
            found[field.name] = text
    return found


def first_and_last(rows: Sequence[Any]) -> list[Any]:
    """Return the rows of a table. If there are more than `ROWS`, None replaces those in the middle.

    >>> first_and_last(range(99))
    [0, 1, 2, 3, 4, None, 94, 95, 96, 97, 98]
    """
    return list(rows) if len(rows) <= ROWS else [*rows[: ROWS // 2], None, *rows[-ROWS // 2 :]]


def cell(value: Any) -> str:
    """Return a value of a table as text: numbers with four significant digits, and "" for None.

    >>> cell(0.123456), cell(12345), cell(None)
    ('0.1235', '12345', '')
    """
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def table_text(table: Sequence[Sequence[str]]) -> str:
    """Return a table, whose first row is the header, as text. All columns are right-justified."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in table)


def table_html(table: Sequence[Sequence[str]], caption: str = "") -> str:
    """Return a table, whose first row is the header, as HTML."""
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    rows = []
    for number, row in enumerate(table):
        tag = "td" if number else "th"
        rows.append(f"<tr>{''.join(f'<{tag}>{escape(text)}</{tag}>' for text in row)}</tr>")
    return f"<table>{title}{''.join(rows)}</table>"


class Summarized:
    """Base class of objects whose text and HTML representations show the values of `_summary`."""

    def _summary(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return summary_text(type(self).__name__, self._summary())

    def _repr_html_(self) -> str:
        return summary_html(type(self).__name__, self._summary())
