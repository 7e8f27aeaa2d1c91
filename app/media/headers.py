"""What the headers of untrusted files tell of their length and format, where FFmpeg forgets or misreads it.

This module stands twice, as `app.media` and `models.media` may not import each other: a test requires that both texts
are the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from av.audio.stream import AudioStream

from app.media.input_formats import tag_bytes

_MOST_TAGS = 8
_MOST_CHUNKS = 256  # of a RIFF file, before its sound
_UNKNOWN_BYTES = 0x7FFF0000  # and more: the length of a stream, which its recorder did not know
_TOLD_BY_TAG = 145  # bytes of an mp3's Xing tag and LAME's addition to it
_MOST_PROBED = 6_000_000  # bytes; FFmpeg ends after 5 MB
_PROBED_SECONDS = 3.2  # of 16-bit samples, in which FFmpeg looks for another codec: 32 packets of at most 0.1 s
# The sync words of DTS: two byte orders of its frames in 16 and in 14 bits; of its extension alone.
_DTS = (
    *(b"\x7f\xfe\x80\x01", b"\xfe\x7f\x01\x80", b"\x1f\xff\xe8\x00", b"\xff\x1f\x00\xe8"),
    b"\x64\x58\x20\x25",
)
_EXTENSIBLE = struct.pack("<H", 0xFFFE)  # WAVE_FORMAT_EXTENSIBLE
_MOST_ATOMS = 256  # of an MP4, on one level
_MOST_EDITS = 4096


def skip_tags(file: BinaryIO) -> tuple[int, bytes]:
    """Return where a file's content begins after its ID3v2 tags, and the first 64 bytes of it."""
    offset, content = 0, file.read(64)
    for _ in range(_MOST_TAGS):
        size = tag_bytes(content)
        if not size:
            break
        offset += size
        file.seek(offset)
        content = file.read(64)
    return offset, content


# RIFF WAVE


def wav_is_extensible(path: Path) -> bool:
    """Whether a WAV's format is WAVE_FORMAT_EXTENSIBLE."""
    with path.open("rb") as file:
        for name, place, _ in _riff_chunks(file):
            if name == b"fmt ":
                file.seek(place)
                return file.read(2) == _EXTENSIBLE
    return False


def wav_seconds(path: Path, seconds: float | None) -> float | None:
    """Return the duration that a WAV's data chunk tells, where FFmpeg has found `seconds` of it; None if it tells
    none."""
    with path.open("rb") as file:
        there, long_size = path.stat().st_size, None
        for name, place, said in _riff_chunks(file):
            if name == b"ds64":
                file.seek(place + 8)
                long_size = int.from_bytes(file.read(8), "little")
            if name != b"data":
                continue
            size = long_size if said == 0xFFFFFFFF and long_size is not None else said
            there -= place
            # Recorders write the largest number that they can until they know.
            is_known = size < _UNKNOWN_BYTES or size == long_size
            return seconds * size / there if seconds is not None and is_known and 0 < there < size else None
    return None


def wav_is_plain(path: Path) -> bool:
    """Whether a WAV tells samples of 16 bits, and FFmpeg need not look far into them for another codec: no sync word of
    DTS, which may follow silence, and no beginning of MPEG audio, before which zeros or a tag may stand."""
    rate, channels = 0, 0
    with path.open("rb") as file:
        for name, place, _ in _riff_chunks(file):
            file.seek(place)
            if name == b"fmt ":
                tag, channels, rate, _, frame_bytes, bits = struct.unpack("<HHIIHH", file.read(16).ljust(16, b"\0"))
                if tag not in (1, 0xFFFE) or bits != 16 or frame_bytes != 2 * channels:
                    return False
            elif name == b"data":
                probed = file.read(min(int(_PROBED_SECONDS * rate * 2 * channels), _MOST_PROBED))
                sound = probed.lstrip(b"\0")
                is_mpeg = sound[:3] == b"ID3" or (sound[:1] == b"\xff" and sound[1:2] >= b"\xe0")
                return bool(sound) and not is_mpeg and not any(word in sound for word in _DTS)
    return False


