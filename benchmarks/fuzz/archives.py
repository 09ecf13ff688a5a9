"""Mutations of zip archives and gzip files, which are packed again so that the mutants are read.

Sources: PKWARE's APPNOTE.TXT (zip), RFC 1952 (gzip).
"""

from __future__ import annotations

import gzip
import io
import warnings
import zipfile
from collections.abc import Callable, Sequence

from benchmarks.fuzz.mutators import BYTES, Malformed, Mutator, Random, apply, integer, set_byte
from benchmarks.fuzz.npy import NPY
from benchmarks.fuzz.pickles import PICKLE, mutate_table_of_extractor

Inner = Callable[[str], Sequence[Mutator]]  # the mutators of a member of an archive, by its name

# ------------------------------------------------------------------------------------------------ zip

# Offset and width of the fields of the headers of zip files, by their signature.
ZIP_FIELDS = {
    b"PK\x03\x04": {"version": (4, 2), "flags": (6, 2), "method": (8, 2), "crc": (14, 4), "packed": (18, 4), "size": (22, 4)},
    b"PK\x01\x02": {"version": (6, 2), "flags": (8, 2), "method": (10, 2), "crc": (16, 4), "packed": (20, 4), "size": (24, 4)},
    b"PK\x05\x06": {"entries": (8, 2), "total": (10, 2), "length": (12, 4), "offset": (16, 4), "comment": (20, 2)},
}
ZIP_FIELDS[b"PK\x03\x04"] |= {"name": (26, 2), "extra": (28, 2)}
ZIP_FIELDS[b"PK\x01\x02"] |= {"name": (28, 2), "extra": (30, 2), "comment": (32, 2), "start": (42, 4)}
FLAGS = (1, 8, 0x41, 0x800, 0x2001)  # encrypted, data descriptor, strong encryption, UTF-8, masked
METHODS = (0, 1, 6, 8, 9, 12, 14, 93, 95, 99)  # stored, shrunk, imploded, deflated, deflate64, bzip2, LZMA, zstd, xz, AES
WRITTEN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
NAMES = (
    "../x.npy",
    "/x.npy",
    "x",
    "x.npy/",
    "",
    "x.npy\0",
    "é.npy",
    "X.npy",
    "y.npy",
    "a\nb.npy",
    "\x1b[2J.npy",
    "x" * 300 + ".npy",
)


def positions(data: bytes, signature: bytes) -> list[int]:
    """Return the positions of a signature."""
    found, start = [], data.find(signature)
    while start >= 0:
        found.append(start)
        start = data.find(signature, start + 1)
    return found


def mutate_zip_header(data: bytes, rng: Random) -> bytes:
    """Change a field of a header; half of the time in all headers of the archive, so that they agree."""
    signature = rng.choice([one for one in ZIP_FIELDS if one in data] or [b""])
    if not signature:
        raise Malformed("not a zip archive")
    field = rng.choice(sorted(ZIP_FIELDS[signature]))
    width = ZIP_FIELDS[signature][field][1]
    choices = {"flags": FLAGS, "method": METHODS}.get(field)
    value = rng.choice(choices).to_bytes(2, "little") if choices else integer(rng, width)
    found = bytearray(data)
    everywhere = rng.random() < 0.5
    for one, fields in ZIP_FIELDS.items():
        places = positions(data, one) if field in fields else []
        for place in places if everywhere else rng.sample(places, min(1, len(places))) * (one == signature):
            start = place + fields[field][0]
            found[start : start + width] = value
    return bytes(found)


def members(data: bytes) -> list[tuple[str, bytes, int]]:
    """Return the name, the content and the method of each member of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(one.filename, archive.read(one), one.compress_type) for one in archive.infolist()]


def packed(found: Sequence[tuple[str, bytes, int]]) -> bytes:
    """Return a zip archive with the given members; names may occur twice."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # duplicate names
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content, method in found:
                archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def mutate_zip_members(data: bytes, rng: Random) -> bytes:
    """Duplicate, rename, remove, add, compress or reorder the members of a zip archive."""
    found = members(data)
    index, kind = rng.randrange(len(found) or 1), rng.randrange(6)
    if not found:
        raise Malformed("no members")
    name, content, method = found[index]
    if kind == 0:
        found.append((name, rng.choice(found)[1], method))
    elif kind == 1:
        found[index] = (rng.choice((*NAMES, *(one[0] for one in found))), content, method)
    elif kind == 2:
        del found[index]
    elif kind == 3:  # half of the time, the compressed content is damaged
        damaged = packed([(name, content, rng.choice(WRITTEN)), *found[:index], *found[index + 1 :]])
        return damaged if rng.random() < 0.5 else damage_content(damaged, rng)
    elif kind == 4:
        found[index] = (name, rng.choice((b"", b"x", content * 2, bytes(1 << 19))), zipfile.ZIP_DEFLATED)
    else:
        rng.shuffle(found)
    return packed(found)


def damage_content(data: bytes, rng: Random) -> bytes:
    """Change bytes of the compressed content of the first member, whose header has 30 bytes and the name."""
    start = 30 + int.from_bytes(data[26:28], "little")
    part = set_byte(data[start : start + 40], rng)
    return data[:start] + part + data[start + len(part) :]


def zip_inner(inner: Inner) -> Mutator:
    """Return a mutator of the content of a member, which is packed again with the right checksum."""

    def mutate(data: bytes, rng: Random) -> bytes:
        found = members(data)
        if not found:
            raise Malformed("no members")
        index = rng.randrange(len(found))
        name, content, method = found[index]
        found[index] = (name, apply(inner(name), content, rng), method)
        return packed(found)

    return mutate


# ------------------------------------------------------------------------------------------------ gzip


def gzip_inner(inner: Sequence[Mutator]) -> Mutator:
    """Return a mutator of the content of a gzip file, which is compressed again."""

    def mutate(data: bytes, rng: Random) -> bytes:
        content = gzip.decompress(data)
        return gzip.compress(apply(inner, content, rng), mtime=0)

    return mutate


def mutate_gzip(data: bytes, rng: Random) -> bytes:
    """Change the checksum, the size, the flags or the number of members of a gzip file."""
    kind = rng.randrange(6)
    if kind == 0:
        return data[:-4] + integer(rng, 4)
    if kind == 1:
        return data[:-8] + rng.randbytes(4) + data[-4:]
    if kind == 2:
        return data + rng.choice((data, data[: len(data) // 2], b"\0" * 20, b"x", b"\x1f\x8b"))
    if kind == 3:
        return data[:3] + bytes([rng.choice((1, 2, 4, 8, 16, 31, 255))]) + data[4:]
    if kind == 4:
        return data[:2] + rng.randbytes(1) + data[3:]
    return gzip.compress(bytes(1 << rng.randrange(25)), mtime=0)


def of_member(name: str) -> Sequence[Mutator]:
    """Return the mutators of a member of an archive of NumPy or PyTorch."""
    if name.endswith("data.pkl"):
        return (mutate_table_of_extractor, mutate_table_of_extractor, *PICKLE)
    return NPY if name.endswith(".npy") else BYTES


ZIP: tuple[Mutator, ...] = (*[zip_inner(of_member)] * 5, mutate_zip_header, mutate_zip_header, mutate_zip_members, *BYTES[:5])
