import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from models.media import (
    AudioTooLong,
    AudioTooWide,
    AudioUndecodable,
    Limits,
    MediaError,
    decode,
    open_audio,
)
from tests import media_files
from tests.media_files import Samples, noise, wav_bytes


def read(path: Path, limits: Limits | None = None) -> Samples:
    with open_audio(path, limits) as reader:
        return np.concatenate(list(reader), axis=1)


# What comes in: integers and floats


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 96000, 192000])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize(
    ("name", "subtype", "bits"),
    [
        ("a.wav", "PCM_U8", 8),
        ("a.wav", "PCM_16", 16),
        ("a.wav", "PCM_24", 24),
        ("a.wav", "PCM_32", 32),
        ("a.wav", "FLOAT", 32),
        ("a.wav", "DOUBLE", 64),
        ("a.w64", "PCM_24", 24),
        ("a.flac", "PCM_16", 16),
        ("a.flac", "PCM_24", 24),
        ("a.aiff", "PCM_16", 16),
        ("a.aiff", "PCM_24", 24),
    ],
)
def test_lossless_files_are_read_to_the_bit(
    tmp_path: Path, name: str, subtype: str, bits: int, channels: int, rate: int
) -> None:
    path = tmp_path / name
    media_files.write_sound(path, noise(3001, channels), rate, subtype)
    expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
    with open_audio(path) as reader:
        assert (reader.rate, reader.channels) == (rate, channels)
        sound = np.concatenate(list(reader), axis=1)
    np.testing.assert_array_equal(sound, expected.T)
    assert reader.info.frames == 3001
    assert np.abs(sound - noise(3001, channels)).max() <= 2.0 ** (1 - min(bits, 24))


