"""Recordings on the clock of their file: beginnings, gaps and ends, each against FFmpeg's own decode."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from app.media import probe
from models.media import AudioTooLong, AudioUndecodable, Limits
from tests.ffmpeg_files import RATE, SYNC, Folder, truth
from tests.media_files import lag
from tests.models.test_media_field import read


@pytest.mark.parametrize("end", ["webm", "mkv", "mp4", "ogg"])
def test_gaps_are_silent(field: Folder, end: str) -> None:
    sound, info = read(field.make(f"gap.{end}"))
    whole, _ = read(field.make(f"long.{end}"))
    expected = truth(field.make(f"gap.{end}"), 2, SYNC)
    assert abs(sound.shape[1] - expected.shape[1]) < 0.01 * RATE
    assert abs(sound.shape[1] - whole.shape[1]) < 0.001 * RATE
    assert not sound[:, round(2.1 * RATE) : round(4.9 * RATE)].any()
    for part in (slice(0, 2 * RATE - 3000), slice(6 * RATE, 7 * RATE)):
        assert abs(lag(whole[0, part], sound[0, part])) <= 48
    assert len(info.warnings) == 1
    assert "no sound from" in info.warnings[0]
    assert "s in all" in info.warnings[0]


@pytest.mark.parametrize("end", ["mkv", "mp4"])
def test_sound_that_starts_after_the_picture_is_preceded_by_silence(field: Folder, end: str) -> None:
    sound, info = read(field.make(f"late.{end}"))
    expected = truth(field.make(f"late.{end}"), 2, SYNC)
    assert 0 <= expected.shape[1] - sound.shape[1] <= 1200
    np.testing.assert_allclose(sound, expected[:, : sound.shape[1]], atol=1e-4)
    assert not sound[:, : round(1.9 * RATE)].any()
    assert "no sound from 0.00 to 1.98 s" in info.warnings[0]


def test_a_transport_stream_begins_with_its_first_picture(field: Folder) -> None:
    """Its clock begins anywhere; FFmpeg's program begins with the first stream that it decodes."""
    sound, info = read(field.make("late.ts"))
    expected, _ = read(field.make("late.mkv"))
    assert abs(lag(expected[0], sound[0])) < 0.05 * RATE
    assert not sound[:, : round(1.9 * RATE)].any()
    assert "no sound from 0.00" in info.warnings[0]


def test_gaps_are_silent_in_recordings_without_a_length(field: Folder) -> None:
    sound, info = read(field.make("live.webm"))
    np.testing.assert_array_equal(sound, read(field.make("gap.webm"))[0])
    assert len(info.warnings) == 1


def test_silence_in_gaps_counts_against_the_limits(field: Folder) -> None:
    with pytest.raises(AudioTooLong):
        read(field.make("gap.webm"), Limits(seconds=6))


def stamped(path: Path, stamps: list[float]) -> None:
    """Write PCM in Matroska: a packet of 20 ms at each time stamp, in seconds."""
    with av.open(str(path), "w", format="matroska") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=RATE)
        stream.codec_context.layout = "mono"
        for stamp in stamps:
            frame = av.AudioFrame.from_ndarray(np.full((1, RATE // 50), 9000, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, 1000)
            for packet in stream.encode(frame):
                packet.pts = packet.dts = round(stamp * 1000)
                packet.time_base = Fraction(1, 1000)
                container.mux(packet)


def test_jitter_makes_no_more_silence_than_its_largest(tmp_path: Path) -> None:
    """Every tenth packet is stamped 80 ms late, and the next one in time again."""
    stamps = [0.02 * number + (0.08 if number % 10 == 5 else 0.0) for number in range(200)]
    stamped(tmp_path / "a.mkv", sorted(stamps))
    sound, _ = read(tmp_path / "a.mkv")
    assert 4 <= sound.shape[1] / RATE < 4.15


def test_a_gap_of_hours_is_not_filled_where_no_header_tells_of_it(tmp_path: Path) -> None:
    stamped(tmp_path / "a.mkv", [0, 0.02, 0.04, 9000, 9000.02])
    content = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(
        content.replace(b"DURATION", b"NOTATION").replace(b"\x44\x89\x88", b"\x44\x88\x88")
    )
    sound, info = read(tmp_path / "a.mkv")
    assert sound.shape[1] == RATE // 10
    assert "Time stamps jump at 0.1 s" in info.warnings[0]


# Beginnings


@pytest.mark.parametrize("name", ["late.wmv", "late.ogv", "late-opus.ogv"])
def test_what_a_decoder_holds_back_after_a_picture_is_silent(field: Folder, name: str) -> None:
    sound, info = read(field.make(name))
    expected = truth(field.make(name), 2, SYNC)
    assert sound.shape == expected.shape
    np.testing.assert_allclose(sound, expected, atol=1e-4)
    # Of the first block, FFmpeg's WMA decoder gives nothing.
    block = 2048 if name == "late.wmv" else 0
    assert abs(lag(truth(field.make("stereo.wav"), 2)[0, block:], sound[0, RATE + block :])) <= 48
    assert "no sound from 0.00" in info.warnings[0]
    duration = probe.read_headers(field.make(name)).duration
    assert duration is not None and duration >= sound.shape[1] / RATE - 0.1


@pytest.mark.parametrize("end", ["mkv", "webm", "opus", "ogg", "wma", "flv", "ts", "mp4"])
def test_a_clock_that_begins_at_any_time_makes_no_recording_longer(field: Folder, end: str) -> None:
    """As in what is recorded from a stream that has run for a day: headers tell the clock's last time."""
    sound, info = read(field.make(f"far.{end}"))
    expected = truth(field.make(f"far.{end}"), 2)
    # FFmpeg leaves the padding that only mp4's edit list tells.
    assert 0 <= expected.shape[1] - sound.shape[1] <= (1200 if end == "mp4" else 0)
    np.testing.assert_allclose(sound, expected[:, : sound.shape[1]], atol=1e-4)
    assert info.warnings == ()
    duration = probe.read_headers(field.make(f"far.{end}")).duration
    assert duration == pytest.approx(sound.shape[1] / RATE, abs=0.2)


def test_an_edit_list_tells_the_end_of_sound_that_begins_late(field: Folder) -> None:
    sound, info = read(field.make("late-trimmed.mov"))
    whole = truth(field.make("long.wav"), 2)
    assert sound.shape == (2, 3 * RATE)
    assert not sound[:, :RATE].any()
    np.testing.assert_array_equal(sound[:, RATE:], whole[:, 5 * RATE : 7 * RATE])
    assert len(info.warnings) == 1


def test_a_duration_that_ffmpeg_estimates_is_no_header(field: Folder) -> None:
    sound, info = read(field.make("live.mka"))
    np.testing.assert_allclose(sound, truth(field.make("live.mka"), 2), atol=1e-4)
    assert info.warnings == ()


def test_what_cannot_be_converted_is_refused(field: Folder) -> None:
    """AAC in WAV is read in pieces that are not packets, which decode to anything."""
    with pytest.raises(AudioUndecodable, match="cannot be converted"):
        read(field.make("aac.wav"))
