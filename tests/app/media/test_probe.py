import asyncio
import contextlib
import os
import random
import re
from pathlib import Path

import psutil
import pytest
from av.codec import Codec

from app.errors import AudioTooLong, AudioTooWide, AudioUndecodable, EarmarkError
from app.media import probe as media_probe
from app.media.demuxing import MAX_FRAMELESS_PACKETS
from app.media.input_formats import CODECS, CONTENT_TYPES
from app.media.probe import MediaInfo
from app.settings import Settings
from tests import media_files
from tests.conftest import REPOSITORY
from tests.media_files import noise, wav_bytes


def probe(path: Path, settings: Settings | None = None) -> MediaInfo:
    return asyncio.run(media_probe.probe(path, settings or Settings()))


@pytest.mark.parametrize("module", ["input_formats", "headers", "opening", "demuxing"])
def test_front_end_and_worker_open_files_by_the_same_code(module: str) -> None:
    ours = (REPOSITORY / "app" / "media" / f"{module}.py").read_text()
    theirs = (REPOSITORY / "models" / "media" / f"{module}.py").read_text()
    assert ours == theirs.replace("from models.media.", "from app.media.")


def test_the_manual_lists_what_is_accepted() -> None:
    manual = (REPOSITORY / "docker" / "README.md").read_text()
    section = manual.partition("## Accepted recordings")[2].partition("\n* ")[0]
    table, _, codecs = section.partition("Codecs, by the names")
    names = [name for row in table.split("\n| `")[1:] for name in re.findall(r"`([^`]*)`", "`" + row.split("|")[0])]
    assert sorted(names) == sorted(CONTENT_TYPES)
    accepted = {Codec(name, "r").canonical_name for name in CODECS}
    assert set(re.findall(r"`([a-z0-9_]+)`", codecs.partition(": ")[2])) == accepted


@pytest.mark.parametrize(
    ("name", "subtype", "container", "codec", "content_type"),
    [
        ("a.wav", "PCM_16", "wav", "pcm_s16le", "audio/wav"),
        ("a.wav", "FLOAT", "wav", "pcm_f32le", "audio/wav"),
        ("a.flac", "PCM_24", "flac", "flac", "audio/flac"),
        ("a.ogg", "VORBIS", "ogg", "vorbis", "audio/ogg"),
        ("a.aiff", "PCM_16", "aiff", "pcm_s16be", "audio/aiff"),
        ("a.mp3", "MPEG_LAYER_III", "mp3", "mp3", "audio/mpeg"),
    ],
)
def test_properties_are_read_from_the_bytes(
    tmp_path: Path, name: str, subtype: str, container: str, codec: str, content_type: str
) -> None:
    media_files.write_sound(tmp_path / name, noise(44100), 44100, subtype)
    upload = (tmp_path / name).rename(tmp_path / "upload")
    info = probe(upload)
    assert info == MediaInfo(container, codec, 44100, 2, info.duration, info.tracks)
    assert info.duration == pytest.approx(1.0, abs=1e-3)
    assert info.content_type == content_type


@pytest.mark.parametrize(
    ("muxer", "encoder", "container", "codec", "content_type"),
    [
        ("ogg", "libopus", "ogg", "opus", "audio/ogg"),
        ("webm", "libopus", "matroska", "opus", "audio/webm"),
        ("ipod", "aac", "mov", "aac", "audio/mp4"),
        ("adts", "aac", "aac", "aac", "audio/aac"),
    ],
)
def test_properties_of_compressed_files_are_read_from_the_bytes(
    tmp_path: Path, muxer: str, encoder: str, container: str, codec: str, content_type: str
) -> None:
    media_files.write_packets(tmp_path / "upload", noise(48000), 48000, muxer, encoder)
    info = probe(tmp_path / "upload")
    assert info == MediaInfo(container, codec, 48000, 2, info.duration, info.tracks)
    assert info.duration == pytest.approx(1.0, abs=0.05)
    assert info.content_type == content_type


@pytest.mark.parametrize("name", media_files.not_media())
def test_files_that_are_no_audio_are_refused(tmp_path: Path, name: str) -> None:
    media_files.write_packets(tmp_path / "secret.mp3", noise(44100), 44100, "mp3", "libmp3lame")
    (tmp_path / name).write_bytes(media_files.not_media()[name])
    with pytest.raises(AudioUndecodable) as error:
        probe(tmp_path / name)
    assert str(tmp_path) not in error.value.detail


