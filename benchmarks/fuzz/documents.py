"""Mutations of JSON, TOML and delimited text."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import tomli_w

from benchmarks.fuzz.mutators import DEPTHS, NUMBERS, TEXT, WORDS, Malformed, Mutator, Random, apply, check_depth, encoded

RAW = "RAW{}WAR"  # placeholder of a text that json.dumps and tomli_w cannot write
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    2**64,
    -(2**63) - 1,
    10**400,
    0.5,
    -0.0,
    1e308,
    [],
    {},
    [[]],
    {"": 0},
)
Path = tuple[Any, ...]  # keys and indices from the root to a value


# ------------------------------------------------------------------------------------------------ nested values


def paths(value: Any, start: Path = ()) -> list[Path]:
    """Return the paths of all values in a nested value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [start, *(path for key, item in items for path in paths(item, (*start, key)))]


def at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


class Texts:
    """Texts that replace placeholders in a written document."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, text: str) -> str:
        """Return the placeholder of a text."""
        self.found.append(text)
        return RAW.format(len(self.found) - 1)

    def replaced(self, document: str) -> str:
        for index, text in enumerate(self.found):
            document = document.replace(f'"{RAW.format(index)}"', text)
        return document


def other_value(old: Any, texts: Texts, rng: Random) -> Any:
    """Return a value to replace `old`: one of another type, a number out of range, a malicious text, or deep nesting."""
    kind = rng.randrange(6)
    if kind == 0:
        return texts.add(rng.choice(NUMBERS))
    if kind == 1:
        return rng.choice(WORDS)
    if kind == 2:
        depth = rng.choice(DEPTHS)
        return texts.add("[" * depth + "]" * depth)
    if kind == 3 and isinstance(old, list | str):
        return old * rng.choice((0, 2, 50))
    if kind == 4 and isinstance(old, int | float):
        return rng.choice((-old, old + 1, old * 10**9, str(old), [old], float(old)))
    return rng.choice(VALUES)


def changed(value: Any, texts: Texts, rng: Random) -> Any:
    """Return a nested value in which one value is replaced or removed, or one key is renamed, duplicated or added."""
    places = paths(value)
    path = rng.choice(places[1:] or places)
    if not path:
        return other_value(value, texts, rng)
    holder, key, kind = at(value, path[:-1]), path[-1], rng.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(WORDS)] = holder.pop(key)
    elif kind == 2:
        donor = at(value, rng.choice(places[1:]))
        holder[key] = json.loads(json.dumps(donor)) if not isinstance(donor, str) else donor
    elif kind == 3 and isinstance(holder, list):
        holder += [holder[key]] * rng.choice((1, 3, 1000))
    elif kind == 4 and isinstance(holder, dict):
        holder[rng.choice((*WORDS, "format_version", "type"))] = other_value(holder[key], texts, rng)
    else:
        holder[key] = other_value(holder[key], texts, rng)
    return value


# ------------------------------------------------------------------------------------------------ JSON


def json_text(text: str, rng: Random) -> str:
    """Return a mutant of a JSON text as text, whose surrogates are escaped."""
    texts = Texts()
    value = json.loads(check_depth(text.encode()))
    for _ in range(rng.choice((1, 1, 2))):
        value = changed(value, texts, rng)
    result = texts.replaced(json.dumps(value))
    if rng.random() < 0.1:  # a key that occurs twice
        result = re.sub(r'("[^"]*": )([^,{\[]+),', r"\1\2, \1null,", result, count=1)
    return result


def mutate_json(data: bytes, rng: Random) -> bytes:
    return json_text(data.decode(), rng).encode()


def mutate_lines(data: bytes, rng: Random) -> bytes:
    """Mutate one line of a JSON Lines file, or the order of the lines."""
    lines = data.splitlines()
    if not lines:
        raise Malformed("no lines")
    index = rng.randrange(len(lines))
    if rng.random() < 0.2:
        lines.insert(index, rng.choice((*lines, b"", b"[]", b"1", b"null")))
    elif rng.random() < 0.2:
        del lines[index]
    else:
        lines[index] = apply((mutate_json, mutate_json, *TEXT[:3]), lines[index], rng)
    return b"\n".join(lines) + b"\n" * rng.randrange(2)


# ------------------------------------------------------------------------------------------------ TOML


def mutate_toml(data: bytes, rng: Random) -> bytes:
    """Change a value, a key or a type in a TOML document."""
    texts = Texts()
    table = changed(tomllib.loads(check_depth(data).decode()), texts, rng)
    if not isinstance(table, dict):
        raise Malformed("no table")
    return encoded(texts.replaced(tomli_w.dumps(table)))


def mutate_toml_text(data: bytes, rng: Random) -> bytes:
    """Insert or duplicate a line of a TOML document, or replace the value of a key."""
    lines = data.decode("utf-8", "replace").split("\n")
    index, depth = rng.randrange(len(lines)), rng.choice(DEPTHS)
    key = lines[index].partition("=")[0].strip() or "a"
    values = (
        "[" * depth,
        "{a=" * depth,
        "[" * depth + "]" * depth,
        "{a=" * depth + "1" + "}" * depth,
        "0000-00-00",
        "2020-02-30",
    )
    values += (
        "9999-12-31T23:59:60Z",
        "25:61:61",
        "0x" + "f" * 5000,
        "0o9",
        "+inf",
        '"\\ud800"',
        '"\\UFFFFFFFF"',
        "'''",
        '"""x',
        "1__0",
    )
    values += ("1900-01-01T00:00:00+99:99", *NUMBERS)
    new = (
        f"{key} = {rng.choice(values)}",
        f"[{key}]",
        f"[[{key}]]",
        ".".join([key] * min(depth, 10_000)) + " = 1",
        f"{key}.b = 1",
    )
    new += ("[" + ".".join(["a"] * min(depth, 10_000)) + "]", f"{key} = {rng.choice(values)}", lines[index])
    line = rng.choice(new)
    if rng.random() < 0.5:
        lines[index] = line
    else:
        lines.insert(index, line)
    return encoded("\n".join(lines))


