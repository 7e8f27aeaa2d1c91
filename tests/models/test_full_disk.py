"""A full disk is an error of the system, whichever library writes the file."""

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from app.errors import DiskFull
from models import encoding
from models.encoding import AudioWriter, open_writer
from models.formats import FORMATS
from models.media import ANY_LENGTH, decode_in_child
from models.media.serving import DecodingChild
from models.options import SeparationOptions
from models.separation.long_recordings import Source
from models.separation.stems import Spool, SpooledStems, write
from tests.full_disk import full_disk, small_disk

CHANNELS = {"wav": 6, "flac": 6}  # of two, the others
MASK = 0x3F


@pytest.fixture(name="full_disk")
def _full_disk() -> Iterator[None]:
    with full_disk():
        yield


def open_files() -> Counter[str]:
    """Return the files that this process has open, each as often as it has it open."""
    links = Path("/proc/self/fd").iterdir()
    return Counter(str(link.readlink()) for link in links if link.is_symlink())


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("format", FORMATS)
def test_a_writer_on_a_full_disk_raises_what_the_system_says(format: str, tmp_path: Path):
    noise = np.random.default_rng(0).uniform(-1, 1, (2, 48000)).astype(np.float32)
    with pytest.raises(OSError) as raised, open_writer(tmp_path / "noise", format, 48000, 2) as writer:
        for _ in range(60):
            writer.write(noise)
    assert raised.value.errno in DiskFull.errnos
    assert list(tmp_path.iterdir()) == []


def test_a_decoder_on_a_full_disk_tells_what_the_system_says_and_nothing_else(tmp_path: Path):
    source, target = tmp_path / "source.wav", tmp_path / "small" / "decoded.wav"
    soundfile.write(source, np.zeros((300_000, 1), np.float32), 48000)
    with small_disk(target.parent), DecodingChild(ANY_LENGTH) as child:
        for decode in (decode_in_child, lambda path, into, limits: child.decode(path, into)):
            with pytest.raises(OSError, match=r"^the decoder failed: No space left on device$"):
                decode(source, target, ANY_LENGTH)
            assert not target.exists()


@pytest.mark.parametrize("frames", [1000, 30000])
@pytest.mark.parametrize("format", FORMATS)
def test_no_file_is_cut_short_without_an_error(format: str, frames: int, tmp_path: Path):
    """However little is missing: libsndfile does not tell that it could not write the last blocks."""
    channels = CHANNELS.get(format, 2)
    noise = np.random.default_rng(0).uniform(-1, 1, (channels, frames)).astype(np.float32)

    def write() -> int | None:
        try:
            with open_writer(tmp_path / "noise", format, 48000, channels, mask=MASK if channels > 2 else 0) as writer:
                writer.write(noise)
        except OSError as error:
            return error.errno
        return None

    assert write() is None
    whole = (tmp_path / "noise").stat().st_size
    for size in (0, 1, whole // 2, whole - 5000, whole - 1000, whole - 10, whole - 1):
        before = open_files()
        with full_disk(size):
            assert write() in DiskFull.errnos, size
        assert list(tmp_path.iterdir()) == [], size
        # PyAV keeps a file open whose header it could not write.
        assert not open_files() - before or (format == "m4a" and size < 2), size


@pytest.mark.parametrize(
    "begin",
    [
        lambda path: encoding.WavWriter(path, 44100, 70000, 16),
        lambda path: encoding.FlacWriter(path, 44100, 9, 16),
        lambda path: encoding.PacketWriter(path, "mp3", 44100, 2, 12345),
        lambda path: encoding.PacketWriter(path, "opus", 44100, 2, 44100),
        lambda path: encoding.PacketWriter(path, "m4a", 44100, 2, 1000),
    ],
    ids=["wav", "flac", "mp3", "opus", "m4a"],
)
def test_a_writer_that_cannot_begin_leaves_no_file(begin: Callable[[Path], AudioWriter], tmp_path: Path):
    """`check_format` refuses such channels and rates before."""
    before = open_files()
    with pytest.raises((OSError, ValueError, struct.error)) as raised:
        begin(tmp_path / "noise")
    # A traceback holds the writer, whose end would close what it has left open.
    assert not open_files() - before and raised.traceback
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("format", FORMATS)
def test_stems_on_a_full_disk_leave_no_files(format: str, tmp_path: Path):
    mixture = torch.rand(2, 6 * 48000, generator=torch.Generator().manual_seed(0)) - 0.5
    source = Source(48000, 2, mixture.shape[1], lambda: mixture.split(65536, dim=1))
    with Spool(tmp_path, 2, 2, file_bytes=4096) as spool:
        for block in mixture.split(4800, dim=1):
            for stem in range(2):
                spool.append(stem, block / 2)
        separated = SpooledStems(source, spool, [None] * 2)
        with pytest.raises(OSError) as raised:
            write(separated, ["a", "b"], tmp_path, SeparationOptions(format=format), lambda frames: None)
    assert raised.value.errno in DiskFull.errnos
    assert list(tmp_path.iterdir()) == []
