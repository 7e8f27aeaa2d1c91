"""Writing of audio files in all formats, and what is read back."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from models import encoding
from models.media import FormatUnsupported, check_format, open_audio, open_writer
from tests import media_files
from tests.media_files import noise
from tests.models.test_media import read


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([("wav", 16), ("wav", 24), ("wav", 32), ("flac", 16), ("flac", 24)]),
    rate=st.sampled_from([8000, 11025, 44100, 96000, 192000]),
    channels=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
    peak=st.sampled_from([1e-6, 2.0**-16, 0.5, 1.0, 1.5, 30.0]),
    cuts=st.lists(st.integers(0, 3000), max_size=4),
)
def test_what_is_written_is_read_back_as_quantise_says(
    tmp_path_factory: pytest.TempPathFactory,
    kind: tuple[str, int],
    rate: int,
    channels: int,
    seed: int,
    peak: float,
    cuts: list[int],
) -> None:
    format, depth = kind
    sound = np.random.default_rng(seed).uniform(-peak, peak, (channels, 3001)).astype(np.float32)
    # Ties, the edges of full scale, and both zeros.
    sound[:, :6] = [1.0, -1.0, 0.5 / 2 ** (depth - 1), -1.5 / 2 ** (depth - 1), 0.0, -0.0]
    path = tmp_path_factory.mktemp("written") / f"a.{format}"
    with open_writer(path, format, rate, channels, depth) as writer:
        for block in np.split(sound, sorted(cuts), axis=1):
            writer.write(block)
        expected = writer.quantise(sound)
    assert writer.frames == 3001
    np.testing.assert_array_equal(read(path), expected)
    theirs, their_rate = soundfile.read(path, dtype="float32", always_2d=True)
    np.testing.assert_array_equal(theirs.T, expected)
    assert their_rate == rate
    np.testing.assert_array_equal(writer.quantise(expected), expected)


@pytest.mark.parametrize("frames", [700, 12345, 100_001])
@pytest.mark.parametrize("rate", [8000, 44100, 48000, 96000, 192000])
@pytest.mark.parametrize("format", ["ogg", "mp3", "opus", "m4a"])
def test_lossy_formats_keep_length_and_alignment(tmp_path: Path, format: str, rate: int, frames: int) -> None:
    path = tmp_path / "a"
    sound = noise(frames)
    with open_writer(path, format, rate, 2) as writer:
        for start in range(0, frames, 4999):
            writer.write(sound[:, start : start + 4999])
    with open_audio(path) as reader:
        decoded = np.concatenate(list(reader), axis=1)
    assert reader.rate == writer.file_rate == check_format(format, rate, 2)
    assert decoded.shape == (2, round(frames * reader.rate / rate))
    if reader.rate == rate and frames > 700:
        assert media_files.lag(sound[0], decoded[0]) == 0


@pytest.mark.parametrize("format", ["ogg", "mp3", "opus", "m4a"])
def test_lossy_formats_keep_the_sound(tmp_path: Path, format: str) -> None:
    sound = noise(48000, channels=1)
    with open_writer(tmp_path / "a", format, 48000, 1) as writer:
        writer.write(sound)
    error = read(tmp_path / "a") - sound
    assert 10 * np.log10(np.sum(sound**2) / np.sum(error**2)) > 12


@pytest.mark.parametrize(
    ("format", "rate", "channels", "depth"),
    [
        ("aac", 44100, 2, None),
        ("wav", 44100, 2, 8),
        ("flac", 44100, 2, 32),
        ("mp3", 44100, 2, 16),
        ("flac", 44100, 9, None),
        ("flac", 88201, 2, None),
        ("ogg", 44100, 3, None),
        ("mp3", 44100, 6, None),
        ("opus", 48000, 3, None),
        ("m4a", 48000, 6, None),
    ],
)
def test_what_a_format_cannot_hold_is_said_before_work_begins(
    tmp_path: Path, format: str, rate: int, channels: int, depth: int | None
) -> None:
    with pytest.raises(FormatUnsupported, match=format):
        check_format(format, rate, channels, depth)
    with pytest.raises(FormatUnsupported):
        open_writer(tmp_path / "a", format, rate, channels, depth)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("format", "rate", "file_rate"),
    [
        ("wav", 44056, 44056),
        ("flac", 96010, 96010),
        ("mp3", 96000, 48000),
        ("mp3", 44056, 44100),
        ("opus", 44100, 48000),
        ("m4a", 192000, 96000),
        ("ogg", 192000, 192000),
    ],
)
def test_the_nearest_rate_is_returned(format: str, rate: int, file_rate: int) -> None:
    assert check_format(format, rate, 2) == file_rate


@pytest.mark.parametrize("depth", [16, 24, 32])
def test_a_wav_that_outgrows_riff_becomes_rf64(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "a.wav"
    sound = noise(9999, channels=3)
    with encoding.WavWriter(path, 44100, 3, depth, riff_bytes=20000) as writer:
        writer.write(sound)
    assert path.read_bytes()[:4] == b"RF64"
    np.testing.assert_array_equal(read(path), writer.quantise(sound))
    theirs, _ = soundfile.read(path, dtype="float32", always_2d=True)
    np.testing.assert_array_equal(theirs.T, writer.quantise(sound))


@pytest.mark.parametrize("format", encoding.FORMATS)
def test_a_failed_file_is_deleted(tmp_path: Path, format: str) -> None:
    path = tmp_path / "a"
    with pytest.raises(ValueError, match="not finite"), open_writer(path, format, 44100, 2) as writer:
        writer.write(noise(5000))
        writer.write(np.full((2, 10), np.nan, np.float32))
    assert not path.exists()
    with pytest.raises(ValueError, match="expected"), open_writer(path, format, 44100, 2) as writer:
        writer.write(noise(100, channels=1))
