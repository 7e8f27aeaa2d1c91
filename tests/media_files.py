"""Media files for tests, generated: valid audio, and files that are not audio."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

Samples = NDArray[np.float32]


def noise(frames: int, channels: int = 2, seed: int = 0) -> Samples:
    """Return noise below a sixth of the rate (channels, frames), peak 0.5: codecs preserve it, with a unique lag."""
    size = max(frames, 512)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal((channels, size)))
    spectrum[:, size // 6 :] = 0
    spectrum[:, : size // 100] = 0
    sound = np.fft.irfft(spectrum, size)[:, :frames]
    return (0.5 * sound / np.abs(sound).max()).astype(np.float32)


def lag(reference: Samples, other: Samples) -> int:
    """Return the delay of `other` after `reference` in samples, both (n,)."""
    size = 1 << (len(reference) + len(other)).bit_length()
    likeness = np.fft.irfft(np.fft.rfft(other, size) * np.conj(np.fft.rfft(reference, size)), size)
    best = int(np.argmax(likeness))
    return best if best < size // 2 else best - size


def write_sound(path: Path, sound: Samples, rate: int, subtype: str) -> None:
    """Write a file by libsndfile, in the format of its suffix."""
    soundfile.write(path, sound.T, rate, subtype=subtype)


def write_packets(path: Path, sound: Samples, rate: int, muxer: str, codec: str, **options: str) -> None:
    """Write a file by FFmpeg's own muxers and encoders, with their defaults."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[sound.shape[0]]
    with av.open(str(path), "w", format=muxer, container_options=options) as container:
        stream = cast(Any, container.add_stream(codec, rate=rate))
        stream.codec_context.layout = layout
        stream.codec_context.format = "flt" if codec == "libopus" else "fltp"
        stream.codec_context.open()
        _send(container, stream, sound, rate, layout)


def write_tracks(path: Path, sounds: list[Samples], rate: int) -> None:
    """Write a QuickTime file with a track of stereo PCM for each sound."""
    with av.open(str(path), "w", format="mov") as container:
        streams = [cast(Any, container.add_stream("pcm_s16le", rate=rate)) for _ in sounds]
        for stream in streams:
            stream.codec_context.layout, stream.codec_context.format = "stereo", "s16"
            stream.codec_context.open()
        for stream, sound in zip(streams, sounds, strict=True):
            _send(container, stream, cast(Any, sound * 32767).astype(np.int16), rate, "stereo")


def write_undecodable_packets(path: Path, count: int, then: Samples | None = None) -> None:
    """Write AAC in Matroska: `count` packets that cannot be decoded, 18 bytes each, then those of `then` at 48 kHz."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = cast(Any, container.add_stream("aac", rate=48000))
        stream.codec_context.layout, stream.codec_context.format = "stereo", "fltp"
        stream.codec_context.open()
        for number in range(count):
            packet = av.Packet(bytes(12))
            packet.stream, packet.time_base = stream, Fraction(1, 48000)
            packet.pts = packet.dts = number * 1024
            container.mux(packet)
        if then is not None:
            _send(container, stream, then, 48000, "stereo", count * 1024)


def write_video(path: Path, sound: Samples | None, rate: int = 48000) -> None:
    """Write a second of MPEG-4 video in mp4, with an AAC track unless `sound` is None."""
    with av.open(str(path), "w", format="mp4") as container:
        picture = cast(Any, container.add_stream("mpeg4", rate=25))
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        track = None
        if sound is not None:
            track = cast(Any, container.add_stream("aac", rate=rate))
            track.codec_context.layout, track.codec_context.format = "stereo", "fltp"
            track.codec_context.open()
        for index in range(25):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts = index
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        if track is not None and sound is not None:
            _send(container, track, sound, rate, "stereo")


def _send(container: Any, stream: Any, sound: Samples, rate: int, layout: str, first: int = 0) -> None:
    size = stream.codec_context.frame_size or 1024
    kind = stream.codec_context.format.name
    for start in range(0, sound.shape[1], size):
        block = sound[:, start : start + size]
        planes = block if kind.endswith("p") else block.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes), format=kind, layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, first + start, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def wav_bytes(samples: bytes, channels: int, rate: int, bits: int, tag: int = 1, said: int | None = None) -> bytes:
    """Return a WAV file with the given header; `said` is the data chunk's declared length, if not the true one."""
    frame = channels * bits // 8
    layout = struct.pack("<HHIIHH", tag, channels, rate, rate * frame & 0xFFFFFFFF, frame & 0xFFFF, bits)
    length = len(samples) if said is None else said
    body = b"WAVEfmt " + struct.pack("<I", 16) + layout + b"data" + struct.pack("<I", length) + samples
    return b"RIFF" + struct.pack("<I", len(body) & 0xFFFFFFFF) + body


def write_flac_silence(
    path: Path, seconds: int, rate: int = 44100, hide_length: bool = False, channels: int = 2
) -> None:
    """Write silence, optionally without its length in the header: stereo at 44.1 kHz takes 172 bytes a second, and an
    hour of it 4 s of a processor."""
    with soundfile.SoundFile(path, "w", rate, channels, "PCM_16", format="FLAC") as file:
        second = np.zeros((rate, channels), np.int16)
        for _ in range(seconds):
            file.write(second)
    if hide_length:
        content = bytearray(path.read_bytes())
        # STREAMINFO begins at byte 8; its last 36 bits before the MD5 count the samples.
        content[21] &= 0xF0
        content[22:26] = bytes(4)
        path.write_bytes(content)


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{name}\n#EXT-X-ENDLIST\n"


def not_media() -> dict[str, bytes]:
    """Return files that are not audio, by name."""
    return {
        "empty.wav": b"",
        "text.mp3": b"It was a dark and stormy night. " * 200,
        "archive.flac": b"PK\x03\x04\x14\x00\x00\x00\x08\x00" + bytes(range(256)) * 20,
        "picture.ogg": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00" * 9,
        "riff.wav": b"RIFF\xff\xff\xff\xffWAVE",
        "codec.wav": wav_bytes(bytes(4000), 2, 44100, 16, tag=0x7777),
        "zeros.aac": bytes(5000),
        "random.mp3": np.random.default_rng(4).bytes(20000),
        "playlist.mp3": PLAYLIST.format(name="secret.mp3").encode(),
        "script.m4a": b"<html><script>alert(1)</script></html>",
        "concat.wav": b"ffconcat version 1.0\nfile 'secret.mp3'\n",
    }