def _riff_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each chunk of a RIFF file, where its content begins, and the size that it tells."""
    place, start = skip_tags(file)
    order = "big" if start[:4] == b"RIFX" else "little"
    place += 12
    for _ in range(_MOST_CHUNKS):
        file.seek(place)
        header = file.read(8)
        if len(header) < 8:
            return
        size = int.from_bytes(header[4:], order)
        yield header[:4], place + 8, size
        place += 8 + size + size % 2


# MPEG audio


def is_soundless(content: bytes) -> bool:
    """Whether a packet is a tag, or the table that begins an mp3."""
    return content.startswith((b"ID3", b"TAG")) or _table_place(content) is not None


def xing_seconds(path: Path, rate: int) -> float | None:
    """Return the duration that the first frame of an mp3 of this sample rate tells (the Xing or Info tag), without the
    encoder's delay and padding, or None: FFmpeg forgets it where the file's size is another."""
    with path.open("rb") as file:
        offset, _ = skip_tags(file)
        file.seek(offset)
        head = file.read(1024)
    place = _table_place(head)
    if place is None or len(head) < place + _TOLD_BY_TAG or not rate:
        return None
    flags, frames = struct.unpack_from(">II", head, place + 4)
    if not flags & 1:
        return None
    samples = frames * (1152 if rate >= 32000 else 576)
    if flags & 15 == 15:
        both = int.from_bytes(head[place + 141 : place + 144], "big")
        samples -= (both >> 12) + (both & 0xFFF)
    return samples / rate


def _table_place(frame: bytes) -> int | None:
    """Return where the Xing or Info tag stands in a frame of MPEG layer III, after its side information; or None."""
    if len(frame) < 4 or frame[0] != 0xFF or frame[1] & 0xE6 != 0xE2:
        return None
    is_first_version, is_mono = frame[1] & 0x18 == 0x18, frame[3] >> 6 == 3
    place = 4 + {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}[is_first_version, is_mono]
    return place if frame[place : place + 4] in (b"Xing", b"Info") else None


# MP4 and MOV


def edited_seconds(path: Path, track: int) -> float | None:
    """Return the end of the track with this id by its edit list, the empty edits before it included; None without one.

    FFmpeg tells the shorter one of this and of the media's duration, which counts from the track's beginning.
    """
    with path.open("rb") as file:
        start, _ = skip_tags(file)
        for movie in _atoms(file, b"moov", start, path.stat().st_size):
            scale = next((_after_times(file, *header) for header in _atoms(file, b"mvhd", *movie)), 0)
            for found in _atoms(file, b"trak", *movie):
                if scale and any(_after_times(file, *header) == track for header in _atoms(file, b"tkhd", *found)):
                    edits = (each for edits in _atoms(file, b"edts", *found) for each in _atoms(file, b"elst", *edits))
                    durations = [duration for each in edits for duration in _edit_durations(file, *each)]
                    # Before fragments, an edit of no duration is one to their end.
                    return sum(durations) / scale if durations and all(durations) else None
    return None


def _atoms(file: BinaryIO, name: bytes, place: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield where the content of each atom of this name begins and ends."""
    for _ in range(_MOST_ATOMS):
        file.seek(place)
        header = file.read(16)
        if len(header) < 8 or place >= end:
            return
        size, skipped = int.from_bytes(header[:4], "big"), 8
        if size == 1:
            size, skipped = int.from_bytes(header[8:], "big"), 16
        elif size == 0:
            size = end - place
        if size < skipped:
            return
        if header[4:8] == name:
            yield place + skipped, min(place + size, end)
        place += size


def _after_times(file: BinaryIO, place: int, end: int) -> int:
    """Return what follows the times of creation and change in a header: the time scale of `mvhd`, the id of `tkhd`."""
    file.seek(place)
    content = file.read(min(end - place, 24))
    return int.from_bytes(content[20:24] if content[:1] == b"\1" else content[12:16], "big")


def _edit_durations(file: BinaryIO, place: int, end: int) -> list[int]:
    file.seek(place)
    content = file.read(min(end - place, 8 + 20 * _MOST_EDITS))
    form = ">Q8x4x" if content[:1] == b"\1" else ">I4x4x"
    count = min(int.from_bytes(content[4:8], "big"), (len(content) - 8) // struct.calcsize(form))
    return [struct.unpack_from(form, content, 8 + number * struct.calcsize(form))[0] for number in range(count)]


# Matroska


def tagged_seconds(stream: AudioStream) -> float | None:
    """Return the end of a Matroska track by its tag, which muxers write as hours:minutes:seconds, or None."""
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").strip("\0 ").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None
