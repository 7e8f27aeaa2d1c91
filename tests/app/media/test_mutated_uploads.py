"""Uploads that were damaged, forged and glued together: none gets more than a refusal, and nothing stays behind.

`make test` sends a hundred, `make soak` 12,000; the number is printed.
"""

import gc
import gzip
import io
import os
import random
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import httpx
import psutil
import pytest

from models.errors import MediaError
from tests import media_files
from tests.app.audio.test_audio import nothing_left
from tests.app.conftest import Service, wav
from tests.media_files import noise, wav_bytes
from worker.decode import decode

SOAK = bool(os.environ.get("EARMARK_SOAK"))
COUNT = 12_000 if SOAK else 100
AT_ONCE = 4
MEMORY = 48 << 20  # bytes that the front end may grow by while it takes them
LIES = (0, 1, 0x7F, 0x7FFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 0xFFFF0000, 1024, 65535, 44100)


def seeds(folder: Path) -> list[bytes]:
    """A short file of each kind that is accepted."""
    made = []
    for name, subtype in (
        *(("a.wav", "PCM_16"), ("b.wav", "FLOAT"), ("c.wav", "PCM_24"), ("d.flac", "PCM_16"), ("e.ogg", "VORBIS")),
        *(("f.mp3", "MPEG_LAYER_III"), ("g.aiff", "PCM_16"), ("h.w64", "PCM_16"), ("i.wav", "IMA_ADPCM")),
    ):
        media_files.write_sound(folder / name, noise(9000), 44100, subtype)
        made.append(folder / name)
    for name, muxer, codec in (
        *(
            ("j.m4a", "ipod", "aac"),
            ("k.webm", "webm", "libopus"),
            ("l.aac", "adts", "aac"),
            ("m.ogg", "ogg", "libopus"),
        ),
        *(("n.mp4", "mp4", "aac"), ("o.mka", "matroska", "libopus")),
    ):
        media_files.write_packets(folder / name, noise(9000), 48000, muxer, codec)
        made.append(folder / name)
    return [path.read_bytes() for path in made]


def flipped(chance: random.Random, content: bytearray, most: int) -> None:
    for _ in range(chance.choice((1, 2, 8, 64))):
        content[chance.randrange(min(most, len(content)))] = chance.randrange(256)


def lying(chance: random.Random, content: bytearray) -> None:
    """A field of a header, of 2, 4 or 8 bytes in either order, says something extreme."""
    for _ in range(chance.choice((1, 1, 3))):
        place = chance.randrange(min(200, max(1, len(content) - 8)))
        form = chance.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
        size = struct.calcsize(form)
        content[place : place + size] = struct.pack(form, chance.choice(LIES) & (256**size - 1))


def shuffled(chance: random.Random, content: bytearray) -> None:
    """A block is dropped, doubled or moved."""
    a, b = sorted(chance.randrange(len(content)) for _ in range(2))
    block = bytes(content[a:b])
    if chance.random() < 0.7:
        del content[a:b]
    if chance.random() < 0.6:
        place = chance.randrange(len(content) + 1)
        content[place:place] = block