# ------------------------------------------------------------------------------------------------ tables


ENCODINGS = ("latin-1", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "cp037", "utf-7")
CELLS = (
    "",
    "?",
    "NA",
    '"',
    '""',
    '"a',
    'a"b',
    "\0",
    " 1 ",
    "+5",
    "1,5",
    "1.234,5",
    "1,234",
    "1e400",
    "0x1F",
    "-",
    "08:00",
    "2020-01-01",
)
CELLS += ("TRUE", "a;b", "\t", "\ufeff", "x" * 3000, "1" * 400, *NUMBERS, *WORDS)


def decoded(data: bytes) -> str:
    """Return the text of a table."""
    return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")


def mutate_cell(data: bytes, rng: Random) -> bytes:
    """Replace, add or remove a cell; all cells of a column are replaced in a tenth of the cases."""
    text = decoded(data)
    delimiter = max(",;\t", key=text.count)
    rows = [line.split(delimiter) for line in text.split("\n")]
    row = rng.choice(rows)
    index, cell = rng.randrange(len(row)), rng.choice(CELLS)
    kind = rng.randrange(10)
    for one in rows[1:] if kind == 0 else [row]:
        if kind == 1:
            del one[index:]
        elif kind == 2:
            one[index:index] = [cell] * rng.choice((1, 2, 500))
        elif index < len(one):
            one[index] = cell
    return encoded("\n".join(map(delimiter.join, rows)))


def mutate_table(data: bytes, rng: Random) -> bytes:
    """Change the encoding, the delimiter, the ends of lines, the quotation marks or the rows of a table."""
    text, kind = decoded(data), rng.randrange(7)
    lines = text.split("\n")
    if kind == 0:
        return text.encode(rng.choice(ENCODINGS), "replace")
    if kind == 1:
        text = text.replace(rng.choice(",;\t"), rng.choice(",;\t |:\0\n\"'a"))
    elif kind == 2:
        text = text.replace("\n", rng.choice(("\r", "\r\n", "\n\r", "\n\n", "\u2028", "\0\n")))
    elif kind == 3:
        text = text.replace(rng.choice(text or " "), rng.choice(('"', "\0", "", '""', "\r")), rng.choice((1, -1)))
    elif kind == 4:
        text = "\n".join([lines[0]] * rng.choice((1, 2, 3)) + lines[1:] * rng.choice((0, 1, 200)))
    elif kind == 5:
        text = "\n".join(rng.sample(lines, len(lines)))
    else:
        text = "\n".join(line * rng.choice((1, 1, 1, 100)) for line in lines)
    return encoded(text)


CSV: tuple[Mutator, ...] = (mutate_cell, mutate_cell, mutate_table, *TEXT)
JSON: tuple[Mutator, ...] = (mutate_json, mutate_json, mutate_json, *TEXT)
LINES: tuple[Mutator, ...] = (mutate_lines, mutate_lines, mutate_lines, *TEXT)
TOML: tuple[Mutator, ...] = (mutate_toml, mutate_toml, mutate_toml_text, mutate_toml_text, *TEXT)