def test_video_without_audio_is_refused(tmp_path: Path) -> None:
    media_files.write_video(tmp_path / "upload", None)
    with pytest.raises(AudioUndecodable, match="no audio stream"):
        probe(tmp_path / "upload")
    media_files.write_video(tmp_path / "upload", noise(48000))
    assert probe(tmp_path / "upload").codec == "aac"


@pytest.mark.parametrize(
    ("channels", "rate", "error"),
    [
        (9, 44100, AudioTooWide),
        (512, 44100, AudioTooWide),
        (1024, 44100, AudioUndecodable),
        (1, 1, AudioUndecodable),
        (2, 192001, AudioUndecodable),
    ],
)
def test_unlikely_headers_are_refused(tmp_path: Path, channels: int, rate: int, error: type[EarmarkError]) -> None:
    (tmp_path / "upload").write_bytes(wav_bytes(bytes(8192), channels, rate, 16))
    with pytest.raises(error):
        probe(tmp_path / "upload")


def test_recordings_that_are_too_long_by_their_headers_are_refused(tmp_path: Path) -> None:
    media_files.write_flac_silence(tmp_path / "upload", 90)
    assert probe(tmp_path / "upload").duration == 90
    with pytest.raises(AudioTooLong, match="60 s"):
        probe(tmp_path / "upload", Settings(recording_seconds=60))
    with pytest.raises(AudioTooLong):
        probe(tmp_path / "upload", Settings(recording_samples=1e6))


def test_no_file_is_refused_for_an_estimated_duration(tmp_path: Path) -> None:
    media_files.write_packets(tmp_path / "upload", noise(48000), 48000, "adts", "aac")
    assert probe(tmp_path / "upload", Settings(recording_seconds=0.5)).duration is not None


def test_packets_that_cannot_be_decoded_end_the_probe(tmp_path: Path) -> None:
    """13 MiB of them would take ten seconds; a recording may begin with a few."""
    media_files.write_undecodable_packets(tmp_path / "upload", 2 * MAX_FRAMELESS_PACKETS)
    with pytest.raises(AudioUndecodable, match="too much of it in a row"):
        probe(tmp_path / "upload")
    media_files.write_undecodable_packets(tmp_path / "upload", MAX_FRAMELESS_PACKETS // 2, noise(9600))
    assert probe(tmp_path / "upload").codec == "aac"


@pytest.mark.soak
def test_damaged_headers_raise_typed_errors(tmp_path: Path) -> None:
    """Seeded byte flips in the headers of several formats."""
    chance = random.Random(3)
    media_files.write_packets(tmp_path / "a.m4a", noise(3000), 48000, "ipod", "aac")
    media_files.write_packets(tmp_path / "a.webm", noise(3000), 48000, "webm", "libopus")
    media_files.write_sound(tmp_path / "a.flac", noise(3000), 48000, "PCM_16")
    for source in ("a.m4a", "a.webm", "a.flac"):
        for _ in range(100 if os.environ.get("EARMARK_SOAK") else 2):
            content = bytearray((tmp_path / source).read_bytes())
            for _ in range(8):
                content[chance.randrange(min(len(content), 400))] = chance.randrange(256)
            (tmp_path / "upload").write_bytes(content)
            with contextlib.suppress(AudioUndecodable, AudioTooLong, AudioTooWide):
                assert probe(tmp_path / "upload").channels <= 8


def children_cpu_seconds() -> float:
    """CPU seconds of the sandbox's children that have ended, which do not depend on the machine's load."""
    times = [child.cpu_times() for child in psutil.Process().children() if "app.media.probe" in child.cmdline()]
    return sum(each.children_user + each.children_system for each in times)


def test_a_probe_is_fast_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    media_files.write_sound(tmp_path / "a.wav", noise(44100), 44100, "PCM_16")
    probe(tmp_path / "a.wav")  # starts the zygote
    # Many: the system counts in hundredths of a second, and one takes about that.
    count, start = 20, children_cpu_seconds()
    for _ in range(count):
        probe(tmp_path / "a.wav")
    assert 0 < (children_cpu_seconds() - start) / count < 0.1
    assert not list((tmp_path / "temporary").iterdir())
