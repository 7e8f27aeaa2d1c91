"""Spectrograms of uploads: the right pixels at the right time, in bounded memory and time, whatever the file."""

import asyncio
import io
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from app.errors import AudioUndecodable, SpanOutside
from app.media import spectrogram
from app.media.sandbox import SandboxLimits
from app.media.spectrogram import MAX_HEIGHT, MAX_WIDTH, MIN_HEIGHT, Tile
from tests import media_files

RATE = 44100
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def sine(hertz: float, seconds: float = 2.0, rate: int = RATE, amplitude: float = 0.5) -> media_files.Samples:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)[None]


def colors(image: bytes) -> Pixels:
    """Return the indexes of a picture's colors (height, width): 0 is transparent, the last is the loudest."""
    return np.array(Image.open(io.BytesIO(image)))


def draw(path: Path, tile: Tile) -> Pixels:
    """Draw in the sandbox."""
    return colors(asyncio.run(spectrogram.draw(path, tile)))


def read(path: Path, tile: Tile) -> Pixels:
    """Draw in this process, which is faster."""
    return colors(spectrogram.read(path, tile))


def row_of(hertz: float, height: int, rate: int) -> float:
    """Return where a frequency lies in a picture, in pixels from its upper edge."""
    top = spectrogram.highest_hz(rate)
    return height * (1 - math.log(hertz / spectrogram.LOWEST_HZ) / math.log(top / spectrogram.LOWEST_HZ))


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of stereo noise that changes all the time."""
    path = tmp_path_factory.mktemp("noise") / "noise.flac"
    sound = media_files.noise(4 * RATE) * np.linspace(0.01, 1, 4 * RATE, dtype=np.float32)
    media_files.write_sound(path, sound, RATE, "PCM_16")
    return path


@pytest.mark.parametrize(
    ("rate", "channels", "height"), [(44100, 1, 255), (48000, 2, MAX_HEIGHT), (8000, 1, 64), (96000, 6, 33)]
)
def test_a_sine_is_the_loudest_in_the_row_of_its_frequency(
    tmp_path: Path, rate: int, channels: int, height: int
) -> None:
    for hertz in (60.0, 440.0, 3100.0):
        sound = np.repeat(sine(hertz, rate=rate), channels, axis=0)
        media_files.write_sound(tmp_path / "sine.flac", sound, rate, "PCM_16")
        picture = read(tmp_path / "sine.flac", Tile(0.5, 1.5, 20, height))
        assert picture.shape == (height, 20)
        loudest = np.flatnonzero(picture[:, 10] == picture[:, 10].max()).mean() + 0.5
        assert loudest == pytest.approx(row_of(hertz, height, rate), abs=0.02 * height)
        assert (picture[0] == 0).all() and len(set(picture[int(loudest)])) == 1


def test_colors_stand_for_decibels(tmp_path: Path) -> None:
    for decibels in (-90, -78, -50, -20, 0):
        sound = sine(1000.0, amplitude=10 ** (decibels / 20))
        soundfile.write(tmp_path / "sine.wav", sound.T, RATE, subtype="FLOAT")
        loudest = int(read(tmp_path / "sine.wav", Tile(0.5, 1.5, 50, 256)).max())
        share = (decibels - spectrogram.FLOOR_DB) / (spectrogram.CEILING_DB - spectrogram.FLOOR_DB)
        assert loudest == pytest.approx(63 * min(1.0, max(0.0, share)), abs=1.5)


@given(
    begin=st.floats(0, 3.9),
    pixel=st.sampled_from([0.0001, 0.001, 0.01, 0.1]),
    place=st.floats(0.05, 0.95),
    height=st.integers(32, 128),
)
@hypothesis_settings(max_examples=12, deadline=None)
def test_a_sound_is_drawn_when_it_sounds(
    tmp_path_factory: pytest.TempPathFactory, begin: float, pixel: float, place: float, height: int
) -> None:
    """A short tone lights the pixel of its middle, wherever the section begins and at any scale."""
    width = 100
    middle = begin + place * width * pixel
    times = np.arange(int(RATE * (begin + width * pixel + 1))) / RATE
    tone = 0.5 * np.exp(-(((times - middle) / 0.003) ** 2)) * np.sin(2 * np.pi * 5000 * times)
    path = tmp_path_factory.getbasetemp() / "tone.flac"
    media_files.write_sound(path, tone.astype(np.float32)[None], RATE, "PCM_16")
    picture = read(path, Tile(begin, begin + width * pixel, width, height))
    heard = picture[round(row_of(5000, height, RATE) - 0.5)].astype(int)
    # Windows last longer than short pixels, and a whole picture of them lies within the tone.
    blur = 1 + math.ceil(0.002 / pixel)
    assert heard[max(0, int(place * width) - blur) : int(place * width) + blur + 1].max() == heard.max() > 0


@given(
    pixel=st.sampled_from([Fraction(1, 441), Fraction(1, 100), Fraction(1, 49), Fraction(1, 3)]),
    first=st.integers(0, 6),
    width=st.integers(1, 6),
    height=st.integers(MIN_HEIGHT, 40),
)
@hypothesis_settings(max_examples=10, deadline=None)
def test_tiles_are_parts_of_one_picture(noise: Path, pixel: Fraction, first: int, width: int, height: int) -> None:
    """Where a pixel lasts a number of samples: the decoder starts elsewhere, the pixels are the same."""
    whole = read(noise, Tile(0.0, float(12 * pixel), 12, height))
    part = read(noise, Tile(float(first * pixel), float((first + width) * pixel), width, height))
    np.testing.assert_array_equal(part, whole[:, first : first + width])


def test_distant_tiles_are_parts_of_one_picture(tmp_path: Path) -> None:
    """Behind a seek, too."""
    media_files.write_sound(tmp_path / "long.flac", media_files.noise(12 * RATE), RATE, "PCM_16")
    whole = read(tmp_path / "long.flac", Tile(0.0, 12.0, 1200, 64))
    for first in (300, 700, 1100):
        part = read(tmp_path / "long.flac", Tile(first / 100, first / 100 + 1, 100, 64))
        np.testing.assert_array_equal(part, whole[:, first : first + 100])


def test_what_lies_beyond_the_end_is_transparent(noise: Path) -> None:
    picture = read(noise, Tile(3.0, 5.0, 200, 64))
    assert picture[:, :95].any(axis=0).all() and not picture[:, 120:].any()
    with pytest.raises(SpanOutside):
        draw(noise, Tile(4.0, 5.0, 200, 64))


def test_stereo_of_opposite_phase_is_not_silent(tmp_path: Path) -> None:
    sound = np.concatenate([sine(440.0), -sine(440.0)])
    media_files.write_sound(tmp_path / "opposite.flac", sound, RATE, "PCM_16")
    assert read(tmp_path / "opposite.flac", Tile(0.5, 1.5, 10, 64)).max() > 60


def test_quiet_is_transparent_and_loud_differs_from_white_and_black(tmp_path: Path) -> None:
    media_files.write_sound(tmp_path / "sine.flac", sine(440.0), RATE, "PCM_16")
    image = Image.open(io.BytesIO(spectrogram.read(tmp_path / "sine.flac", Tile(0.5, 1.5, 10, 64)))).convert("RGBA")
    pixels = np.array(image)[:, 5]
    assert pixels[0, 3] == 0 and pixels[:, 3].max() == 255
    loudest = pixels[pixels[:, 3].argmax(), :3] / 255
    luminance = float((loudest**2.2) @ [0.2126, 0.7152, 0.0722])
    assert 1.05 / (luminance + 0.05) > 2.5 and (luminance + 0.05) / 0.05 > 3


@pytest.mark.parametrize(
    "tile", [Tile(0.0, 0.001, MAX_WIDTH, MAX_HEIGHT), Tile(0.0, 14400.0, 7, MIN_HEIGHT), Tile(3.99, 5, 1, 17)]
)
def test_extreme_tiles_are_drawn(noise: Path, tile: Tile) -> None:
    assert draw(noise, tile).shape == (tile.height, tile.width)


@pytest.mark.parametrize("content", [b"", b"hello" * 100, b"\x89PNG" + bytes(100), b"RIFF" + bytes(60)])
def test_a_file_that_is_no_audio_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(AudioUndecodable):
        draw(tmp_path / "file", Tile(0.0, 1.0, 10, 10))


def test_samples_that_are_no_numbers_do_no_harm(tmp_path: Path) -> None:
    sound = media_files.noise(RATE).T
    sound[RATE // 2] = (np.nan, np.inf)
    sound[RATE // 3] = (1e38, -np.inf)
    soundfile.write(tmp_path / "a.wav", sound, RATE, subtype="FLOAT")
    picture = draw(tmp_path / "a.wav", Tile(0.0, 1.0, 100, 32))
    assert picture[:, 90].any()


def test_a_recording_that_takes_too_long_to_decode_is_refused(tmp_path: Path) -> None:
    media_files.write_flac_silence(tmp_path / "a.flac", 90, hide_length=True)
    limits = SandboxLimits(seconds=0.01, cpu_seconds=1, memory_bytes=1 << 30, file_bytes=0)
    with pytest.raises(AudioUndecodable, match="too long"):
        asyncio.run(spectrogram.draw(tmp_path / "a.flac", Tile(0.0, 90.0, 10, 10), limits=limits))
