import errno
import os
import random
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from app.media.zygote import CHILD_NAME
from app.settings import Settings
from models.errors import AudioTooLong, AudioTooWide, AudioUndecodable, Cancelled, MediaError
from models.media import Limits, open_audio
from tests import media_files
from tests.full_disk import small_disk
from tests.media_files import noise, wav_bytes
from worker.decode import DecodeTimedOut, decode, fitting_sandbox

VARIANTS = 20 if os.environ.get("EARMARK_SOAK") else 2  # damaged ones of each file; every second in its header


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the target; only the target may remain in it."""
    folder = tmp_path / "job"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hour") / "hour.flac"
    media_files.write_flac_silence(path, 3600, hide_length=True)
    return path


def test_media_are_decoded_to_float_wav(tmp_path: Path, folder: Path) -> None:
    media_files.write_packets(tmp_path / "upload", noise(30000), 44100, "mp3", "libmp3lame")
    info = decode(tmp_path / "upload", folder / "mixture.wav")
    assert (info.container, info.codec, info.rate, info.channels, info.frames) == ("mp3", "mp3", 44100, 2, 30000)
    with open_audio(tmp_path / "upload") as reader:
        expected = np.concatenate(list(reader), axis=1)
    decoded, rate = soundfile.read(folder / "mixture.wav", dtype="float32")
    np.testing.assert_array_equal(decoded.T, expected)
    assert rate == 44100
    assert [path.name for path in folder.iterdir()] == ["mixture.wav"]


# Less than any child process needs to start.
NO_CHILD = replace(fitting_sandbox(Limits()), memory_bytes=1 << 20)


def test_plain_wav_is_converted_without_a_child(tmp_path: Path, folder: Path) -> None:
    media_files.write_sound(tmp_path / "upload.wav", noise(100_000), 44100, "PCM_16")
    info = decode(tmp_path / "upload.wav", folder / "mixture.wav", sandbox_limits=NO_CHILD)
    assert (info.container, info.codec, info.rate, info.channels, info.frames) == (
        "wav",
        "pcm_s16le",
        44100,
        2,
        100_000,
    )
    expected, _ = soundfile.read(tmp_path / "upload.wav", dtype="float32")
    np.testing.assert_array_equal(soundfile.read(folder / "mixture.wav", dtype="float32")[0], expected)
    assert soundfile.info(folder / "mixture.wav").subtype == "FLOAT"
    assert [path.name for path in folder.iterdir()] == ["mixture.wav"]


def test_a_wav_that_may_hold_another_codec_is_left_to_the_child(tmp_path: Path, folder: Path) -> None:
    """The samples begin like a frame of MPEG audio, for which FFmpeg would load its decoder."""
    content = wav_bytes(b"\xff\xfb" + noise(10_000).astype(np.float32).tobytes()[:40_000], 2, 44100, 16)
    (tmp_path / "upload").write_bytes(content)
    with pytest.raises(AudioUndecodable):
        decode(tmp_path / "upload", folder / "mixture.wav", sandbox_limits=NO_CHILD)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("limits", "cancelled", "error"),
    [
        (Limits(seconds=2), False, AudioTooLong),
        (Limits(channels=1), False, AudioTooWide),
        (Limits(lowest_rate=48000), False, AudioUndecodable),
        (Limits(), True, Cancelled),
    ],
)
def test_plain_wav_has_the_same_limits(
    tmp_path: Path, folder: Path, limits: Limits, cancelled: bool, error: type[Exception]
) -> None:
    media_files.write_sound(tmp_path / "upload.wav", noise(200_000), 44100, "PCM_16")
    with pytest.raises(error):
        decode(tmp_path / "upload.wav", folder / "mixture.wav", limits, cancelled=lambda: cancelled)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", media_files.not_media())
def test_files_without_audio_raise_a_typed_error(tmp_path: Path, folder: Path, name: str) -> None:
    media_files.write_packets(tmp_path / "secret.mp3", noise(44100), 44100, "mp3", "libmp3lame")
    (tmp_path / name).write_bytes(media_files.not_media()[name])
    with pytest.raises(AudioUndecodable) as raised:
        decode(tmp_path / name, folder / "mixture.wav")
    assert str(tmp_path) not in raised.value.detail
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("channels", "rate", "error"), [(9, 44100, AudioTooWide), (1024, 44100, AudioUndecodable), (1, 1, AudioUndecodable)]
)
def test_limits_apply_in_the_child_process(
    tmp_path: Path, folder: Path, channels: int, rate: int, error: type[MediaError]
) -> None:
    (tmp_path / "upload").write_bytes(wav_bytes(bytes(8192), channels, rate, 16))
    with pytest.raises(error):
        decode(tmp_path / "upload", folder / "mixture.wav")
    assert not list(folder.iterdir())


def test_an_hour_of_silence_stops_at_the_limit(hour: Path, folder: Path) -> None:
    """Had it written more than 70 s, the limit of files would be the error."""
    limits = Limits(seconds=60)
    small = replace(fitting_sandbox(limits), file_bytes=70 * 44100 * 2 * 4)
    with pytest.raises(AudioTooLong, match="60 s"):
        decode(hour, folder / "mixture.wav", limits, sandbox_limits=small)
    assert not list(folder.iterdir())


def test_memory_does_not_grow_with_duration(tmp_path: Path, folder: Path) -> None:
    """Ten minutes are 212 MB of floats; libraries alone take 220 MB of address space."""
    small = replace(fitting_sandbox(Limits()), memory_bytes=320 << 20)
    media_files.write_flac_silence(tmp_path / "upload", 600)
    assert decode(tmp_path / "upload", folder / "mixture.wav", sandbox_limits=small).frames == 600 * 44100


def test_the_longest_recording_may_be_decoded_for_half_an_hour_and_an_example_for_two_minutes() -> None:
    """Both pass in much less; a child ends before the job that it belongs to."""
    settings = Settings()
    for seconds, expected in ((settings.recording_seconds, 1920), (settings.example_seconds, 125)):
        sandbox = fitting_sandbox(Limits(seconds=seconds))
        assert (sandbox.seconds, sandbox.cpu_seconds) == (expected, expected + 1)
        assert sandbox.seconds < settings.execution_timeout(seconds)


def _decoder_process() -> psutil.Process | None:
    return next((child for child in psutil.Process().children(recursive=True) if child.name() == CHILD_NAME), None)


def test_a_killed_decoder_is_an_error_of_this_file_alone(hour: Path, folder: Path) -> None:
    def kill() -> None:
        while not any(folder.glob("*/decoded.wav")):
            time.sleep(0.01)
        decoder = _decoder_process()
        assert decoder is not None
        os.kill(decoder.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(AudioUndecodable, match="SIGKILL"):
        decode(hour, folder / "mixture.wav")
    killer.join()
    assert not list(folder.iterdir())
    media_files.write_sound(folder / "next.wav", noise(1000), 8000, "PCM_16")
    assert decode(folder / "next.wav", folder / "mixture.wav").frames == 1000


def test_the_zygote_has_one_thread_and_starts_once(tmp_path: Path, folder: Path) -> None:
    """A process with several threads cannot fork safely: numeric libraries would start some when they are imported."""
    media_files.write_sound(tmp_path / "a.flac", noise(1000), 8000, "PCM_16")
    decode(tmp_path / "a.flac", folder / "mixture.wav")
    zygotes = [child for child in psutil.Process().children() if "models.media.decoding" in child.cmdline()]
    assert [zygote.num_threads() for zygote in zygotes] == [1]
    decode(tmp_path / "a.flac", folder / "mixture.wav")
    assert zygotes[0].is_running() and not zygotes[0].children()


def test_cancellation_kills_the_decoder(hour: Path, folder: Path) -> None:
    stop = threading.Event()

    def cancel() -> None:
        while not any(folder.glob("*/decoded.wav")):
            time.sleep(0.01)
        stop.set()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(Cancelled):
        decode(hour, folder / "mixture.wav", cancelled=stop.is_set)
    canceller.join()
    assert not list(folder.iterdir())
    assert _decoder_process() is None


def test_a_decoder_past_its_time_limit_is_killed(hour: Path, folder: Path) -> None:
    with pytest.raises(DecodeTimedOut, match=r"longer than 0\.3 s") as raised:
        decode(hour, folder / "mixture.wav", sandbox_limits=replace(fitting_sandbox(Limits()), seconds=0.3))
    assert raised.value.code == "timed_out"
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        ({"memory_bytes": 128 << 20}, AudioUndecodable, None),
        ({"file_bytes": 1 << 20}, AudioTooLong, "larger than allowed"),
    ],
    ids=["memory", "file"],
)
def test_a_bomb_hits_the_limits_of_the_sandbox(
    hour: Path, folder: Path, limit: dict[str, int], error: type[MediaError], message: str | None
) -> None:
    with pytest.raises(error, match=message):
        decode(hour, folder / "mixture.wav", sandbox_limits=replace(fitting_sandbox(Limits()), **limit))
    assert not list(folder.iterdir())


def test_an_error_of_the_machine_is_an_os_error(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "nothing", folder / "mixture.wav")
    media_files.write_sound(tmp_path / "a.wav", noise(1000), 8000, "PCM_16")
    with pytest.raises(OSError, match="No such file"):
        decode(tmp_path / "a.wav", tmp_path / "no" / "mixture.wav")


@pytest.mark.soak
def test_damaged_files_are_decoded_or_raise_a_typed_error(tmp_path: Path, folder: Path) -> None:
    """Seeded byte flips in each kind of file: they may crash the child, never the caller."""
    chance = random.Random(7)
    media_files.write_packets(tmp_path / "a.mp3", noise(20000), 44100, "mp3", "libmp3lame")
    media_files.write_packets(tmp_path / "a.opus", noise(20000), 48000, "ogg", "libopus")
    media_files.write_packets(tmp_path / "a.m4a", noise(20000), 44100, "ipod", "aac")
    media_files.write_packets(tmp_path / "a.mka", noise(20000), 44100, "matroska", "aac")
    media_files.write_sound(tmp_path / "a.ogg", noise(20000), 44100, "VORBIS")
    media_files.write_sound(tmp_path / "a.flac", noise(20000), 44100, "PCM_16")
    media_files.write_sound(tmp_path / "a.wav", noise(20000), 44100, "FLOAT")
    for source in sorted(tmp_path.glob("a.*")):
        for index in range(VARIANTS):
            content = bytearray(source.read_bytes())
            for _ in range(10):
                content[chance.randrange(min(len(content), 300) if index % 2 else len(content))] = chance.randrange(256)
            (tmp_path / "upload").write_bytes(content)
            try:
                info = decode(tmp_path / "upload", folder / "mixture.wav", Limits(seconds=10))
                assert soundfile.info(folder / "mixture.wav").frames == info.frames
                (folder / "mixture.wav").unlink()
            except (AudioUndecodable, AudioTooLong, AudioTooWide):
                pass
            assert not list(folder.iterdir())


def test_a_full_disk_is_an_error_of_the_machine(tmp_path: Path):
    """A file system of 1 MiB; 25 s of silence decode to 3 MB."""
    soundfile.write(tmp_path / "silence.flac", np.zeros((400_000, 2)), 16000)
    small = tmp_path / "small"
    with small_disk(small):
        with pytest.raises(OSError, match="No space left") as raised:
            decode(tmp_path / "silence.flac", small / "decoded.wav")
        assert raised.value.errno == errno.ENOSPC
        assert list(small.iterdir()) == []