def test_full_scale_is_one_whatever_the_width(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    for bits, lowest in ((8, b"\0"), (16, b"\0\x80"), (24, b"\0\0\x80"), (32, b"\0\0\0\x80")):
        path.write_bytes(wav_bytes(lowest * 100, 1, 8000, bits))
        assert read(path).tolist() == [[-1.0] * 100]


def test_floats_above_one_pass_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    loud = np.array([[3.5, -7.25, 0.0, 1e-30]], np.float32)
    path.write_bytes(wav_bytes(loud.tobytes(), 1, 8000, 32, tag=3))
    np.testing.assert_array_equal(read(path), loud)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.wav"
    samples = np.zeros(200000)
    samples[150000] = value
    path.write_bytes(wav_bytes(samples.tobytes(), 1, 8000, 64, tag=3))
    with pytest.raises(
        AudioUndecodable, match=r"^Samples before \d+\.\d s are not finite .*: export the recording again"
    ):
        read(path)


def test_blocks_are_bounded_and_only_the_last_is_short(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    media_files.write_sound(path, noise(200_000), 44100, "PCM_16")
    with open_audio(path) as reader:
        assert [block.shape for block in reader] == [(2, 65536)] * 3 + [(2, 200_000 - 3 * 65536)]


# What comes in: codecs that lose something, and their delay


@pytest.mark.parametrize("frames", [2, 100, 700, 12345, 44100])
@pytest.mark.parametrize(
    ("name", "muxer", "codec", "rate", "options"),
    [
        ("a.mp3", "mp3", "libmp3lame", 44100, {}),
        ("a.mp3", "mp3", "libmp3lame", 22050, {}),
        ("a.opus", "ogg", "libopus", 48000, {}),
        ("a.webm", "webm", "libopus", 48000, {}),
        ("a.m4a", "ipod", "aac", 44100, {"movie_timescale": "44100"}),
        ("a.mp4", "mp4", "aac", 48000, {"movie_timescale": "48000"}),
        ("a.mka", "matroska", "libmp3lame", 48000, {}),
    ],
)
def test_encoder_delay_and_padding_are_left_out(
    tmp_path: Path, name: str, muxer: str, codec: str, rate: int, options: dict[str, str], frames: int
) -> None:
    path = tmp_path / name
    sound = noise(frames)
    media_files.write_packets(path, sound, rate, muxer, codec, **options)
    decoded = read(path)
    if frames >= 700:
        assert decoded.shape == sound.shape
        assert media_files.lag(sound[0], decoded[0]) == 0
    else:
        # Of less than a packet FFmpeg's own muxers do not tell all padding.
        assert 0 < decoded.shape[1] <= 1152


def test_mp4s_that_count_in_milliseconds_are_right_to_one(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    media_files.write_packets(path, noise(12345), 44100, "ipod", "aac")
    assert abs(read(path).shape[1] - 12345) <= 44


@pytest.mark.parametrize("frames", [1, 100, 700, 8192, 12345, 44100])
def test_vorbis_keeps_its_length(tmp_path: Path, frames: int) -> None:
    path = tmp_path / "a.ogg"
    media_files.write_sound(path, noise(frames), 44100, "VORBIS")
    decoded = read(path)
    assert decoded.shape == (2, frames)
    if frames > 700:
        assert media_files.lag(noise(frames)[0], decoded[0]) == 0


def test_bare_aac_keeps_its_padding(tmp_path: Path) -> None:
    path = tmp_path / "a.aac"
    media_files.write_packets(path, noise(44100), 44100, "adts", "aac")
    assert read(path).shape == (2, 46080)


def test_the_sound_of_a_video_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    media_files.write_video(path, noise(48000))
    assert abs(read(path).shape[1] - 48000) < 48
    media_files.write_video(path, None)
    with pytest.raises(AudioUndecodable, match="no audio stream"):
        open_audio(path)


# What comes in: lies, and worse


@pytest.mark.parametrize("name", media_files.not_media())
def test_what_is_no_audio_is_refused(tmp_path: Path, name: str) -> None:
    media_files.write_packets(tmp_path / "secret.mp3", noise(44100), 44100, "mp3", "libmp3lame")
    (tmp_path / name).write_bytes(media_files.not_media()[name])
    with pytest.raises(AudioUndecodable):
        decode(tmp_path / name, tmp_path / "out.wav")
    assert not (tmp_path / "out.wav").exists()


def test_a_name_is_never_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("concat:a.wav|b.wav")
    path.write_bytes(wav_bytes(bytes(2000), 1, 8000, 16))
    assert read(path).shape == (1, 1000)


@pytest.mark.parametrize(
    ("channels", "rate", "error"),
    [
        (9, 44100, AudioTooWide),
        (64, 44100, AudioTooWide),
        # FFmpeg does not count beyond 512.
        (512, 44100, AudioTooWide),
        (1024, 44100, AudioUndecodable),
        (65535, 44100, AudioUndecodable),
        (0, 44100, AudioUndecodable),
        (1, 1, AudioUndecodable),
        (2, 7999, AudioUndecodable),
        (2, 192001, AudioUndecodable),
        (1, 0, AudioUndecodable),
        (1, 4_000_000_000, AudioUndecodable),
    ],
)
def test_unlikely_headers_are_refused(tmp_path: Path, channels: int, rate: int, error: type[MediaError]) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(bytes(8192), channels, rate, 16))
    with pytest.raises(error):
        decode(path, tmp_path / "out.wav")
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize("said", [0, 1, 400, 2**31, 2**32 - 1])
def test_a_data_chunk_that_lies_about_its_length_gives_at_most_what_is_there(tmp_path: Path, said: int) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(bytes(8000), 1, 8000, 16, said=said))
    try:
        assert 0 < read(path).shape[1] <= 4000
    except AudioUndecodable:
        assert said < 2


@pytest.mark.parametrize("hide_length", [False, True], ids=["honest header", "header without a length"])
def test_an_hour_of_silence_in_110_kb_stops_at_the_limit(tmp_path: Path, hide_length: bool) -> None:
    path = tmp_path / "hour.flac"
    media_files.write_flac_silence(path, 3600, rate=8000, hide_length=hide_length)
    assert path.stat().st_size < 120_000
    with pytest.raises(AudioTooLong, match="60 s"):
        decode(path, tmp_path / "out.wav", Limits(seconds=60))
    with pytest.raises(AudioTooLong):
        decode(path, tmp_path / "out.wav", Limits(samples=1e6))
    assert not (tmp_path / "out.wav").exists()


def test_exactly_the_limit_passes(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    media_files.write_sound(path, noise(16000), 8000, "PCM_16")
    assert decode(path, tmp_path / "out.wav", Limits(seconds=2, samples=32000)).frames == 16000
    with pytest.raises(AudioTooLong):
        decode(path, tmp_path / "out.wav", Limits(seconds=2, samples=31999))


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.opus", "a.aac", "a.mka"])
def test_a_truncated_file_gives_what_is_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    sound = noise(5 * 48000)
    if path.suffix in (".wav", ".flac"):
        media_files.write_sound(path, sound, 48000, "PCM_16")
    else:
        muxer, codec = {
            ".mp3": ("mp3", "libmp3lame"),
            ".opus": ("ogg", "libopus"),
            ".aac": ("adts", "aac"),
            ".mka": ("matroska", "aac"),
        }[path.suffix]
        media_files.write_packets(path, sound, 48000, muxer, codec)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with open_audio(path) as reader:
        frames = sum(block.shape[1] for block in reader)
    assert 0.3 < frames / sound.shape[1] < 0.95
    assert reader.info.frames == frames
    path.write_bytes(whole[:30])
    with pytest.raises(AudioUndecodable):
        read(path)


@pytest.mark.parametrize(("muxer", "codec"), [("mp3", "libmp3lame"), ("adts", "aac")])
@pytest.mark.parametrize("frames", [1200, 3000])
def test_a_few_packets_need_no_name_to_be_known(tmp_path: Path, muxer: str, codec: str, frames: int) -> None:
    media_files.write_packets(tmp_path / "upload", noise(frames), 48000, muxer, codec)
    assert read(tmp_path / "upload").shape[1] >= frames


def test_an_mp4_without_its_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    media_files.write_packets(path, noise(44100), 44100, "ipod", "aac")
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(AudioUndecodable):
        read(path)


def test_a_damaged_middle_is_counted_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    media_files.write_sound(path, noise(200_000), 48000, "PCM_16")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20] = np.random.default_rng(1).bytes(20)
    path.write_bytes(content)
    with open_audio(path) as reader:
        frames = sum(block.shape[1] for block in reader)
    assert 150_000 < frames <= 200_000
    assert reader.info.damaged or frames == 200_000


def test_tags_in_another_alphabet_are_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    tags = b"INFOIART" + struct.pack("<I", 8) + b"Bj\xf6rk\xff\xfe\0"
    path.write_bytes(wav_bytes(bytes(4000), 1, 8000, 16) + b"LIST" + struct.pack("<I", len(tags)) + tags)
    assert read(path).shape == (1, 2000)


def test_a_missing_file_is_not_a_bad_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_audio(tmp_path / "nothing.wav")


# The program


def run_program(*arguments: str) -> tuple[int, dict]:
    answer = subprocess.run(
        [sys.executable, "-m", "models.media", "decode", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert not answer.stderr
    assert answer.stdout.count("\n") == 1
    return answer.returncode, json.loads(io.StringIO(answer.stdout).read())


def test_the_program_says_in_one_line_what_it_did(tmp_path: Path) -> None:
    media_files.write_packets(tmp_path / "in", noise(44100), 44100, "mp3", "libmp3lame")
    code, answer = run_program(str(tmp_path / "in"), str(tmp_path / "out"))
    assert code == 0
    assert answer["ok"] == {
        "container": "mp3",
        "codec": "mp3",
        "rate": 44100,
        "channels": 2,
        "frames": 44100,
        "duration": 1.0,
        "damaged": 0,
        "mask": 3,
        "warnings": [],
    }
    assert soundfile.info(tmp_path / "out").subtype == "FLOAT"
    code, answer = run_program(str(tmp_path / "in"), str(tmp_path / "no"), "--limits", '{"seconds": 0.5}')
    assert (code, answer["error"]["code"]) == (1, "audio_too_long")
    assert not (tmp_path / "no").exists()


def test_the_program_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'scipy', 'torchaudio', 'pydantic'}"
    subprocess.run(
        [sys.executable, "-c", f"import sys, models.media; sys.exit(str({heavy} & set(sys.modules)) != 'set()')"],
        check=True,
        cwd=Path(__file__).parents[2],
    )
