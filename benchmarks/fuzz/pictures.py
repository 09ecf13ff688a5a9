"""Mutations of PNG, JPEG, TIFF and EXIF structures; checksums are corrected so that the mutants are decoded.

Sources: the PNG specification (W3C), ITU-T T.81 (JPEG), TIFF 6.0.
"""

from __future__ import annotations

import functools
import struct
import zlib

from benchmarks.fuzz.mutators import BYTES, TEXT, Malformed, Mutator, Random, apply, integer

PNG_START = b"\x89PNG\r\n\x1a\n"
Chunk = tuple[bytes, bytes]  # type and content
SIDES = (0, 1, 2, 4, 5, 6, 100, 4000, 9000, 20000, 2**16, 2**31 - 1, 2**31, 2**32 - 1)

# ------------------------------------------------------------------------------------------------ PNG


def chunks(data: bytes) -> list[Chunk]:
    """Return the chunks of a PNG file."""
    if not data.startswith(PNG_START):
        raise Malformed("not a PNG file")
    found, start = [], len(PNG_START)
    while start + 8 <= len(data):
        (length,) = struct.unpack(">I", data[start : start + 4])
        found.append((data[start + 4 : start + 8], data[start + 8 : start + 8 + length]))
        start += 12 + length
    return found


def png_of(found: list[Chunk], rng: Random) -> bytes:
    """Return a PNG file with right checksums, or rarely a wrong one."""
    wrong = rng.randrange(len(found)) if found and rng.random() < 0.05 else None
    parts = [PNG_START]
    for index, (kind, content) in enumerate(found):
        crc = zlib.crc32(kind + content) ^ (index == wrong)
        parts.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc))
    return b"".join(parts)


def mutate_ihdr(data: bytes, rng: Random) -> bytes:
    """Change the size, the bit depth, the colour type or the interlacing of a PNG file."""
    found = chunks(data)
    if not found or len(found[0][1]) != 13:
        raise Malformed("no header")
    header, kind = bytearray(found[0][1]), rng.randrange(4)
    if kind < 2:
        header[4 * kind : 4 * kind + 4] = struct.pack(">I", rng.choice(SIDES))
    elif kind == 2:
        header[8], header[9] = rng.choice((1, 2, 4, 8, 16, 0, 32)), rng.choice((0, 2, 3, 4, 6, 1, 255))
    else:
        header[rng.randrange(10, 13)] = rng.choice((0, 1, 2, 255))
    return png_of([(found[0][0], bytes(header)), *found[1:]], rng)


def mutate_idat(data: bytes, rng: Random) -> bytes:
    """Change the pixels of a PNG file before their compression, or the compression."""
    found = chunks(data)
    places = [index for index, (kind, _) in enumerate(found) if kind in (b"IDAT", b"fdAT")]
    if not places:
        raise Malformed("no pixels")
    index = rng.choice(places)
    kind, content = found[index]
    pixels = zlib.decompress(content)
    choice = rng.randrange(4)
    if choice == 0:
        content = apply(BYTES, content, rng)
    elif choice == 1:
        content = zlib.compress(pixels * rng.choice((0, 2, 1000)), rng.choice((0, 9)))
    elif choice == 2:
        content = zlib.compress(apply(BYTES, pixels, rng))
    else:
        middle = rng.randrange(len(content) + 1)
        found.insert(index + 1, (kind, content[middle:]))
        content = content[:middle]
    found[index] = (kind, content)
    return png_of(found, rng)


def mutate_chunks(data: bytes, rng: Random) -> bytes:
    """Change, remove, repeat, move or add chunks of a PNG file."""
    found, kind = chunks(data), rng.randrange(5)
    if not found:
        raise Malformed("no chunks")
    index = rng.randrange(len(found))
    name, content = found[index]
    if kind == 0:
        found[index] = (name, apply((*BYTES, mutate_ifd) if name == b"eXIf" else BYTES, content, rng))
    elif kind == 1:
        del found[index]
    elif kind == 2:
        found.insert(rng.randrange(len(found) + 1), (name, content))
    elif kind == 3:
        found.insert(rng.randrange(len(found) + 1), found.pop(index))
    else:
        found.insert(rng.randrange(1, len(found) + 1), new_chunk(rng))
    return png_of(found, rng)


