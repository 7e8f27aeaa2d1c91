"""Mutations of media files for fuzzing: seeded, so that a number always makes the same file."""

import gzip
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests import media_files
from tests.ffmpeg_files import Folder
from tests.media_files import noise, wav_bytes

EXTREMES = (0, 1, 0x7F, 0x7FFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 0xFFFF0000, 1024, 65535, 44100)
HEADER_BYTES = 300
FOREIGN_HEADERS = (
    b"ID3\x04\x00\x00\x00\x00\x0f\x7f" + bytes(2047),
    b"%PDF-1.7\n",
    b"<html><script>alert(1)</script>",
    b"\x7fELF",
    b"#!/bin/sh\nrm -rf /\n",
    b"PK\x03\x04",
    b"#EXTM3U\n",
    b"ffconcat version 1.0\nfile '/etc/passwd'\n",
)


@dataclass(frozen=True)
class Originals:
    """Files to mutate: a short one of each accepted kind, and ten minutes of silence that compress to very little."""

    files: list[bytes]
    silence: bytes


@dataclass(frozen=True)
class MutatedFile:
    """A mutated file, with the number that seeds it and the name of its mutation."""

    number: int
    mutation: str
    content: bytes


def write_originals(folder: Path) -> Originals:
    """Write the originals to a folder and read them."""
    files = []
    for name, subtype in (
        *(("a.wav", "PCM_16"), ("b.wav", "FLOAT"), ("c.wav", "PCM_24"), ("d.flac", "PCM_16"), ("e.ogg", "VORBIS")),
        *(("f.mp3", "MPEG_LAYER_III"), ("g.aiff", "PCM_16"), ("h.w64", "PCM_16"), ("i.wav", "IMA_ADPCM")),
    ):
        media_files.write_sound(folder / name, noise(9000), 44100, subtype)
        files.append(folder / name)
    for name, muxer, codec in (
        ("j.m4a", "ipod", "aac"),
        ("k.webm", "webm", "libopus"),
        ("l.aac", "adts", "aac"),
        ("m.ogg", "ogg", "libopus"),
        ("n.mp4", "mp4", "aac"),
        ("o.mka", "matroska", "libopus"),
    ):
        media_files.write_packets(folder / name, noise(9000), 48000, muxer, codec)
        files.append(folder / name)
    field = Folder.of_checkout()
    for name in (
        *("alac.caf", "wma2.wma", "aac.ts", "mp2.mpg", "mp3.avi", "aac.flv", "pcm.au", "a.ac3", "a.eac3", "a.wv"),
        *("a.tta", "a.mp1", "narrow.amr", "narrow.3gp", "wide.amr", "a.dsf", "chain.opus", "gap.webm", "obs.mkv"),
        # Clocks and edit lists, and what is named by a number
        *("gap.ogg", "chain.ogg", "late-trimmed.mov", "far.webm", "late.wmv", "aac.avi", "rifx.wav", "tag.ac3"),
    ):
        files.append(field.make(name))
    media_files.write_flac_silence(folder / "silence.flac", 600, hide_length=True)
    return Originals([file.read_bytes() for file in files], (folder / "silence.flac").read_bytes())


def mutate(number: int, originals: Originals) -> MutatedFile:
    """Return the mutated file that a number seeds."""
    chance = random.Random(number)
    one, other = chance.choice(originals.files), chance.choice(originals.files)
    mutation = chance.choice(tuple(MUTATIONS))
    return MutatedFile(number, mutation, MUTATIONS[mutation](chance, one, other, originals.silence))


def flip_bytes(chance: random.Random, content: bytes, end: int) -> bytes:
    """Overwrite up to 64 bytes before `end` with random ones."""
    mutated = bytearray(content)
    for _ in range(chance.choice((1, 2, 8, 64))):
        mutated[chance.randrange(min(end, len(mutated)))] = chance.randrange(256)
    return bytes(mutated)


def cut(chance: random.Random, content: bytes) -> bytes:
    """Truncate at a random byte."""
    return content[: chance.randrange(len(content))]


def overwrite_fields(chance: random.Random, content: bytes) -> bytes:
    """Write an extreme number to a header field of 2, 4 or 8 bytes, in either byte order."""
    mutated = bytearray(content)
    for _ in range(chance.choice((1, 1, 3))):
        position = chance.randrange(min(200, max(1, len(mutated) - 8)))
        form = chance.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
        size = struct.calcsize(form)
        value = chance.choice(EXTREMES) & (256**size - 1)
        mutated[position : position + size] = struct.pack(form, value)
    return bytes(mutated)


def move_block(chance: random.Random, content: bytes) -> bytes:
    """Drop, duplicate or move a block of bytes."""
    mutated = bytearray(content)
    start, end = sorted(chance.randrange(len(mutated)) for _ in range(2))
    block = bytes(mutated[start:end])
    if chance.random() < 0.7:
        del mutated[start:end]
    if chance.random() < 0.6:
        position = chance.randrange(len(mutated) + 1)
        mutated[position:position] = block
    return bytes(mutated)


