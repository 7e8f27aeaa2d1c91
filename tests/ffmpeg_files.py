"""Media files as phones, editors, recorders and damage make them: each by one line of Debian's ffmpeg, or by hand.

`TRUTH` is FFmpeg's own decode of a file, to compare with.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import struct
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np

from tests import media_files
from tests.media_files import Samples, noise

RATE = 48000
SYNC = "aresample=async=1:first_pts=0"  # silence in gaps, and from 0 on


def run(line: str, folder: Path) -> None:
    """Run ffmpeg with a line of arguments, in a folder."""
    command = ["ffmpeg", "-v", "error", "-y", "-nostdin", *shlex.split(line)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def truth(path: Path, channels: int, filters: str | None = None, options: str = "") -> Samples:
    """Return FFmpeg's own decode (channels, n) of a file."""
    chosen = [] if filters is None else ["-af", filters]
    command = ["ffmpeg", "-v", "fatal", "-nostdin", "-i", path, *shlex.split(options), *chosen, "-f", "f32le", "-"]
    raw = subprocess.run(command, capture_output=True, check=False).stdout
    return np.frombuffer(raw, np.float32).reshape(-1, channels).T


class Folder:
    """A folder of sources, and of files made from them, each made once; nobody may change one.

    Several processes may have the same folder: a file has its name only when it is complete.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for name, channels in (("mono", 1), ("stereo", 2), ("surround", 8)):
            sound = noise(RATE, channels)
            self._write(f"{name}.wav", lambda path, sound=sound: media_files.write_sound(path, sound, RATE, "PCM_16"))
        self._write_by_ffmpeg("picture.mp4", "-f lavfi -i testsrc=d=4:s=64x48:r=25 -pix_fmt yuv420p -c:v mpeg4")
        self._write_by_ffmpeg("long.wav", "-stream_loop 7 -i stereo.wav -c:a pcm_s16le -t 8")

    @classmethod
    def of_checkout(cls) -> Folder:
        """Return the folder of all tests of this checkout: to make all its files takes 11 s of a processor.

        Its name follows from what makes its files.
        """
        version = subprocess.run(["ffmpeg", "-version"], capture_output=True, check=True).stdout
        makers = [Path(made_by).read_bytes() for made_by in (__file__, media_files.__file__)]
        digest = hashlib.sha256(b"".join([version, av.__version__.encode(), *makers])).hexdigest()
        path = Path(__file__).parents[1] / ".cache" / "media-files" / digest[:16]
        path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    def make(self, name: str) -> Path:
        """Return a file by its name in `LINES` or `MAKERS`."""
        if name in LINES:
            if not (self.path / name).exists():
                for source in set(LINES[name].split()) & LINES.keys():
                    self.make(source)
            return self._write_by_ffmpeg(name, LINES[name])
        return self._write(name, lambda path: path.write_bytes(MAKERS[name](self)))

    def _write_by_ffmpeg(self, name: str, line: str) -> Path:
        return self._write(name, lambda path: run(f"{line} {path.name}", self.path))

    def _write(self, name: str, write: Callable[[Path], object]) -> Path:
        path = self.path / name
        if not path.exists():
            unfinished = path.with_name(f"{os.getpid()}-{name}")
            write(unfinished)
            unfinished.replace(path)
        return path

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        return self.make(name).read_bytes()


# By ffmpeg
STEREO, SURROUND = "-i stereo.wav", "-i surround.wav"
SIX = "pan=5.1(side)|c0=c0|c1=c1|c2=c2|c3=c3|c4=c4|c5=c5"
LINES = {
    # Phones, recorders and editors
    "alac.caf": f"{STEREO} -c:a alac",
    "pcm.caf": f"{STEREO} -c:a pcm_s24be",
    "wma2.wma": f"{STEREO} -c:a wmav2",
    "wma1.wma": f"{STEREO} -c:a wmav1",
    "aac.ts": f"-i picture.mp4 {STEREO} -map 0:v -map 1:a -c:v copy -c:a aac",
    "mp2.ts": f"{STEREO} -c:a mp2",
    "mp2.mpg": f"{STEREO} -c:a mp2 -f mpeg",
    "ac3.vob": f"-i picture.mp4 {STEREO} -map 0:v -map 1:a -c:v mpeg2video -c:a ac3 -f vob",
    "mp3.avi": f"-i picture.mp4 {STEREO} -map 0:v -map 1:a -c:v copy -c:a libmp3lame",
    "pcm.avi": f"{STEREO} -c:a pcm_s16le",
    "aac.avi": f"{STEREO} -c:a aac",
    "flac.avi": f"{STEREO} -c:a flac",
    "aac.asf": f"{STEREO} -c:a aac",
    "aac.flv": f"{STEREO} -c:a aac",
    "mp3.flv": f"{STEREO} -ar 44100 -c:a libmp3lame",
    "pcm.au": f"{STEREO} -c:a pcm_s16be",
    "mulaw.au": f"{STEREO} -c:a pcm_mulaw",
    "a.ac3": f"{STEREO} -c:a ac3",
    "a.eac3": f"{STEREO} -c:a eac3",
    "a.wv": f"{STEREO} -c:a wavpack",
    "float.wv": f"{STEREO} -c:a wavpack -sample_fmt fltp",
    "a.tta": f"{STEREO} -c:a tta",
    "a.mp2": f"{STEREO} -c:a mp2",
    "mp2.mkv": f"{STEREO} -c:a mp2",
    "a.aifc": f"{STEREO} -c:a pcm_mulaw -f aiff",
    # Codecs that are left
    "a.w64": f"{STEREO} -c:a pcm_s24le",
    "ima.mov": f"{STEREO} -c:a adpcm_ima_qt",
    "ima.wav": f"{STEREO} -c:a adpcm_ima_wav",
    "ms.wav": f"{STEREO} -c:a adpcm_ms",
    "gsm.wav": "-i mono.wav -ar 8000 -c:a libgsm_ms",
    "alaw.wav": f"{STEREO} -c:a pcm_alaw",
    "u8.wav": f"{STEREO} -c:a pcm_u8",
    "s32le.wav": f"{STEREO} -c:a pcm_s32le",
    "f32le.wav": f"{STEREO} -c:a pcm_f32le",
    "f64le.wav": f"{STEREO} -c:a pcm_f64le",
    "s8.caf": f"{STEREO} -c:a pcm_s8",
    "s32be.aiff": f"{STEREO} -c:a pcm_s32be",
    "f32be.aiff": f"{STEREO} -c:a pcm_f32be",
    "f64be.aiff": f"{STEREO} -c:a pcm_f64be",
    # Channels
    "surround.m4a": f"{SURROUND} -c:a aac",
    "surround.aiff": f"{SURROUND} -c:a pcm_s16be",
    "surround.opus": f"{SURROUND} -c:a libopus -mapping_family 1",
    **{f"5.1.{end}": f"{SURROUND} -af {SIX} -c:a pcm_s16be" for end in ("caf", "mov", "aiff")},
    "surround-vorbis.mka": f"{SURROUND} -c:a libvorbis",
    "3.0.ogg": f"{SURROUND} -af pan=3.0|c0=c0|c1=c1|c2=c2 -c:a libvorbis",
    "5.0.ogg": f"{SURROUND} -af pan=5.0|c0=c0|c1=c1|c2=c2|c3=c3|c4=c4 -c:a libvorbis",
    "5.1.ogg": f"{SURROUND} -af pan=5.1|c0=c0|c1=c1|c2=c2|c3=c3|c4=c4|c5=c5 -c:a libvorbis",
    "6.1.ogg": f"{SURROUND} -af pan=6.1|c0=c0|c1=c1|c2=c2|c3=c3|c4=c4|c5=c5|c6=c6 -c:a libvorbis",
    "7.1.ogg": f"{SURROUND} -c:a libvorbis",
    "quad.wav": f"{SURROUND} -af pan=quad|c0=c0|c1=c1|c2=c2|c3=c3 -c:a pcm_s16le",
    "5.1.wav": f"{SURROUND} -af pan=5.1|c0=c0|c1=c1|c2=c2|c3=c3|c4=c4|c5=c5 -c:a pcm_s16le",
    "5.1(side).wav": f"{SURROUND} -af pan=5.1(side)|c0=c0|c1=c1|c2=c2|c3=c3|c4=c4|c5=c5 -c:a pcm_s16le",
    "7.1.wav": f"{SURROUND} -af pan=7.1|c0=c0|c1=c1|c2=c2|c3=c3|c4=c4|c5=c5|c6=c6|c7=c7 -c:a pcm_s16le",
    # Parts of chains
    "link0.ogg": f"{STEREO} -c:a libvorbis -serial_offset 1",
    "link1.ogg": "-i mono.wav -ac 2 -t 0.5 -c:a libvorbis -serial_offset 2",
    "link2.ogg": "-i mono.wav -ac 2 -t 0.3 -c:a libvorbis -serial_offset 3",
    "other-kind.ogg": "-i mono.wav -t 0.5 -ar 24000 -c:a libvorbis -serial_offset 4",
    "link0.opus": f"{STEREO} -c:a libopus -serial_offset 1",
    "link1.opus": "-i mono.wav -ac 2 -t 0.5 -c:a libopus -serial_offset 2",
    "stereo.mp3": f"{STEREO} -c:a libmp3lame",
    "mono.mp3": "-i mono.wav -c:a libmp3lame",
    "slow.mp3": f"{STEREO} -ar 44100 -c:a libmp3lame",
    "stereo.aac": f"{STEREO} -c:a aac",
    "mono.aac": "-i mono.wav -c:a aac",
    "slow.aac": f"{STEREO} -ar 44100 -c:a aac",
    "aac.wav": "-i long.wav -c:a aac",
    # Before tags
    "rf64.wav": f"{STEREO} -c:a pcm_s16le -rf64 always",
    "stereo.w64": f"{STEREO} -c:a pcm_s16le",
    "stereo.mka": f"{STEREO} -c:a pcm_s16le",
    "stereo.m4a": f"{STEREO} -c:a aac",
    "stereo.flac": f"{STEREO} -c:a flac",
    "stereo.aiff": f"{STEREO} -c:a pcm_s16be",
    # Clocks
    "long.webm": "-i long.wav -c:a libopus",
    "long.mkv": "-i long.wav -c:a aac",
    "long.mp4": "-i long.wav -c:a aac -movflags +faststart",
    "long.mp3": "-i long.wav -c:a libmp3lame",
    "long.flac": "-i long.wav -c:a flac",
    **{
        f"late.{end}": "-i picture.mp4 -itsoffset 2 -i stereo.m4a -map 0:v -map 1:a -c copy"
        for end in ("mkv", "mp4", "ts")
    },
    "live.webm": "-i gap.webm -c copy -live 1",
    "live.mka": "-i long.wav -c:a libmp3lame -b:a 32k -ar 24000 -live 1 -f matroska",
    "late.wmv": "-i picture.mp4 -itsoffset 1 -i stereo.wav -map 0:v -map 1:a -c:v wmv2 -c:a wmav2",
    "late.ogv": "-i picture.mp4 -itsoffset 1 -i stereo.wav -map 0:v -map 1:a -c:v libtheora -c:a libvorbis",
    "late-opus.ogv": "-i picture.mp4 -itsoffset 1 -i stereo.wav -map 0:v -map 1:a -c:v libtheora -c:a libopus",
    "late.mov": "-i picture.mp4 -itsoffset 1 -i long.wav -map 0:v -map 1:a -c:v copy -c:a pcm_s16le",
    **{
        f"far.{end}": f"{STEREO} -c:a {codec} -output_ts_offset 90000"
        for end, codec in (
            *(("mkv", "aac"), ("webm", "libopus"), ("opus", "libopus"), ("ogg", "libvorbis"), ("wma", "wmav2")),
            *(("flv", "aac"), ("ts", "aac"), ("mp4", "aac")),
        )
    },
    # Several tracks
    "dts-ac3.mkv": "-i mono.wav -i stereo.wav -map 0 -map 1 -c:a:0 dca -strict -2 -ac:a:0 2 -c:a:1 ac3",
    "truehd-aac.mkv": "-i mono.wav -i stereo.wav -map 0 -map 1 -c:a:0 truehd -ac:a:0 2 -strict -2 -c:a:1 aac",
    "dts.mkv": f"{STEREO} -c:a dca -strict -2",
    "obs.mkv": "-i mono.wav -i stereo.wav -i mono.wav -i mono.wav -map 0 -map 1 -map 2 -map 3 -c:a aac "
    "-metadata:s:a:1 title=Microphone -metadata:s:a:1 language=deu",
    # Refused
    "encrypted.mp4": f"{STEREO} -c:a aac -encryption_scheme cenc-aes-ctr "
    "-encryption_key 76a6c65c5ea762046bd749a2e632ccbb -encryption_kid a7e61c373e219033c21091fa607bf3b8",
    "silent-video.mkv": "-i picture.mp4 -c copy",
}
LINES["long.ogg"] = "-i long.wav -c:a libvorbis"
for _end in ("webm", "mkv", "mp4", "ogg"):
    LINES[f"gap.{_end}"] = rf"-i long.{_end} -c copy -bsf:a noise=drop=between(pts*tb\\,2\\,5)"


# By hand


def _join(*names: str) -> Callable[[Folder], bytes]:
    return lambda folder: b"".join(folder.read(name) for name in names)


def _tag(name: str) -> Callable[[Folder], bytes]:
    """Two ID3v2 tags, the second of a picture's size."""
    tags = b"".join(
        b"ID3\x04\0\0" + bytes((size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127)) + bytes(size)
        for size in (300, 20000)
    )
    return lambda folder: tags + folder.read(name)


