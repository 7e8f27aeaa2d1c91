"""PNG images with a palette (PNG specification, third edition)."""

import struct
import zlib
from collections.abc import Sequence

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")
_PALETTE_OF_BYTES = (8, 3, 0, 0, 0)  # bit depth, color type; compression, filter and interlace methods


def encode(rows: Sequence[bytes], palette: Sequence[tuple[int, int, int, int]]) -> bytes:
    """Return a PNG of equally long rows of indexes into a palette of at most 256 colors: red, green, blue, alpha."""
    filtered = b"".join(b"\0" + row for row in rows)
    chunks = (
        (b"IHDR", _HEADER.pack(len(rows[0]), len(rows), *_PALETTE_OF_BYTES)),
        (b"PLTE", b"".join(bytes(color[:3]) for color in palette)),
        (b"tRNS", bytes(color[3] for color in palette)),
        (b"IDAT", zlib.compress(filtered)),
        (b"IEND", b""),
    )
    return SIGNATURE + b"".join(_chunk(name, content) for name, content in chunks)


def read_size(image: bytes) -> tuple[int, int]:
    """Return width and height by the header of an image. Raises ValueError if it is not one of `encode`."""
    start, end = len(SIGNATURE) + 8, len(SIGNATURE) + 8 + _HEADER.size
    if not image.startswith(SIGNATURE) or len(image) < end:
        raise ValueError("not a PNG")
    width, height, *kind = _HEADER.unpack(image[start:end])
    if tuple(kind) != _PALETTE_OF_BYTES:
        raise ValueError("a PNG of another kind")
    return width, height


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
