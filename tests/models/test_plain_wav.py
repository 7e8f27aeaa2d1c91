"""WAVs whose samples are read as they stand: the same ones that FFmpeg gives, and all else is left to it."""

import struct
from pathlib import Path

import numpy as np
import pytest

from models.media import MediaInfo, WavWriter, decode, open_audio
from models.media.plain_wav import PlainWav
from tests.media_files import noise, wav_bytes


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def riff(*chunks: bytes) -> bytes:
    content = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def layout(tag: int = 1, channels: int = 2, rate: int = 44100, bits: int = 16) -> bytes:
    frame = channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, rate * frame, frame, bits))


def blocks(path: Path) -> tuple[MediaInfo, list[np.ndarray]]:
    with open_audio(path) as reader:
        read = list(reader)
    return reader.info, read


@pytest.mark.parametrize("frames", [1, 65536, 65537, 200_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("tag", "bits"), [(1, 16), (3, 32)])
def test_samples_and_description_are_those_of_ffmpeg(
    tmp_path: Path, tag: int, bits: int, channels: int, frames: int
) -> None:
    sound = np.ascontiguousarray(noise(frames, channels).T)
    samples = sound.tobytes() if tag == 3 else (sound * 32767).astype("<i2").tobytes()
    parts = (layout(tag, channels, bits=bits), chunk(b"data", samples))
    plain, other = tmp_path / "plain.wav", tmp_path / "other.wav"
    plain.write_bytes(riff(*parts))
    other.write_bytes(riff(*parts, chunk(b"tail", b"any")))
    PlainWav(plain)
    with pytest.raises(ValueError):
        PlainWav(other)
    (info, read), (known, expected) = blocks(plain), blocks(other)
    assert info == known
    assert [block.shape for block in read] == [block.shape for block in expected]
    np.testing.assert_array_equal(np.concatenate(read, 1), np.concatenate(expected, 1))


def test_what_the_decoder_writes_is_plain(tmp_path: Path) -> None:
    (tmp_path / "in.wav").write_bytes(wav_bytes((noise(3000, 2) * 32767).T.astype("<i2").tobytes(), 2, 44100, 16))
    decode(tmp_path / "in.wav", tmp_path / "out.wav")
    assert PlainWav(tmp_path / "out.wav").frames == 3000
    with WavWriter(tmp_path / "wide.wav", 44100, 6, 32, 0x3F) as writer:
        writer.write(noise(3000, 6))
    with pytest.raises(ValueError):
        PlainWav(tmp_path / "wide.wav")


SOUND = chunk(b"data", b"\1\2" * 2000)


@pytest.mark.parametrize(
    "content",
    [
        riff(layout(), SOUND)[:-100],  # cut off
        riff(layout(), SOUND) + b"\0\0",
        riff(layout(), chunk(b"data", b"")),
        riff(layout(), chunk(b"data", b"\1\2" * 1001)),  # half a frame
        riff(SOUND, layout()),
        riff(layout(), layout(rate=48000), SOUND),
        riff(layout(rate=0), SOUND),
        riff(layout(channels=0), SOUND),
        riff(layout(channels=4), SOUND),
        riff(layout(bits=24), SOUND),
        riff(layout(tag=0xFFFE), SOUND),
        riff(layout(), chunk(b"data", b"\x7f\xfe\x80\x01" * 1000)),  # DTS
        riff(layout(), chunk(b"data", b"\0" * 4000)),  # another codec may follow
        riff(chunk(b"JUNK", bytes(300)), layout(), SOUND),
        riff(layout())[:-1],
        b"ID3\4\0\0\0\0\0\0" + riff(layout(), SOUND),
        b"RIFX" + riff(layout(), SOUND)[4:],
        b"",
    ],
)
def test_other_files_are_left_to_ffmpeg(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(ValueError):
        PlainWav(tmp_path / "a.wav")


def test_an_informative_list_is_skipped(tmp_path: Path) -> None:
    info = chunk(b"LIST", b"INFOISFT" + struct.pack("<I", 6) + b"Lavf60")
    (tmp_path / "a.wav").write_bytes(riff(layout(), info, SOUND))
    assert PlainWav(tmp_path / "a.wav").frames == 1000