def polyglot(chance: random.Random, one: bytes, other: bytes) -> bytes:
    """Two kinds of file in one."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../evil.sh", "#!/bin/sh\n")
    heads = (
        *(
            b"ID3\x04\x00\x00\x00\x00\x0f\x7f" + bytes(2047),
            b"%PDF-1.7\n",
            b"<html><script>alert(1)</script>",
            b"\x7fELF",
        ),
        *(b"#!/bin/sh\nrm -rf /\n", b"PK\x03\x04", b"#EXTM3U\n", b"ffconcat version 1.0\nfile '/etc/passwd'\n"),
    )
    return chance.choice(
        (
            chance.choice(heads) + one,
            one + other,
            one + archive.getvalue(),
            one[: chance.randrange(4, 64)] + other,
            one[: len(one) // 2] + other[len(other) // 2 :],
        )
    )


def atom(kind: bytes, content: bytes, said: int | None = None) -> bytes:
    return struct.pack(">I", len(content) + 8 if said is None else said) + kind + content


def bomb(chance: random.Random, folder: Path) -> bytes:
    """Little that says, or becomes, much."""
    silence = folder / "silence.flac"
    if not silence.exists():
        media_files.write_flac_silence(silence, 600, hide_length=True)
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
        lambda: silence.read_bytes(),
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


def mutated(chance: random.Random, kinds: list[bytes], folder: Path) -> tuple[str, bytes]:
    """The way in which it was damaged, and the file."""
    one, other = chance.choice(kinds), chance.choice(kinds)
    content = bytearray(one)
    way = chance.choice(("flips", "flipped head", "cut", "lies", "shuffled", "polyglot", "bomb", "noise"))
    if way == "flips":
        flipped(chance, content, len(content))
    elif way == "flipped head":
        flipped(chance, content, 300)
    elif way == "cut":
        del content[chance.randrange(len(content)) :]
    elif way == "lies":
        lying(chance, content)
    elif way == "shuffled":
        shuffled(chance, content)
    elif way == "polyglot":
        content = bytearray(polyglot(chance, one, other))
    elif way == "bomb":
        content = bytearray(bomb(chance, folder))
    else:
        content = bytearray(one[: chance.choice((0, 4, 12, 40))] + chance.randbytes(chance.randrange(1, 4000)))
    return way, bytes(content)


def uploads(kinds: list[bytes], folder: Path) -> Iterator[tuple[int, str, bytes]]:
    for number in range(COUNT):
        yield number, *mutated(random.Random(number), kinds, folder)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_mutated_uploads_get_an_answer_and_leave_nothing(
    folder_service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service, temporary = folder_service, tmp_path / "temporary"
    temporary.mkdir()
    kinds = seeds(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    told: Counter[tuple[str, int, str]] = Counter()
    drawn: Counter[int] = Counter()
    decoded: Counter[str] = Counter()

    def send(numbered: tuple[int, str, bytes], client: httpx.Client) -> None:
        number, way, content = numbered
        answer = client.post("/v1/audio", files={"file": ("a.wav", content)})
        code = answer.json().get("code", "")
        assert answer.status_code in (201, 413, 422), (number, way, answer.text)
        assert "/tmp" not in answer.text and "Traceback" not in answer.text
        told[way, answer.status_code, code] += 1
        if answer.status_code == 201:
            url = answer.headers["location"]
            # What was accepted by its head is decoded to the end, by front end and worker.
            if number % (4 if SOAK else 16) == 0:
                peaks = client.get(f"{url}/peaks", params={"points": 100})
                assert peaks.status_code in (200, 422), (number, way, peaks.text)
                drawn[peaks.status_code] += 1
                path = temporary / f"{number}.upload"
                path.write_bytes(content)
                try:
                    decode(path, path.with_suffix(".wav"))
                    decoded["sound"] += 1
                except MediaError as error:
                    decoded[error.code] += 1
                path.unlink()
                path.with_suffix(".wav").unlink(missing_ok=True)
            assert client.delete(url).status_code == 204

    process = psutil.Process()
    with (
        httpx.Client(base_url=service.client.base_url, timeout=120) as client,
        ThreadPoolExecutor(AT_ONCE) as senders,
    ):
        every = uploads(kinds, tmp_path)
        for _ in range(COUNT // 10):  # what is loaded on first use does not count
            send(next(every), client)
        gc.collect()
        before = process.memory_info().rss
        while batch := list(islice(every, 4 * AT_ONCE)):
            list(senders.map(lambda numbered: send(numbered, client), batch))
        gc.collect()
        grown = process.memory_info().rss - before
        assert client.post("/v1/audio", files={"file": ("a.wav", wav())}).status_code == 201
    by_code = Counter[str]()
    for (_, status, code), count in told.items():
        by_code[code or str(status)] += count
    with capsys.disabled():
        print(f"\n{sum(told.values())} mutated uploads: {dict(by_code)}; peaks {dict(drawn)}; decoded {dict(decoded)};")
        print(f"memory {grown / 2**20:+.1f} MiB; {len(list(temporary.iterdir()))} temporary files")
    assert sum(told.values()) == COUNT and {way for way, *_ in told} >= {"flips", "bomb", "polyglot"}
    assert 0 < by_code["201"] < COUNT
    assert grown < MEMORY
    assert list(temporary.iterdir()) == []
    service.client.delete(f"/v1/audio/{service.stored_keys()[0].removeprefix('audio/')}")
    nothing_left(service)
    assert [child for child in process.children(recursive=True) if "app." in " ".join(child.cmdline())] == []