def _cut(name: str, share: float) -> Callable[[Folder], bytes]:
    def cut(folder: Folder) -> bytes:
        content = folder.read(name)
        return content[: round(len(content) * share)]

    return cut


def _damage(name: str) -> Callable[[Folder], bytes]:
    """4000 random bytes in the middle."""

    def damage(folder: Folder) -> bytes:
        content = bytearray(folder.read(name))
        middle = len(content) // 2
        content[middle : middle + 4000] = np.random.default_rng(5).bytes(4000)
        return bytes(content)

    return damage


def extensible_wav(samples: Samples, bits: int, valid: int, mask: int) -> bytes:
    """Return a WAVE_FORMAT_EXTENSIBLE file of integers of `valid` bits, at the top of `bits`."""
    channels = len(samples)
    integers = np.rint(samples.T * 2.0 ** (valid - 1)).astype("<i4") << (32 - valid)
    content = np.ascontiguousarray(integers).view(np.uint8).reshape(-1, 4)[:, 4 - bits // 8 :].tobytes()
    frame = channels * bits // 8
    layout = struct.pack("<HHIIHHHHI", 0xFFFE, channels, RATE, RATE * frame, frame, bits, 22, valid, mask)
    layout += bytes.fromhex("0100000000001000800000aa00389b71")
    body = b"WAVEfmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(body)) + body


def rifx(samples: Samples) -> bytes:
    """Return a WAV whose numbers are big-endian."""
    content = np.ascontiguousarray(np.rint(samples.T * 32767).astype(">i2")).tobytes()
    channels = len(samples)
    layout = struct.pack(">HHIIHH", 1, channels, RATE, RATE * channels * 2, channels * 2, 16)
    body = b"WAVEfmt " + struct.pack(">I", 16) + layout + b"data" + struct.pack(">I", len(content)) + content
    return b"RIFX" + struct.pack(">I", len(body)) + body


def mp1(frames: int) -> bytes:
    """Return MPEG-1 layer I at 48 kHz, mono, 192 kbit/s: random samples in eight subbands."""
    chance, content = np.random.default_rng(7), b""
    for _ in range(frames):
        bits = "".join(f"{7 if band < 8 else 0:04b}" for band in range(32))  # allocation: 8 bits a sample
        bits += "".join(f"{10:06b}" for _ in range(8))  # scale factors
        bits += "".join(f"{number:08b}" for number in chance.integers(0, 255, 12 * 8))
        size = 12 * 192000 // RATE * 4
        header = 0xFFFF0000 | 6 << 12 | 1 << 10 | 3 << 6
        content += struct.pack(">I", header) + int(bits.ljust(8 * (size - 4), "0"), 2).to_bytes(size - 4, "big")
    return content


def amr_wide(frames: int) -> bytes:
    """Return AMR-WB at 12.65 kbit/s of random parameters."""
    chance = np.random.default_rng(8)
    return b"#!AMR-WB\n" + b"".join(b"\x14" + chance.bytes(31) + b"\0" for _ in range(frames))


def dsf(samples: Samples, bits_per_sample: int = 1) -> bytes:
    """Return DSD64 of samples (channels, n) at 44.1 kHz, by a delta-sigma modulator of first order.

    bits_per_sample: 1 with the first bit lowest in a byte, 8 with the first one highest.
    """
    channels, block = len(samples), 4096
    fine = np.repeat(samples, 64, axis=1)
    fine = np.pad(fine, ((0, 0), (0, -fine.shape[1] % (8 * block))))
    # The sum of the bits follows the sum of the samples.
    steps = np.floor(np.cumsum((fine + 1) / 2, axis=1, dtype=np.float64))
    bits = np.diff(steps, axis=1, prepend=0).astype(np.uint8)
    packed = np.packbits(bits, axis=1, bitorder="little" if bits_per_sample == 1 else "big")
    content = packed.reshape(channels, -1, block).transpose(1, 0, 2).tobytes()
    kind = (1, 0, channels, channels, 2822400, bits_per_sample)
    layout = struct.pack("<4sQIIIIIIQII", b"fmt ", 52, *kind, samples.shape[1] * 64, block, 0)
    body = layout + b"data" + struct.pack("<Q", 12 + len(content)) + content
    return b"DSD " + struct.pack("<QQQ", 28, 28 + len(body), 0) + body


def amr_narrow(folder: Folder, muxer: str) -> bytes:
    """Return AMR-NB, which Debian's ffmpeg cannot encode and PyAV's can."""
    path = folder.path / f"{os.getpid()}-encoded.{muxer}"
    with av.open(str(path), "w", format=muxer) as container:
        stream = cast(Any, container.add_stream("libopencore_amrnb", rate=8000))
        stream.codec_context.layout, stream.codec_context.format = "mono", "s16"
        stream.codec_context.bit_rate = 12200
        sound = np.rint(noise(8000, 1) * 30000).astype(np.int16)
        for start in range(0, 8000, 160):
            frame = av.AudioFrame.from_ndarray(sound[:, start : start + 160], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    path.unlink()
    return content


def _crash(folder: Folder) -> bytes:
    """An AIFF of 7.1 channels with a CHAN chunk, on which FFmpeg frees twice."""
    content = folder.read("surround.aiff")
    place = content.index(b"SSND")
    labels = b"".join(struct.pack(">IIfff", label, 0, 0, 0, 0) for label in (1, 2, 3, 4, 33, 34, 5, 6))
    chunk = b"CHAN" + struct.pack(">IIII", 12 + len(labels), 0, 0, 8) + labels
    size = struct.pack(">I", len(content) - 8 + len(chunk))
    return content[:4] + size + content[8:place] + chunk + content[place:]


def _own_order(end: str) -> Callable[[Folder], bytes]:
    """5.1 whose `chan` chunk says left, right, surrounds, centre, LFE (MPEG 5.1 B), which is nobody else's order."""

    def make(folder: Folder) -> bytes:
        content = bytearray(folder.read(f"5.1.{end}"))
        # In MOV the version and flags come first; in CAF the size has 64 bits.
        name, skipped = {"caf": (b"chan", 12), "mov": (b"chan", 8), "aiff": (b"CHAN", 8)}[end]
        place = content.rindex(name) + skipped
        content[place : place + 8] = struct.pack(">II", 122 << 16 | 6, 0)
        return bytes(content)

    return make


def _patch(name: str, old: bytes, new: bytes) -> Callable[[Folder], bytes]:
    return lambda folder: folder.read(name).replace(old, new)


def _late_and_trimmed(folder: Folder) -> bytes:
    """A second of picture alone, then two seconds from the middle of the sound."""
    content = bytearray(folder.read("late.mov"))
    place = content.rindex(b"elst") + 12
    content[place : place + 24] = struct.pack(">IiIIiI", 1000, -1, 1 << 16, 2000, 5 * RATE, 1 << 16)
    return bytes(content)


def _wrong_total(folder: Folder) -> bytes:
    """A FLAC whose header tells half of its samples."""
    content = bytearray(folder.read("stereo.flac"))
    content[22:26] = struct.pack(">I", RATE // 2)
    return bytes(content)


MAKERS: dict[str, Callable[[Folder], bytes]] = {
    "crash.aiff": _crash,
    **{f"own-order.{end}": _own_order(end) for end in ("caf", "mov", "aiff")},
    "chain.ogg": _join("link0.ogg", "link1.ogg", "link2.ogg"),
    "changing.ogg": _join("link0.ogg", "other-kind.ogg"),
    "chain.opus": _join("link0.opus", "link1.opus"),
    "to-mono.mp3": _join("stereo.mp3", "mono.mp3"),
    "to-slow.mp3": _join("stereo.mp3", "slow.mp3", "stereo.mp3"),
    "to-mono.aac": _join("stereo.aac", "mono.aac"),
    "to-slow.aac": _join("stereo.aac", "slow.aac"),
    **{
        f"tag.{name.partition('.')[2]}": _tag(name)
        for name in (
            *("stereo.wav", "stereo.aiff", "stereo.m4a", "stereo.flac", "stereo.mp3", "stereo.aac", "a.ac3"),
            *("stereo.w64", "stereo.mka", "wma2.wma", "aac.flv", "mp2.mpg", "aac.ts"),
        )
    },
    "tag.bw64": lambda folder: _tag("rf64.wav")(folder).replace(b"RF64", b"BW64", 1),
    "late-trimmed.mov": _late_and_trimmed,
    "cut.mp3": _cut("long.mp3", 0.7),
    "cut.flac": _cut("long.flac", 0.7),
    "cut.m4a": _cut("long.mp4", 0.7),
    "cut.wav": _cut("long.wav", 0.7),
    "cut.webm": _cut("long.webm", 0.7),
    "damaged.webm": _damage("long.webm"),
    "damaged.mp3": _damage("long.mp3"),
    "damaged.mp4": _damage("long.mp4"),
    "drm.m4p": _patch("stereo.m4a", b"mp4a", b"drms"),
    "no-moov.m4a": _cut("stereo.m4a", 0.7),
    "wrong-total.flac": _wrong_total,
    "24-in-32.wav": lambda folder: extensible_wav(noise(9000), 32, 24, 3),
    "20-in-24.wav": lambda folder: extensible_wav(noise(9000), 24, 20, 3),
    "rifx.wav": lambda folder: rifx(noise(9000)),
    "a.mp1": lambda folder: mp1(60),
    "wide.amr": lambda folder: amr_wide(50),
    "narrow.amr": lambda folder: amr_narrow(folder, "amr"),
    "narrow.3gp": lambda folder: amr_narrow(folder, "3gp"),
    "a.dsf": lambda folder: dsf(noise(9000) * np.float32(0.5)),
    "msb.dsf": lambda folder: dsf(noise(9000) * np.float32(0.5), 8),
    "midi": lambda folder: b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk\0\0\0\4\0\xff\x2f\0",
    "pdf": lambda folder: b"%PDF-1.7\n" + bytes(3000),
    "html": lambda folder: b"\xef\xbb\xbf\n<!DOCTYPE html><html><body>Not found</body></html>",
    "zip": lambda folder: b"PK\x03\x04\x14\0" + bytes(3000),
    "picture": lambda folder: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(3000),
    "playlist": lambda folder: media_files.PLAYLIST.format(name="stereo.mp3").encode(),
    "tagged-zip": lambda folder: b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + b"PK\x03\x04\x14\0" + bytes(3000),
    "text": lambda folder: b"It was a dark and stormy night. " * 200,
}