@functools.cache
def zeros(size: int) -> bytes:
    """Return compressed zeros."""
    return zlib.compress(bytes(size))


def new_chunk(rng: Random) -> Chunk:
    """Return a chunk of a type that Pillow reads."""
    bomb = zeros(rng.choice((10, 1 << 20, 1 << 24)))
    size = rng.choice((0, 1, 3, 4, 9, 13, 256, 768, 1000))
    made = (
        (b"zTXt", b"a\0\0" + bomb),
        (b"iTXt", b"a\0\1\0\0\0" + bomb),
        (b"iCCP", b"a\0\0" + bomb),
        (b"tEXt", b"a\0" + b"x" * rng.choice((1, 1 << 19))),
        (b"eXIf", rng.choice((b"II*\0", b"MM\0*")) + integer(rng, 4) + rng.randbytes(30)),
        (b"acTL", integer(rng, 4, ">") + integer(rng, 4, ">")),
        (b"fcTL", b"".join(integer(rng, 4, ">") for _ in range(5)) + integer(rng, 4) + b"\0\0"),
    )
    if rng.random() < 0.5:
        return rng.choice(made)
    name = rng.choice(
        (b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"fdAT", b"IDAT", b"IEND", b"IHDR", b"XXXX", b"xx\0x", b"CgBI")
    )
    return name, rng.randbytes(size)


PNG: tuple[Mutator, ...] = (mutate_ihdr, mutate_ihdr, mutate_idat, mutate_chunks, mutate_chunks, *BYTES[:4])

# ------------------------------------------------------------------------------------------------ TIFF and EXIF


def mutate_ifd(data: bytes, rng: Random) -> bytes:
    """Change the tag, the type, the number or the value of an entry of a TIFF directory, or the place of a directory."""
    start = max(data.find(b"II*\0"), data.find(b"MM\0*"))
    if start < 0 or len(data) < start + 8:
        raise Malformed("no TIFF header")
    order = "<" if data[start : start + 1] == b"I" else ">"
    (offset,) = struct.unpack(f"{order}I", data[start + 4 : start + 8])
    if rng.random() < 0.1:
        return data[: start + 4] + integer(rng, 4, order) + data[start + 8 :]
    place = start + offset
    if place + 2 > len(data):
        raise Malformed("no directory")
    (count,) = struct.unpack(f"{order}H", data[place : place + 2])
    entry = place + 2 + 12 * rng.randrange(max(count, 1))
    position, width = rng.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 2), (10, 2)))
    value = integer(rng, width, order)
    if position == 2:
        value = struct.pack(f"{order}H", rng.randrange(20))
    if rng.random() < 0.05:
        entry, position, width, value = place, 0, 2, integer(rng, 2, order)
    return data[: entry + position] + value + data[entry + position + width :]


TIFF: tuple[Mutator, ...] = (*[mutate_ifd] * 5, *BYTES)

# ------------------------------------------------------------------------------------------------ JPEG and others


def mutate_segment(data: bytes, rng: Random) -> bytes:
    """Change the marker, the length or the content of a segment of a JPEG file, or remove or repeat the segment."""
    found, start = [], 2
    while start + 4 <= len(data) and data[start] == 0xFF:
        (length,) = struct.unpack(">H", data[start + 2 : start + 4])
        found.append((start, start + 2 + length))
        if data[start + 1] == 0xDA:
            break
        start += 2 + length
    if not found:
        raise Malformed("not a JPEG file")
    first, last = rng.choice(found)
    kind, segment = rng.randrange(5), data[first:last]
    if kind == 0:
        segment = segment[:2] + integer(rng, 2, ">") + segment[4:]
    elif kind == 1:
        segment = segment[:1] + bytes([rng.randrange(0xC0, 0x100)]) + segment[2:]
    elif kind == 2:
        segment = segment * rng.choice((0, 2, 50))
    else:
        content = apply((mutate_ifd, *BYTES) if b"Exif" in segment else BYTES, segment[4:], rng)
        segment = segment[:2] + struct.pack(">H", min(len(content) + 2, 65535)) + content
    return data[:first] + segment + data[last:]


JPEG: tuple[Mutator, ...] = (*[mutate_segment] * 5, *BYTES)
PNM: tuple[Mutator, ...] = (*BYTES, *TEXT)
WEBP: tuple[Mutator, ...] = (mutate_ifd, *BYTES)
