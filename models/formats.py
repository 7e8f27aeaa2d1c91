"""Formats of audio files that can be written, and their limits. Needs nothing but the standard library."""

from typing import NamedTuple

from models.errors import FormatUnsupported


class Format(NamedTuple):
    """A file format and its limits. `bit_depths` is empty where the codec has none; `rates` is None where
    `check_format` decides; `channels` is the largest number."""

    extension: str
    content_type: str
    bit_depths: tuple[int, ...]
    default_bit_depth: int | None
    channels: int
    rates: tuple[int, ...] | None = None


_MPEG_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
FORMATS: dict[str, Format] = {
    "wav": Format("wav", "audio/wav", (16, 24, 32), 32, 65535),
    "flac": Format("flac", "audio/flac", (16, 24), 24, 8),
    "ogg": Format("ogg", "audio/ogg", (), None, 2),
    "mp3": Format("mp3", "audio/mpeg", (), None, 2, _MPEG_RATES),
    "opus": Format("opus", "audio/ogg; codecs=opus", (), None, 2, (48000,)),
    "m4a": Format("m4a", "audio/mp4", (), None, 2, (*_MPEG_RATES, 64000, 88200, 96000)),
}


def content_type(format: str) -> str:
    """Return the media type of a file in `format`. Raises FormatUnsupported for an unknown one."""
    return find_format(format).content_type


def check_bit_depth(format: str, bit_depth: int | None) -> Format:
    """Return the format with this name. Raises FormatUnsupported if it is unknown or lacks the bit depth."""
    known = find_format(format)
    if bit_depth is not None and bit_depth not in known.bit_depths:
        allowed = ", ".join(map(str, known.bit_depths)) or "none can be chosen"
        raise FormatUnsupported(f"{format} has no bit depth of {bit_depth} ({allowed})")
    return known


def find_format(format: str) -> Format:
    """Return the format with this name. Raises FormatUnsupported for an unknown one."""
    if format not in FORMATS:
        raise FormatUnsupported(f"unknown format {format!r}; known are {', '.join(FORMATS)}")
    return FORMATS[format]
