"""The size of the pages of a Parquet file, from the headers of the pages.

pyarrow allocates memory for the decompressed pages as their headers declare it. The footer declares the size of all pages, but
pyarrow does not compare the two. Therefore, the headers are read here before pyarrow reads the pages. The footer and the
headers are written in the compact protocol of Thrift (https://github.com/apache/parquet-format, parquet.thrift). pyarrow's
own description of a column is not used, because pyarrow aborts the process if it is damaged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from fastmlp.errors import DataError
from fastmlp.files.limits import largest
from fastmlp.files.reading import file_errors, open_file, size_of

TAIL = 8  # bytes: the length of the footer, and PAR1
HEADER = 1 << 10  # bytes that are read at the start of a page; longer headers have long texts as statistics
LONGEST_HEADER = 1 << 24  # bytes, the limit of pyarrow
TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, MAP, STRUCT, UUID = 1, 2, 3, 7, 8, 9, 10, 11, 12, 13  # types of Thrift
NUMBERS = (4, 5, 6)  # types of integers of 16, 32 and 64 bits, which all have the same format
FIXED = {TRUE: 0, FALSE: 0, BYTE: 1, DOUBLE: 8, UUID: 16}  # types of values with a fixed number of bytes
MAX_NESTING = 32
VARINT = 64  # bits
ROW_GROUPS, COLUMNS, COLUMN = 4, 1, 3  # fields of the footer, of a row group and of a column
VALUES, PAGE, DICTIONARY = 5, 9, 11  # fields of the description of a column
UNPACKED, PACKED, DATA, DATA_V2 = 2, 3, 5, 8  # fields of the header of a page


class Pages(NamedTuple):
    """The size of the pages of a file, or of a column of a row group.

    declared : bytes of all pages without compression
    longest : bytes of the largest page without compression; no text is longer
    packed : bytes of all pages and their headers in the file
    """

    declared: int
    longest: int
    packed: int


class Malformed(Exception):
    """The bytes are not those of a Thrift structure."""


class Compact:
    """Reader of the compact protocol of Thrift, which skips what is not needed, without storing it.

    >>> reader = Compact(bytes([0x15, 0x54, 0x00]))  # a structure whose field 1 is the number 42
    >>> [(field, reader.number()) for field, kind in reader.fields()]
    [(1, 42)]
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def byte(self) -> int:
        if self.position >= len(self.data):
            raise Malformed
        self.position += 1
        return self.data[self.position - 1]

    def varint(self) -> int:
        value = 0
        for shift in range(0, VARINT + 7, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise Malformed

    def number(self) -> int:
        """Return a signed number, which is stored in zigzag order: 0, -1, 1, -2 and so on."""
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yield the number and the type of each field of a structure; the caller reads or skips its value."""
        field = 0
        while byte := self.byte():
            field = field + (byte >> 4) if byte >> 4 else self.number()
            yield field, byte & 15

    def items(self) -> tuple[int, int]:
        """Return the number and the type of the values of a list."""
        byte = self.byte()
        return (byte >> 4 if byte >> 4 < 15 else self.varint()), byte & 15

    def structures(self, kind: int) -> Iterator[None]:
        """Yield for each structure of a list, which the caller reads; raise Malformed for a value of another type."""
        count, inner = self.items() if kind == LIST else (0, 0)
        if inner != STRUCT and (count or kind != LIST):
            raise Malformed
        for _ in range(count):
            yield

    def numbers(self, wanted: Collection[int]) -> dict[int, int]:
        """Return the wanted fields of a structure that are numbers; for a wanted structure, the number in its field 1."""
        found: dict[int, int] = {}
        for field, kind in self.fields():
            if field in wanted and kind in NUMBERS:
                found[field] = self.number()
            elif field in wanted and kind == STRUCT:
                found[field] = self.numbers((1,)).get(1, 0)
            else:
                self.skip(kind)
        return found

    def skip(self, kind: int, depth: int = 0) -> None:
        """Skip a value of a type."""
        if depth > MAX_NESTING:
            raise Malformed
        if kind == STRUCT:
            for _, inner in self.fields():
                self.skip(inner, depth + 1)
        elif kind in (LIST, SET):
            self.skip_items(*self.items(), depth)
        elif kind == MAP:
            count = self.varint()
            kinds = self.byte() if count else 0
            self.skip_items(count, kinds >> 4, depth, kinds & 15)
        elif kind in NUMBERS:
            self.varint()
        else:
            self.skip_bytes(kind)

    def skip_items(self, count: int, kind: int, depth: int, value: int | None = None) -> None:
        """Skip the values of a list, or the keys and values of a map; Booleans in them have a byte, unlike in structures."""
        kinds = [BYTE if one in (TRUE, FALSE) else one for one in (kind, value) if one is not None]
        for _ in range(count):
            for one in kinds:
                self.skip(one, depth + 1)

    def skip_bytes(self, kind: int) -> None:
        """Skip a value whose number of bytes is known before it is read."""
        if kind not in (BINARY, *FIXED):
            raise Malformed
        length = self.varint() if kind == BINARY else FIXED[kind]
        self.position += length
        if self.position > len(self.data):
            raise Malformed


def pages_of(path: Path, cell: int, damaged: str) -> Pages:
    """Return the size of the pages of a Parquet file. Reading ends when it exceeds `limits.largest`.

    cell : bytes of a number in memory; each value counts at least this much
    damaged : text of the error for a damaged file

    Raises
    ------
    DataError : the file cannot be read or is damaged
    """
    size = size_of(path)
    limit, total = largest(size), Pages(0, 0, 0)
    try:
        with open_file(path) as stream, file_errors("read", path):
            for column in columns_of(footer_of(stream, size)):
                pages = column_pages(stream, column, size)
                declared = max(pages.declared, cell * column.get(VALUES, 0))
                total = Pages(total.declared + declared, max(total.longest, pages.longest), total.packed + pages.packed)
                if total.packed > size:  # columns share pages, or the last page is longer than the file
                    raise Malformed
                if total.declared > limit:
                    break
    except Malformed as error:
        raise DataError(f"{path}: {damaged}") from error
    return total


def footer_of(stream: BufferedReader, size: int) -> bytes:
    """Return the footer of a Parquet file of a size in bytes."""
    stream.seek(max(size - TAIL, 0))
    length = int.from_bytes(stream.read(TAIL)[:4], "little")
    stream.seek(max(size - TAIL - length, 0))
    return stream.read(length)


def columns_of(footer: bytes) -> Iterator[dict[int, int]]:
    """Yield the numbers in the description of each column of each row group."""
    reader = Compact(footer)
    for field, kind in reader.fields():
        if field != ROW_GROUPS:
            reader.skip(kind)
            continue
        for _ in reader.structures(kind):
            for group_field, group_kind in reader.fields():
                if group_field != COLUMNS:
                    reader.skip(group_kind)
                    continue
                for _ in reader.structures(group_kind):
                    yield from descriptions(reader)


def descriptions(reader: Compact) -> Iterator[dict[int, int]]:
    """Yield the numbers in the description of a column, if it has one."""
    for field, kind in reader.fields():
        if field == COLUMN and kind == STRUCT:
            yield reader.numbers((VALUES, PAGE, DICTIONARY))
        else:
            reader.skip(kind)


def column_pages(stream: BufferedReader, column: dict[int, int], size: int) -> Pages:
    """Return the size of the pages of a column of a row group.

    column : numbers in the description of the column
    size : size of the file in bytes
    """
    start = column.get(PAGE, 0)
    if 0 < column.get(DICTIONARY, 0) < start:
        start = column[DICTIONARY]
    if start < 0:
        raise Malformed
    position, values, declared, longest = start, 0, 0, 0
    while values < column.get(VALUES, 0) and position < size:
        header, length = page_header(stream, position)
        packed, unpacked = header.get(PACKED, 0), header.get(UNPACKED, 0)
        count = header.get(DATA, header.get(DATA_V2, 0))
        if min(packed, unpacked, count) < 0:
            raise Malformed
        position, values = position + length + packed, values + count
        declared, longest = declared + unpacked, max(longest, unpacked)
    return Pages(declared, longest, position - start)


def page_header(stream: BufferedReader, position: int) -> tuple[dict[int, int], int]:
    """Return the numbers in the header of a page at a position of a file, and the length of the header."""
    for most in (HEADER, LONGEST_HEADER):
        stream.seek(position)
        reader = Compact(stream.read(most))
        try:
            return reader.numbers((UNPACKED, PACKED, DATA, DATA_V2)), reader.position
        except Malformed:
            if most == LONGEST_HEADER:
                raise
    raise AssertionError  # the loop always returns or raises
