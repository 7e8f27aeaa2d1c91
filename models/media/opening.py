"""Opening of untrusted media files: container, tracks and the decoder of one. Needs PyAV alone.

This module stands twice, as `app.media` and `models.media` may not import each other: a test requires that both texts
are the same. It belongs into a child process, since demuxers and decoders have had vulnerabilities.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.logging
from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet
from av.video.stream import VideoStream

from models.media.input_formats import (
    CODECS,
    CONTENT_TYPES,
    accepted,
    is_foreign_to_tags,
    refusal,
    short_mpeg_format,
    tag_bytes,
)

_MOST_TAGS = 8
_TOLD_BY_TAG = 145  # bytes of an mp3's Xing tag and LAME's addition to it
_UNKNOWN_BYTES = 0x7FFF0000  # and more: the length of a stream, which its recorder did not know
_EXTENSIBLE = 0xFFFE  # WAVE_FORMAT_EXTENSIBLE


class Refused(ValueError):
    """The file cannot be used; the message is a sentence for the client."""


@dataclass(frozen=True)
class Track:
    """An audio track. `number` counts a file's audio tracks from 1; `codec`: the name of the format, not of the
    decoder; `is_readable`: it is accepted. By the header: `sample_rate` in hertz and `channels` may be wrong, or 0."""

    number: int
    codec: str
    sample_rate: int
    channels: int
    language: str | None
    title: str | None
    is_readable: bool


def open_container(path: Path) -> InputContainer:
    """Open a file of an accepted container, whatever its name and the tags before it. Raises Refused."""
    if path.stat().st_size == 0:
        raise Refused("The file is empty.")
    with path.open("rb") as file:
        start = content = file.read(64)
        offset = 0
        for _ in range(_MOST_TAGS):
            if not tag_bytes(content):
                break
            offset += tag_bytes(content)
            file.seek(offset)
            content = file.read(64)
    # What follows a tag decides; FFmpeg takes it for MPEG audio.
    sentence = refusal(content)
    if sentence is not None:
        raise Refused(sentence)
    # The prefix prevents a name such as "concat:..." from being read as a protocol.
    name, protocols = f"file:{path.absolute()}", "file"
    if offset and is_foreign_to_tags(content):
        name, protocols = f"subfile,,start,{offset},end,0,,:{path.absolute()}", "file,subfile"
    options = {
        "format_whitelist": ",".join(CONTENT_TYPES),
        "codec_whitelist": ",".join(CODECS),
        "protocol_whitelist": protocols,
    }
    av.logging.set_level(av.logging.PANIC)
    try:
        try:
            return av.open(name, "r", container_options=options, metadata_errors="replace")
        except InvalidDataError:
            format = short_mpeg_format(start)
            return av.open(name, "r", format=format, container_options=options, metadata_errors="replace")
    except FFmpegError as error:
        if isinstance(error, MemoryError | FileNotFoundError | PermissionError):
            raise
        if content[4:8] in (b"ftyp", b"mdat", b"wide"):
            raise Refused("The MP4 has no index (moov): it is cut off, or was still being recorded.") from error
        raise Refused(f"This is not a media file of an accepted kind. {accepted()}") from error


def list_tracks(container: InputContainer) -> list[Track]:
    """Return the audio tracks of a file."""
    return [_describe(number, stream) for number, stream in enumerate(container.streams.audio, 1)]


def choose_track(container: InputContainer, tracks: list[Track], number: int | None) -> Track:
    """Return the track with this number, or the first that can be read. Raises Refused."""
    if not tracks:
        if any(isinstance(stream, VideoStream) for stream in container.streams):
            raise Refused(f"This is a video without sound: it has no audio stream. {accepted()}")
        raise Refused(f"The file has no audio stream that can be decoded. {accepted()}")
    if number is None:
        readable = next((track for track in tracks if track.is_readable), None)
        if readable is None:
            raise Refused(f"The codec {tracks[0].codec} is not accepted. {accepted()}")
        return readable
    if not 1 <= number <= len(tracks):
        raise Refused(f"There is no track {number}: the file has {len(tracks)}.")
    if not tracks[number - 1].is_readable:
        raise Refused(f"Track {number} has the codec {tracks[number - 1].codec}, which is not accepted.")
    return tracks[number - 1]


def require_clear(container: InputContainer, stream: AudioStream, packet: Packet | None = None) -> None:
    """Require that a track is not encrypted, by its headers or by a packet that cannot be decoded. Raises Refused."""
    codec: AudioCodecContext | None = stream.codec_context
    if (
        (codec is not None and codec.codec_tag in ("drms", "enca"))
        or any(name.startswith("ASF_Protection") for name in container.metadata)
        or (packet is not None and packet.has_sidedata("encryption_info"))
    ):
        raise Refused("The recording is encrypted (DRM).")


def _describe(number: int, stream: AudioStream) -> Track:
    codec: AudioCodecContext | None = stream.codec_context
    return Track(
        number=number,
        codec=codec.codec.canonical_name if codec is not None else "unknown",
        sample_rate=codec.sample_rate if codec is not None else 0,
        channels=codec.channels if codec is not None else 0,
        language=stream.metadata.get("language") if stream.metadata.get("language") != "und" else None,
        title=stream.metadata.get("title"),
        is_readable=codec is not None and codec.name in (*CODECS, "pcm_f24le"),
    )


def open_decoder(path: Path, container: InputContainer, stream: AudioStream) -> tuple[AudioCodecContext, float]:
    """Return the decoder of a stream, and the factor by which FFmpeg's duration of it is wrong. Raises Refused.

    FFmpeg reads the samples of RIFX, whose byte order is big-endian, as little-endian ones, and integers of 24 bits in
    32 (WAVE_FORMAT_EXTENSIBLE) as the floats of an old editor.
    """
    codec: Any = stream.codec_context
    name, stretch = codec.name, 1.0
    if container.format.name == "wav":
        with path.open("rb") as file:
            head = file.read(4096)
        if name == "pcm_f24le":
            if head[head.find(b"fmt ") + 8 :][:2] != struct.pack("<H", _EXTENSIBLE):
                raise Refused(f"The codec {name} is not accepted. {accepted()}")
            name, stretch = "pcm_s32le", 0.75
        if head[:4] == b"RIFX" and name.startswith("pcm_") and name.endswith("le"):
            name = f"{name.removesuffix('le')}be"
    decoder: Any = codec
    if name != codec.name:
        decoder = av.CodecContext.create(name, "r")
        decoder.sample_rate, decoder.layout = codec.sample_rate, codec.layout
    elif container.format.name == "mp3":
        # The stream's own begins with the rate of what FFmpeg has read last, which may be another.
        decoder = av.CodecContext.create(name, "r")
    decoder.thread_count = 1
    return decoder, stretch


def tagged_seconds(stream: AudioStream) -> float | None:
    """Return the end of a Matroska track by its tag, which muxers write as hours:minutes:seconds, or None."""
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").strip("\0 ").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def wav_seconds(path: Path, seconds: float | None) -> float | None:
    """Return the duration that a WAV's data chunk tells, where FFmpeg has found `seconds` of it; None if it tells
    none."""
    with path.open("rb") as file:
        head = file.read(4096)
    place = head.find(b"data")
    if seconds is None or place < 0 or len(head) < place + 8:
        return None
    said = int.from_bytes(head[place + 4 : place + 8], "big" if head[:4] == b"RIFX" else "little")
    there = path.stat().st_size - place - 8
    # Recorders write the largest number that they can until they know.
    return seconds * said / there if there < said < _UNKNOWN_BYTES and there > 0 else None


def is_soundless(content: bytes) -> bool:
    """Whether a packet is a tag, or the table that begins an mp3."""
    return content.startswith((b"ID3", b"TAG")) or b"Xing" in content[:64] or b"Info" in content[:64]


def xing_seconds(path: Path, rate: int) -> float | None:
    """Return the duration that the first frame of an mp3 of this sample rate tells (the Xing or Info tag), without the
    encoder's delay and padding, or None: FFmpeg forgets it where the file's size is another."""
    with path.open("rb") as file:
        file.seek(tag_bytes(file.read(64)))
        head = file.read(1024)
    place = max(head.find(b"Xing"), head.find(b"Info"))
    if place < 0 or len(head) < place + _TOLD_BY_TAG or not rate:
        return None
    flags, frames = struct.unpack_from(">II", head, place + 4)
    if not flags & 1:
        return None
    samples = frames * (1152 if rate >= 32000 else 576)
    if flags & 15 == 15:
        both = int.from_bytes(head[place + 141 : place + 144], "big")
        samples -= (both >> 12) + (both & 0xFFF)
    return samples / rate
