"""Waveforms to draw: exact minima and maxima, drawn once, in bounded memory."""

import asyncio
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.errors import AudioTooLong, AudioUndecodable
from app.housekeeping.sweeps import Housekeeping
from app.media import waveform
from app.media.sandbox import SandboxLimits
from app.media.waveform import MAX_STRETCHES, Waveform
from app.records.audio import waveform_key
from app.settings import Settings
from tests import media_files
from tests.app.audio.test_audio import nothing_left
from tests.app.conftest import Service, problem, wav


def draw(path: Path, settings: Settings | None = None) -> Waveform:
    return asyncio.run(waveform.compute(path, settings or Settings()))


def extremes(samples: np.ndarray, bounds: list[int]) -> list[tuple[list[float], list[float]]]:
    spans = list(pairwise(bounds))
    return [
        ([float(line[a:b].min()) for a, b in spans], [float(line[a:b].max()) for a, b in spans]) for line in samples.T
    ]


@pytest.mark.parametrize(
    ("samples", "channels", "most"),
    [(1, 1, 5), (100, 2, 100), (100, 3, 7), (20_000, 2, 1), (MAX_STRETCHES + 1, 1, 8192), (300_000, 2, 2000)],
)
def test_every_point_is_the_least_and_the_greatest_of_its_samples(
    tmp_path: Path, samples: int, channels: int, most: int
) -> None:
    sound = np.random.default_rng(samples).uniform(-1.5, 1.5, (samples, channels)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, 44100, subtype="FLOAT")
    drawn = draw(tmp_path / "a.wav")
    assert (drawn.sample_rate, drawn.samples) == (44100, samples)
    stretches = len(drawn.least[0])
    assert stretches == -(-samples // drawn.stretch) and min(samples, MAX_STRETCHES // 2) <= stretches <= MAX_STRETCHES
    count = min(most, stretches)
    bounds = [min(samples, drawn.stretch * (stretches * point // count)) for point in range(count + 1)]
    for found, expected in zip(drawn.points(most), extremes(sound, bounds), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert Waveform.from_bytes(drawn.to_bytes()) == drawn


@given(blocks=st.lists(st.integers(1, 9), min_size=1, max_size=300), seed=st.integers(0, 99))
@hypothesis_settings(max_examples=30, deadline=None)
def test_stretches_are_joined_without_loss(blocks: list[int], seed: int) -> None:
    """However many come: what was joined is what would have been seen in longer stretches."""
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        patched.setattr(waveform, "MAX_STRETCHES", 8)
        lines = waveform._WaveformBuilder(1, 4)
        levels = np.random.default_rng(seed).uniform(-1, 1, sum(blocks))
        for level in levels:
            lines.add(4, {"lavfi.astats.1.Min_level": f"{level:f}", "lavfi.astats.1.Max_level": f"{level + 1:f}"})
    joined = lines.stretch // 4
    assert len(lines.least[0]) == -(-len(levels) // joined) <= 8 and lines.samples == 4 * len(levels)
    for number, (least, greatest) in enumerate(zip(lines.least[0], lines.greatest[0], strict=True)):
        mine = levels[number * joined : (number + 1) * joined]
        assert least == pytest.approx(mine.min(), abs=1e-5) and greatest == pytest.approx(mine.max() + 1, abs=1e-5)


@pytest.mark.parametrize("kind", ["hidden.flac", "a.mp3", "a.m4a", "a.webm"])
def test_lengths_that_headers_hide_are_found(tmp_path: Path, kind: str) -> None:
    path, sound = tmp_path / kind, media_files.noise(48000 * 4)
    if kind == "hidden.flac":
        media_files.write_flac_silence(path, 60, hide_length=True)
    elif kind == "a.mp3":
        media_files.write_sound(path, sound, 48000, "MPEG_LAYER_III")
    else:
        muxer, codec = {"a.m4a": ("ipod", "aac"), "a.webm": ("webm", "libopus")}[kind]
        media_files.write_packets(path, sound, 48000, muxer, codec)
    drawn = draw(path)
    assert drawn.samples / drawn.sample_rate == pytest.approx(60 if kind == "hidden.flac" else 4, abs=0.1)
    greatest = max(drawn.greatest[0])
    assert greatest == 0 if kind == "hidden.flac" else 0.3 < greatest < 0.7


def test_what_is_no_number_is_drawn_as_silence(tmp_path: Path) -> None:
    sound = np.array([[0.5, np.nan], [np.inf, -np.inf], [1e38, -0.25]], np.float32)
    soundfile.write(tmp_path / "a.wav", sound, 44100, subtype="FLOAT")
    drawn = draw(tmp_path / "a.wav")
    assert all(np.isfinite(line).all() for line in [*drawn.least, *drawn.greatest])
    assert drawn.greatest[0][0] == 0.5 and drawn.least[1][2] == -0.25


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_bytes(b"hello" * 100)
    with pytest.raises(AudioUndecodable):
        draw(tmp_path / "text")
    media_files.write_flac_silence(tmp_path / "a.flac", 90, hide_length=True)
    with pytest.raises(AudioTooLong):
        draw(tmp_path / "a.flac", Settings(recording_samples=44100 * 2 * 60))
    limits = SandboxLimits(seconds=0.01, cpu_seconds=1, memory_bytes=1 << 30, file_bytes=0)
    monkeypatch.setattr(waveform, "_CHILD_LIMITS", limits)
    with pytest.raises(AudioUndecodable, match="too long"):
        draw(tmp_path / "a.flac")


@pytest.mark.parametrize("kept", [b"", b"x" * 20, b"x" * 28, bytes(28), Waveform(1, 1, 1, [], []).to_bytes()])
def test_other_bytes_are_no_outline(kept: bytes) -> None:
    with pytest.raises(ValueError, match="outline"):
        Waveform.from_bytes(kept)


def test_peaks_are_drawn_once_and_kept(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = service.upload(wav(2.0, 22050, 2))
    drawn: list[Path] = []
    draws = waveform.compute

    async def counted(path: Path, settings: Settings) -> Waveform:
        drawn.append(path)
        return await draws(path, settings)

    monkeypatch.setattr(waveform, "compute", counted)
    answer = service.client.get(f"/v1/audio/{audio['id']}/peaks", params={"points": 100})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["points"], told["duration"], told["sample_rate"]) == (100, 2.0, 22050)
    assert [sorted(channel) for channel in told["channels"]] == [["maximum", "minimum"]] * 2
    for channel in told["channels"]:
        assert len(channel["minimum"]) == len(channel["maximum"]) == 100
        assert -0.3 < min(channel["minimum"]) < max(channel["minimum"]) < 0 < max(channel["maximum"]) < 0.3
    assert service.stored_keys() == [f"audio/{audio['id']}", waveform_key(audio["id"])]
    assert service.client.get(f"/v1/audio/{audio['id']}/peaks").json()["points"] == 2000
    assert len(drawn) == 1
    # A damaged one is drawn anew.
    (service.folder / "damaged").write_bytes(b"x")
    service.deps.storage.put_file(waveform_key(audio["id"]), service.folder / "damaged")
    assert service.client.get(f"/v1/audio/{audio['id']}/peaks", params={"points": 100}).json() == told
    assert len(drawn) == 2
    assert service.client.delete(f"/v1/audio/{audio['id']}").status_code == 204
    nothing_left(service)


def test_an_upload_deleted_while_it_is_drawn_leaves_no_outline(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio_id, stores = service.upload()["id"], service.deps.storage.put_stream

    async def late(*arguments: Any) -> Any:
        await asyncio.to_thread(service.client.delete, f"/v1/audio/{audio_id}")
        return await stores(*arguments)

    monkeypatch.setattr(service.deps.storage, "put_stream", late)
    problem(service.client.get(f"/v1/audio/{audio_id}/peaks"), 404, "not_found")
    nothing_left(service)


def test_an_outline_is_not_swept_while_it_is_stored(folder_service: Service) -> None:
    service = folder_service
    record = service.deps.audio.get(service.upload()["id"])
    service.deps.audio.register_waveform_write(record.model_copy(update={"expires_at": time.time() - 1}))
    Housekeeping(service.deps.redis, service.deps.storage, service.deps.settings).remove_expired()
    assert service.orphans() == [waveform_key(record.id).encode()]


def test_outlines_end_with_their_uploads(folder_service: Service) -> None:
    service = folder_service
    audio = service.upload()
    service.client.get(f"/v1/audio/{audio['id']}/peaks")
    records, settings = service.deps.audio, service.deps.settings
    now = time.time() - 1
    record = records.get(audio["id"])
    records.create(record.model_copy(update={"expires_at": now}))
    service.deps.redis.zadd("earmark:leftovers", {waveform_key(audio["id"]): now})
    Housekeeping(service.deps.redis, service.deps.storage, settings).remove_expired()
    nothing_left(service)


@pytest.mark.parametrize("points", ["0", "8193", "-1", "x", "1e3", ""])
def test_points_have_bounds(folder_service: Service, points: str) -> None:
    audio = folder_service.recording()
    answer = folder_service.client.get(f"/v1/audio/{audio['id']}/peaks", params={"points": points})
    told: dict[str, Any] = problem(answer, 422, "request_invalid")
    assert [fault["parameter"] for fault in told["errors"]] == ["points"]


def test_there_are_no_peaks_of_what_is_not_there(folder_service: Service) -> None:
    problem(folder_service.client.get("/v1/audio/aud_01HZZZZZZZZZZZZZZZZZZZZZZZ/peaks"), 404, "not_found")
