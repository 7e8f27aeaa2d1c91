"""Sections of recordings: a seek finds the samples that decoding from the beginning does, and reads little more."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from av.audio.frame import AudioFrame

from app.media import sections, spectrogram, waveform
from app.media.demuxing import MediaFile
from app.media.spectrogram import Tile
from tests import ffmpeg_files, media_files
from tests.media_files import Samples

HOUR = 3600
RATE = 8000
TONE_HZ = 1000.0
# Files of `ffmpeg_files`, by the milliseconds by which a seek may miss: time stamps of Matroska count milliseconds.
EXACT = {
    "stereo.flac": 0,
    "tag.wav": 0,
    "alac.caf": 0,
    "a.w64": 0,
    "a.wv": 0,
    "a.tta": 0,
    "stereo.mp3": 0,
    "a.mp2": 0,
    "long.mp4": 0,
    "gap.mp4": 0,
    "5.1.ogg": 0,
    "link0.opus": 0,
    "long.webm": 1,
    "late.mkv": 1,
    # No seek is made: blocks of ADPCM, files that were joined, time stamps that jump or that FFmpeg estimates.
    "ima.wav": 0,
    "chain.opus": 0,
    "late.ts": 0,
    "stereo.aac": 0,
}


def samples(frame: AudioFrame) -> Samples:
    """Return the samples of a frame (channels, n) as floats."""
    array = frame.to_ndarray()
    array = array if frame.format.is_planar else array.reshape(-1, frame.layout.nb_channels).T
    return array.astype(np.float32) / (1 if array.dtype.kind == "f" else float(1 << (8 * array.dtype.itemsize - 1)))


@contextmanager
def bytes_read() -> Iterator[Callable[[], int]]:
    """Yield a function that tells how many bytes this process has read from files since the block began."""

    def count() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    start = count()
    yield lambda: count() - start


@pytest.fixture(scope="session")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An hour of silence in FLAC, with a tone of a second at the beginning of every minute."""
    folder = tmp_path_factory.mktemp("hour")
    tone = 0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(RATE) / RATE)
    minute = np.concatenate([tone, np.zeros(59 * RATE)]).astype(np.float32)
    media_files.write_sound(folder / "minute.wav", minute[None], RATE, "PCM_16")
    ffmpeg_files.run("-stream_loop 59 -i minute.wav -c:a flac hour.flac", folder)
    return folder / "hour.flac"


@pytest.mark.parametrize("name", EXACT)
def test_a_section_has_the_samples_of_the_whole(field: ffmpeg_files.Folder, name: str) -> None:
    path = field.make(name)
    with MediaFile(path) as media:
        whole = np.concatenate([samples(frame) for frame in media.frames()], axis=1)
        rate = media.sample_rate
    seconds = whole.shape[1] / rate
    for start in (0.0, 0.3 * seconds, 0.6 * seconds, max(0.0, seconds - 0.3)):
        found = [(position, samples(frame)) for position, frame in sections.read(path, start, start + 0.25)]
        part = np.concatenate([frame for _, frame in found], axis=1)
        assert [position for position, _ in found] == list(
            found[0][0] + np.cumsum([0, *(frame.shape[1] for _, frame in found)])[:-1]
        )
        begin, offset = int(start * rate), int(start * rate) - found[0][0]
        assert offset >= 0
        one = part[0, offset : offset + int(0.25 * rate)]
        errors = [
            float(((one - whole[0, begin + lag : begin + lag + len(one)]) ** 2).sum())
            for lag in range(-(EXACT[name] * rate // 1000), EXACT[name] * rate // 1000 + 1)
            if begin + lag >= 0 and begin + lag + len(one) <= whole.shape[1]
        ]
        assert min(errors) <= 0.05 * float((one**2).sum())  # decoders of AAC replace noise by other noise


def test_a_tile_in_the_middle_of_an_hour_reads_little(hour: Path) -> None:
    """The tile itself, a second before it, and what a search for the place needs."""
    middle = HOUR / 2 - 5
    with bytes_read() as count:
        frames = list(sections.read(hour, middle, middle + 10))
        assert count() < hour.stat().st_size / 4
    first, last = frames[0], frames[-1]
    assert (middle - 3) * RATE < first[0] <= middle * RATE and last[0] + last[1].samples < (middle + 12) * RATE


def test_drawings_in_the_middle_of_an_hour_are_right(hour: Path) -> None:
    """The tone at the beginning of the thirtieth minute, and nothing else."""
    middle = HOUR / 2 - 5
    drawn = waveform.read_section(hour, middle, middle + 10)
    loud = np.flatnonzero(np.array(drawn.maxima[0]) > 0.4) * drawn.bin_size / RATE
    assert (loud.min(), loud.max()) == pytest.approx((5.0, 6.0), abs=0.01)
    with bytes_read() as count:
        assert spectrogram.read(hour, Tile(middle, middle + 10, 500, 64))
        assert count() < hour.stat().st_size / 4
