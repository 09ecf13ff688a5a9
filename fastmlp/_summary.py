"""Short descriptions of objects with large arrays, as text and as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

LINE = 100  # characters; a longer description has one line per value


def summary_text(name: str, values: Mapping[str, Any]) -> str:
    """Return the description as text: one line, or if it would be long, one line per value.

    >>> summary_text("Scaling", {"kind": "zscore", "features": 784})
    'Scaling(kind=zscore, features=784)'
    """
    line = f"{name}({', '.join(f'{key}={value}' for key, value in values.items())})"
    if len(line) <= LINE:
        return line
    return "\n".join([name, *(f"  {key}: {shortened(str(value))}" for key, value in values.items())])


def summary_html(name: str, values: Mapping[str, Any]) -> str:
    """Return the description as an HTML table. Values are escaped, because names of classes come from files.

    >>> summary_html("Scaling", {"kind": "<b>"})
    '<table><caption>Scaling</caption><tr><th>kind</th><td>&lt;b&gt;</td></tr></table>'
    """
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(shortened(str(value)))}</td></tr>" for key, value in values.items())
    return f"<table><caption>{escape(name)}</caption>{rows}</table>"


def shortened(text: str) -> str:
    """Return the text without line breaks and with at most `LINE` characters."""
    text = " ".join(text.split())
    return text if len(text) <= LINE else f"{text[: LINE - 4]} ..."


def listed(names: tuple[str, ...], most: int = 4) -> str:
    """Return the number of names and the first of them.

    >>> listed(("cat", "dog")), listed(tuple("abcdef"))
    ('2 (cat, dog)', '6 (a, b, c, d, ...)')
    """
    return f"{len(names)} ({', '.join([*names[:most], *['...'] * (len(names) > most)])})"


class Summarized:
    """Base class of objects whose text and HTML representations show the values of `_summary`."""

    def _summary(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return summary_text(type(self).__name__, self._summary())

    def _repr_html_(self) -> str:
        return summary_html(type(self).__name__, self._summary())