def make_polyglot(chance: random.Random, one: bytes, other: bytes) -> bytes:
    """Join two kinds of file into one."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../evil.sh", "#!/bin/sh\n")
    return chance.choice(
        (
            chance.choice(FOREIGN_HEADERS) + one,
            one + other,
            one + archive.getvalue(),
            one[: chance.randrange(4, 64)] + other,
            one[: len(one) // 2] + other[len(other) // 2 :],
        )
    )


def make_noise(chance: random.Random, content: bytes) -> bytes:
    """Keep the first bytes of a header, and append random ones."""
    return content[: chance.choice((0, 4, 12, 40))] + chance.randbytes(chance.randrange(1, 4000))


def atom(kind: bytes, content: bytes, size: int | None = None) -> bytes:
    """An MP4 atom that states a size, by default its true one."""
    return struct.pack(">I", len(content) + 8 if size is None else size) + kind + content


def make_bomb(chance: random.Random, silence: bytes) -> bytes:
    """Make a small file that states a huge size, or expands to it."""
    nested = b""
    for _ in range(chance.choice((50, 2000))):
        nested = atom(b"moov", nested)
    track = atom(b"stts", bytes(4) + struct.pack(">I", 0xFFFFFFFF) + bytes(16))
    for kind in (b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        track = atom(kind, track)
    pages = [b"OggS\0\2" + bytes(8) + struct.pack("<II", n, 0) + bytes(4) + b"\1\x08OpusHead" for n in range(500)]
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: wav_bytes(bytes(64), chance.choice((0, 1, 255, 1024, 65535)), chance.choice((0, 1, 2**31, 48000)), 16),
        lambda: wav_bytes(bytes(64), 2, 44100, chance.choice((0, 8, 16, 32, 64)), chance.choice((1, 3, 2, 17, 0xFFFE))),
        lambda: wav_bytes(bytes(64), 2, 44100, 16, said=chance.choice((0, 0xFFFFFFFF, 0x7FFFFFFF))),
        lambda: b"RF64\xff\xff\xff\xffWAVEds64" + struct.pack("<IQQQI", 28, 2**63, 2**63, 2**62, 0xFFFFFFFF),
        lambda: b"RIFF\xff\xff\xff\xffWAVE" + b"fmt " + struct.pack("<I", 0xFFFFFFF0) + bytes(100),
        lambda: (
            b"FORM"
            + struct.pack(">I", 2**31)
            + b"AIFFCOMM"
            + struct.pack(">IhIh", 18, 32767, 2**32 - 1, 16)
            + b"\x7f\xff" * 9
        ),
        lambda: silence,
        lambda: atom(b"ftyp", b"M4A \x00\x00\x02\x00isom") + nested,
        lambda: atom(b"ftyp", b"M4A ") + track,
        lambda: atom(b"ftyp", b"M4A ") + struct.pack(">I", 1) + b"mdat" + struct.pack(">Q", 2**63 - 1) + bytes(100),
        lambda: b"\x1a\x45\xdf\xa3\x01" + b"\xff" * 7 + bytes(50),
        lambda: b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" + bytes(200),
        lambda: b"OggS\x00\x02" + bytes(20) + b"\xff" + b"\xff" * 255 + b"\x01vorbis" + bytes(100),
        lambda: b"".join(pages),
        lambda: b"fLaC\x80\x00\x00\x22" + b"\xff" * 34 + b"\xff\xf8" * 50,
        lambda: b"fLaC" + b"\x04\xff\xff\xff" + b"\xff" * 64,
        lambda: b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(500),
        lambda: gzip.compress(bytes(1 << 20)) + zlib.compress(bytes(1 << 20)),
        lambda: b"\xff\xfb\x90\x00" * 3000,
        lambda: b"\xff\xf1\x50\x80\x00\x1f\xfc" * 3000,
        lambda: bytes(chance.randrange(1, 5000)),
    )
    return chance.choice(makers)()


MUTATIONS: dict[str, Callable[[random.Random, bytes, bytes, bytes], bytes]] = {
    "flips": lambda chance, one, other, silence: flip_bytes(chance, one, len(one)),
    "flipped head": lambda chance, one, other, silence: flip_bytes(chance, one, HEADER_BYTES),
    "cut": lambda chance, one, other, silence: cut(chance, one),
    "lies": lambda chance, one, other, silence: overwrite_fields(chance, one),
    "shuffled": lambda chance, one, other, silence: move_block(chance, one),
    "polyglot": lambda chance, one, other, silence: make_polyglot(chance, one, other),
    "bomb": lambda chance, one, other, silence: make_bomb(chance, silence),
    "noise": lambda chance, one, other, silence: make_noise(chance, one),
}
