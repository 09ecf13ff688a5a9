"""Mutations of bytes and of text that need no knowledge of a format.

A mutator is a function of bytes and a seeded random generator, and returns other bytes. The mutators of a format are in
archives.py, tensors.py, documents.py and pictures.py.
"""

from __future__ import annotations

import lzma
import random
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence

Random = random.Random
Mutator = Callable[[bytes, Random], bytes]

# Values at the limits of integer types, of which several are negative numbers in other types.
INTEGERS = (0, 1, 2, 3, 7, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 65536, 2**24, *(2**31 + d for d in (-1, 0, 1)))
INTEGERS += (2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
NUMBERS = (
    "0",
    "-0",
    "-1",
    "1e5",
    "1e308",
    "1e999",
    "-1e999",
    "1e-999",
    "nan",
    "inf",
    "-inf",
    "0x10",
    "1_0",
    "٣",
    "1.5",
    "99999",
)
NUMBERS += ("9223372036854775807", "9223372036854775808", "18446744073709551616", "9" * 400, "9" * 5000, "0." + "3" * 2000)
WORDS = ("", " ", "null", "true", "x" * 300, "x" * 70000, "\0", "a\nb", "\x1b]0;title\x07", "\u202e", "\ud800", "é" * 200)
WORDS += ("../../x", "/etc/passwd", "file:///etc/passwd", "%s%n{0}", "__class__", "\x85", "\u2028", "\U0010ffff", "e\u0301")
DEPTHS = (10, 300, 3000, 100_000)  # of nested brackets
NUMBER = re.compile(rb"[-+]?\d[\d_.]*(?:[eE][-+]?\d+)?")
LONGEST = 1 << 20  # bytes of a mutant; larger ones are truncated


# Exceptions of parsers of bytes that do not have the format of a mutator. SystemError: NumPy, for characters above U+10FFFF.
ERRORS = (ValueError, TypeError, LookupError, AttributeError, EOFError, OSError, ArithmeticError, SyntaxError, MemoryError)
ERRORS += (struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, tokenize.TokenError, SystemError)


class Malformed(ValueError):
    """The bytes do not have the format of a mutator."""


def check_depth(data: bytes) -> bytes:
    """Return the bytes; raise Malformed if it may depend on the stack whether they can be parsed, so that no mutant does."""
    if data.count(b"[") + data.count(b"{") + data.count(b"(") > 200 or data.count(b".") > 2000:
        raise Malformed("deeply nested")
    return data


def encoded(text: str) -> bytes:
    """Return a text in UTF-8; surrogates are encoded, too, so that the result is then invalid."""
    return text.encode("utf-8", "surrogatepass")


def position(data: bytes, rng: Random) -> int:
    """Return a position in the bytes; half of them are in the first 64 bytes, where most headers are."""
    return rng.randrange(min(len(data), 64 if rng.random() < 0.5 else len(data)) or 1)


def span(data: bytes, rng: Random) -> slice:
    """Return a range of bytes, most often a short one."""
    start = position(data, rng)
    return slice(start, start + rng.choice((1, 2, 4, 8, 16, rng.randrange(1, len(data) + 2))))


def flip_bits(data: bytes, rng: Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16)) if data else 0):
        found[position(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(found)


def set_byte(data: bytes, rng: Random) -> bytes:
    start = position(data, rng)
    return data[:start] + bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))]) + data[start + 1 :]


def set_integer(data: bytes, rng: Random) -> bytes:
    """Overwrite 1, 2, 4 or 8 bytes with an integer at the limits of its type."""
    start, width = position(data, rng), rng.choice((1, 2, 4, 8))
    return data[:start] + integer(rng, width, rng.choice("<>")) + data[start + width :]


def integer(rng: Random, width: int, order: str = "<") -> bytes:
    """Return the bytes of an integer at the limits of its type."""
    value = rng.choice(INTEGERS) if rng.random() < 0.8 else rng.getrandbits(8 * width)
    return (value % (1 << 8 * width)).to_bytes(width, "little" if order == "<" else "big")


def truncate(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)] if rng.random() < 0.7 else data[: -rng.randrange(1, 9)]


def delete(data: bytes, rng: Random) -> bytes:
    where = span(data, rng)
    return data[: where.start] + data[where.stop :]


def duplicate(data: bytes, rng: Random) -> bytes:
    where, times = span(data, rng), rng.choice((1, 1, 2, 100))
    return data[: where.stop] + data[where] * times + data[where.stop :]


def swap(data: bytes, rng: Random) -> bytes:
    first, second = span(data, rng), span(data, rng)
    if first.start > second.start:
        first, second = second, first
    if first.stop > second.start:
        return data[: first.start] + data[first][::-1] + data[first.stop :]
    return data[: first.start] + data[second] + data[first.stop : second.start] + data[first] + data[second.stop :]


def insert(data: bytes, rng: Random) -> bytes:
    start = position(data, rng)
    return (
        data[:start]
        + rng.choice((b"\0", b"\xff", b"\n", rng.randbytes(rng.randrange(1, 20)))) * rng.choice((1, 1, 9))
        + data[start:]
    )


def set_number(data: bytes, rng: Random) -> bytes:
    """Replace a number in text with another one, such as one that is too large."""
    found = list(NUMBER.finditer(data))
    if not found:
        return set_integer(data, rng)
    one = rng.choice(found)
    return data[: one.start()] + encoded(rng.choice(NUMBERS)) + data[one.end() :]


def insert_word(data: bytes, rng: Random) -> bytes:
    start = position(data, rng)
    return data[:start] + encoded(rng.choice(WORDS)) + data[start:]


def nest(data: bytes, rng: Random) -> bytes:
    """Insert nested brackets."""
    start, opening = position(data, rng), rng.choice((b"[", b"(", b"{", b'{"a":', b"-", b"'"))
    return data[:start] + opening * rng.choice(DEPTHS) + data[start:]


def splice(data: bytes, other: bytes, rng: Random) -> bytes:
    """Return the start of one sample and the end of another one."""
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


BYTES: tuple[Mutator, ...] = (
    flip_bits,
    flip_bits,
    set_byte,
    set_integer,
    set_integer,
    truncate,
    delete,
    duplicate,
    swap,
    insert,
)
TEXT: tuple[Mutator, ...] = (set_number, set_number, insert_word, nest, set_byte, delete, duplicate, truncate, swap)


def apply(mutators: Sequence[Mutator], data: bytes, rng: Random) -> bytes:
    """Apply one of the mutators; if the bytes do not have its format, such as after another mutation, apply one of BYTES."""
    try:
        return rng.choice(mutators)(data, rng)[:LONGEST]
    except ERRORS:
        return rng.choice(BYTES)(data, rng)[:LONGEST]
