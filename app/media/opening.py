"""Opening of untrusted media files: container, tracks and the decoder of one. Needs PyAV alone.

This module stands twice, as `app.media` and `models.media` may not import each other: a test requires that both texts
are the same. It belongs into a child process, since demuxers and decoders have had vulnerabilities.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.logging
import av.subtitles.stream  # PyAV imports it with its first file: in every child of a sandbox anew
from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet
from av.video.stream import VideoStream

from app.media.headers import skip_tags, wav_is_extensible, wav_is_plain
from app.media.input_formats import (
    CODECS,
    CONTENT_TYPES,
    accepted,
    is_foreign_to_tags,
    refusal,
    short_mpeg_format,
)

_MOST_LISTED = 8  # channels, in a sentence
# FFmpeg's channels, by their bits in its native order.
_NATIVE_ORDER = (
    *("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR", "TC", "TFL", "TFC", "TFR", "TBL", "TBC"),
    *("TBR", "DL", "DR", "WL", "WR", "SDL", "SDR", "LFE2", "TSL", "TSR", "BFC", "BFL", "BFR", "SSL", "SSR", "TTL"),
    "TTR",
)


class Refused(ValueError):
    """The file cannot be used; the message is a sentence for the client."""


@dataclass(frozen=True)
class Track:
    """An audio track. `number` counts a file's audio tracks from 1; `codec`: the name of the format, not of the
    decoder; `refusal`: a sentence why it is not accepted, or None. By the header: `sample_rate` in hertz and `channels`
    may be wrong, or 0."""

    number: int
    codec: str
    sample_rate: int
    channels: int
    language: str | None
    title: str | None
    refusal: str | None

    @property
    def is_readable(self) -> bool:
        """Whether it is accepted."""
        return self.refusal is None


def open_container(path: Path) -> InputContainer:
    """Open a file of an accepted container, whatever its name and the tags before it. Raises Refused."""
    if path.stat().st_size == 0:
        raise Refused("The file is empty.")
    with path.open("rb") as file:
        offset, content = skip_tags(file)
        file.seek(0)
        start = file.read(64)
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
    # FFmpeg looks for another codec in 32 packets of 16-bit samples, which takes 20 ms; one that begins at once shows
    # in 4 packets.
    if content[:4] == b"RIFF" and wav_is_plain(path):
        options["max_probe_packets"] = "4"
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
            raise Refused(str(tracks[0].refusal))
        return readable
    if not 1 <= number <= len(tracks):
        raise Refused(f"There is no track {number}: the file has {len(tracks)}.")
    if not tracks[number - 1].is_readable:
        raise Refused(f"Track {number} cannot be read. {tracks[number - 1].refusal}")
    return tracks[number - 1]


def require_clear(container: InputContainer, stream: AudioStream, packet: Packet | None = None) -> None:
    """Require that a track is not encrypted, by its headers or by a packet that cannot be decoded. Raises Refused."""
    codec: AudioCodecContext | None = stream.codec_context
    if (
        (codec is not None and _codec_tag(codec) in ("drms", "enca"))
        or any(name.startswith("ASF_Protection") for name in container.metadata)
        or (packet is not None and packet.has_sidedata("encryption_info"))
    ):
        raise Refused("The recording is encrypted (DRM).")


def _codec_tag(codec: AudioCodecContext) -> str:
    """Return the container's name for a codec; an empty one for a number that PyAV takes for letters, as AVI has."""
    try:
        return codec.codec_tag
    except UnicodeDecodeError:
        return ""


def _describe(number: int, stream: AudioStream) -> Track:
    codec: AudioCodecContext | None = stream.codec_context
    name = codec.codec.canonical_name if codec is not None else "unknown"
    channels = _channel_names(codec) if codec is not None else []
    sentence = None
    if codec is None or codec.name not in (*CODECS, "pcm_f24le"):
        sentence = f"The codec {name} is not accepted. {accepted()}"
    elif _is_custom(channels):
        sentence = (
            f"The recording's channels are in an order that is not accepted ({', '.join(channels[:_MOST_LISTED])}): "
            "export it as WAV or FLAC."
        )
    return Track(
        number=number,
        codec=name,
        sample_rate=codec.sample_rate if codec is not None else 0,
        channels=len(channels),
        language=stream.metadata.get("language") if stream.metadata.get("language") != "und" else None,
        title=stream.metadata.get("title"),
        refusal=sentence,
    )


def _channel_names(codec: AudioCodecContext) -> list[str]:
    """Return FFmpeg's names of a stream's channels.

    PyAV's layout shares the list of channels in an order of their own (CAF, MOV and AIFF may have one) with the codec,
    and both free it, which ends the process: such a layout must be read once only, and never be freed.
    """
    layout = codec.layout
    names = [channel.name for channel in layout.channels]
    if _is_custom(names):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
    return names


def _is_custom(channels: list[str]) -> bool:
    """Whether channels are neither in FFmpeg's native order, nor unknown or ambisonic."""
    if all(name == "NONE" or name.startswith("AMBI") for name in channels):
        return False
    places = [_NATIVE_ORDER.index(name) if name in _NATIVE_ORDER else -1 for name in channels]
    return -1 in places or sorted(set(places)) != places


def open_decoder(path: Path, container: InputContainer, stream: AudioStream) -> tuple[AudioCodecContext, float]:
    """Return the decoder of a stream, and the factor by which FFmpeg's duration of it is wrong. Raises Refused.

    FFmpeg reads the samples of RIFX, whose byte order is big-endian, as little-endian ones, and integers of 24 bits in
    32 (WAVE_FORMAT_EXTENSIBLE) as the floats of an old editor.
    """
    codec: Any = stream.codec_context
    name, stretch = codec.name, 1.0
    if container.format.name == "wav":
        with path.open("rb") as file:
            _, head = skip_tags(file)
        if name == "pcm_f24le":
            if not wav_is_extensible(path):
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
