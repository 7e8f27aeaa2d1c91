"""Waveform peaks of uploads: exact minima and maxima, computed once, in bounded memory."""

import asyncio
import time
from array import array
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis

from app.errors import AudioTooLong, AudioUndecodable
from app.housekeeping.sweeps import Housekeeping
from app.media import waveform
from app.media.sandbox import SandboxLimits
from app.media.waveform import MAX_BINS, Waveform, WaveformBuilder
from app.records.audio import waveform_key
from app.settings import Settings
from tests import media_files
from tests.app.audio.test_audio import assert_nothing_left
from tests.app.conftest import LIMITS, Service, problem, serve, wav
from tests.app.media.test_probe import children_cpu_seconds
from tests.app.relay import relay
from tests.conftest import S3Server


def compute(path: Path, settings: Settings | None = None) -> Waveform:
    return asyncio.run(waveform.compute(path, settings or Settings()))


def extremes(samples: np.ndarray, bounds: list[int]) -> list[tuple[list[float], list[float]]]:
    spans = list(pairwise(bounds))
    return [
        ([float(channel[a:b].min()) for a, b in spans], [float(channel[a:b].max()) for a, b in spans])
        for channel in samples.T
    ]


@pytest.mark.parametrize(
    ("samples", "channels", "points"),
    [
        (1, 1, 5),
        (100, 2, 100),
        (100, 3, 7),
        (20_000, 2, 1),
        (MAX_BINS + 1, 1, 8192),
        (120_001, 2, 8192),
        (300_000, 3, 2000),
        (3_000_000, 2, 2000),
    ],
)
def test_every_point_is_the_minimum_and_maximum_of_its_samples(
    tmp_path: Path, samples: int, channels: int, points: int
) -> None:
    sound = np.random.default_rng(samples).uniform(-1.5, 1.5, (samples, channels)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, 44100, subtype="FLOAT")
    full = compute(tmp_path / "a.wav")
    assert (full.sample_rate, full.samples) == (44100, samples)
    bins = len(full.minima[0])
    assert bins == -(-samples // full.bin_size) and min(samples, MAX_BINS // 2) <= bins <= MAX_BINS
    count = min(points, bins)
    bounds = [min(samples, full.bin_size * (bins * point // count)) for point in range(count + 1)]
    for peaks, expected in zip(full.points(points), extremes(sound, bounds), strict=True):
        np.testing.assert_allclose(peaks, expected, atol=1e-6)
    assert Waveform.from_bytes(full.to_bytes()) == full


@given(blocks=st.lists(st.integers(1, 9), min_size=1, max_size=300), seed=st.integers(0, 99))
@hypothesis_settings(max_examples=30, deadline=None)
def test_bins_are_merged_without_loss(blocks: list[int], seed: int) -> None:
    """However many blocks there are: merged bins equal bins that were longer from the start."""
    builder = WaveformBuilder(44100, channels=1, block_size=4, max_bins=8)
    levels = np.random.default_rng(seed).uniform(-1, 1, sum(blocks))
    for level in levels:
        builder.add(4, [level], [level + 1])
    built = builder.build()
    blocks_per_bin = built.bin_size // 4
    assert len(built.minima[0]) == -(-len(levels) // blocks_per_bin) <= 8 and built.samples == 4 * len(levels)
    for index, (minimum, maximum) in enumerate(zip(built.minima[0], built.maxima[0], strict=True)):
        merged = levels[index * blocks_per_bin : (index + 1) * blocks_per_bin]
        assert minimum == pytest.approx(merged.min(), abs=1e-5)
        assert maximum == pytest.approx(merged.max() + 1, abs=1e-5)


@pytest.mark.parametrize("kind", ["hidden.flac", "a.mp3", "a.m4a", "a.webm"])
def test_lengths_that_headers_do_not_tell_are_measured(tmp_path: Path, kind: str) -> None:
    path, sound = tmp_path / kind, media_files.noise(48000 * 4)
    if kind == "hidden.flac":
        media_files.write_flac_silence(path, 60, hide_length=True)
    elif kind == "a.mp3":
        media_files.write_sound(path, sound, 48000, "MPEG_LAYER_III")
    else:
        muxer, codec = {"a.m4a": ("ipod", "aac"), "a.webm": ("webm", "libopus")}[kind]
        media_files.write_packets(path, sound, 48000, muxer, codec)
    full = compute(path)
    assert full.samples / full.sample_rate == pytest.approx(60 if kind == "hidden.flac" else 4, abs=0.1)
    maximum = max(full.maxima[0])
    assert maximum == 0 if kind == "hidden.flac" else 0.3 < maximum < 0.7


def test_not_a_number_counts_as_silence(tmp_path: Path) -> None:
    sound = np.array([[0.5, np.nan], [np.inf, -np.inf], [1e38, -0.25]], np.float32)
    soundfile.write(tmp_path / "a.wav", sound, 44100, subtype="FLOAT")
    full = compute(tmp_path / "a.wav")
    assert all(np.isfinite(levels).all() for levels in [*full.minima, *full.maxima])
    assert full.maxima[0][0] == 0.5 and full.minima[1][2] == -0.25


@pytest.mark.parametrize("samples", [9000, 90_000, 900_000])
def test_not_a_number_between_other_samples_counts_as_silence(tmp_path: Path, samples: int) -> None:
    sound = np.full((samples, 1), 0.5, np.float32)
    sound[samples // 2] = np.nan
    soundfile.write(tmp_path / "a.wav", sound, 44100, subtype="FLOAT")
    full = compute(tmp_path / "a.wav")
    assert sorted(full.minima[0])[:2] == [0.0, 0.5] and set(full.maxima[0]) <= {0.0, 0.5}


def test_a_file_that_is_no_audio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"hello" * 100)
    with pytest.raises(AudioUndecodable):
        compute(tmp_path / "text")


@pytest.mark.parametrize(
    "settings", [Settings(recording_samples=8000 * 2 * 60), Settings(recording_seconds=60)], ids=["samples", "seconds"]
)
def test_a_recording_of_hidden_length_is_decoded_up_to_the_limit(tmp_path: Path, settings: Settings) -> None:
    media_files.write_flac_silence(tmp_path / "a.flac", 60, rate=8000, hide_length=True)
    assert compute(tmp_path / "a.flac", settings).samples == 60 * 8000
    media_files.write_flac_silence(tmp_path / "b.flac", 61, rate=8000, hide_length=True)
    with pytest.raises(AudioTooLong):
        compute(tmp_path / "b.flac", settings)


def test_a_recording_without_an_end_costs_no_more_than_one_of_the_longest_duration(tmp_path: Path) -> None:
    """Measured as CPU time of children: twenty times the limit takes about as long as the limit itself."""
    seconds = {}
    repeats = 10  # one takes about two of the hundredths of a second that the system counts in
    for name, duration in (("legal", 60), ("endless", 1200)):
        media_files.write_flac_silence(tmp_path / name, duration, rate=8000, hide_length=True)
        start = children_cpu_seconds()
        for _ in range(repeats):
            with suppress(AudioTooLong):
                compute(tmp_path / name, Settings(recording_seconds=60))
        seconds[name] = children_cpu_seconds() - start
    assert 0 < seconds["endless"] < 2 * seconds["legal"]


def test_a_recording_that_takes_too_long_to_decode_is_refused(tmp_path: Path) -> None:
    media_files.write_flac_silence(tmp_path / "a.flac", 90, hide_length=True)
    limits = SandboxLimits(seconds=0.01, cpu_seconds=1, memory_bytes=1 << 30, file_bytes=0)
    with pytest.raises(AudioUndecodable, match="too long"):
        asyncio.run(waveform.compute(tmp_path / "a.flac", Settings(), limits))


@pytest.mark.parametrize("content", [b"", b"x" * 20, b"x" * 28, bytes(28), Waveform(1, 1, 1, [], []).to_bytes()])
def test_other_bytes_are_not_a_waveform(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a waveform"):
        Waveform.from_bytes(content)


def get_peaks(service: Service, audio_id: str, points: int | None = None) -> dict[str, Any]:
    response = service.client.get(f"/v1/audio/{audio_id}/peaks", params={"points": points} if points else {})
    assert response.status_code == 200, response.text
    return response.json()


def store_waveform(service: Service, audio_id: str, content: bytes) -> None:
    """Replace the stored waveform of an upload."""
    (service.folder / "waveform").write_bytes(content)
    service.deps.storage.put_file(waveform_key(audio_id), service.folder / "waveform")


def test_peaks_of_an_upload(service: Service) -> None:
    audio_id = service.upload(wav(2.0, 22050, 2))["id"]
    peaks = get_peaks(service, audio_id, points=100)
    assert (peaks["points"], peaks["duration"], peaks["sample_rate"]) == (100, 2.0, 22050)
    assert [sorted(channel) for channel in peaks["channels"]] == [["maximum", "minimum"]] * 2
    for channel in peaks["channels"]:
        assert len(channel["minimum"]) == len(channel["maximum"]) == 100
        assert -0.3 < min(channel["minimum"]) < max(channel["minimum"]) < 0 < max(channel["maximum"]) < 0.3
    assert service.stored_keys() == [f"audio/{audio_id}", waveform_key(audio_id)]
    assert get_peaks(service, audio_id)["points"] == 2000
    assert service.client.delete(f"/v1/audio/{audio_id}").status_code == 204
    assert_nothing_left(service)


def test_the_waveform_is_computed_once_and_kept(service: Service) -> None:
    """The second request reads the store: it returns the waveform that was put there."""
    audio_id = service.upload(wav(2.0, 22050, 2))["id"]
    original = get_peaks(service, audio_id, points=100)
    full = Waveform.from_bytes(asyncio.run(service.deps.storage.read(waveform_key(audio_id))))
    for levels in full.maxima:
        levels[:] = array("f", [0.75]) * len(levels)
    store_waveform(service, audio_id, full.to_bytes())
    stored = get_peaks(service, audio_id, points=100)
    assert [channel["maximum"] for channel in stored["channels"]] == [[0.75] * 100] * 2
    assert [channel["minimum"] for channel in stored["channels"]] == [
        channel["minimum"] for channel in original["channels"]
    ]


def test_a_damaged_waveform_is_computed_again(service: Service) -> None:
    audio_id = service.upload(wav(2.0, 22050, 2))["id"]
    original = get_peaks(service, audio_id, points=100)
    content = asyncio.run(service.deps.storage.read(waveform_key(audio_id)))
    store_waveform(service, audio_id, b"x")
    assert get_peaks(service, audio_id, points=100) == original
    assert asyncio.run(service.deps.storage.read(waveform_key(audio_id))) == content


def test_an_upload_deleted_during_the_computation_leaves_no_waveform(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio_id, put_stream = service.upload()["id"], service.deps.storage.put_stream

    async def put_after_deletion(*arguments: Any) -> Any:
        await asyncio.to_thread(service.client.delete, f"/v1/audio/{audio_id}")
        return await put_stream(*arguments)

    monkeypatch.setattr(service.deps.storage, "put_stream", put_after_deletion)
    problem(service.client.get(f"/v1/audio/{audio_id}/peaks"), 404, "not_found")
    assert_nothing_left(service)


def test_a_waveform_is_not_swept_while_it_is_stored(folder_service: Service) -> None:
    service = folder_service
    record = service.deps.audio.get(service.upload()["id"])
    service.deps.audio.register_waveform_write(record.model_copy(update={"expires_at": time.time() - 1}))
    Housekeeping(service.deps.redis, service.deps.storage, service.deps.settings).remove_expired()
    assert service.orphans() == [waveform_key(record.id).encode()]


def test_a_waveform_expires_with_its_upload(folder_service: Service) -> None:
    service = folder_service
    audio = service.upload()
    service.client.get(f"/v1/audio/{audio['id']}/peaks")
    records, settings = service.deps.audio, service.deps.settings
    now = time.time() - 1
    record = records.get(audio["id"])
    records.create(record.model_copy(update={"expires_at": now}))
    service.deps.redis.zadd("earmark:leftovers", {waveform_key(audio["id"]): now})
    Housekeeping(service.deps.redis, service.deps.storage, settings).remove_expired()
    assert_nothing_left(service)


@pytest.mark.parametrize("points", ["0", "8193", "-1", "x", "1e3", ""])
def test_points_have_bounds(folder_service: Service, points: str) -> None:
    audio = folder_service.recording()
    response = folder_service.client.get(f"/v1/audio/{audio['id']}/peaks", params={"points": points})
    document: dict[str, Any] = problem(response, 422, "request_invalid")
    assert [error["parameter"] for error in document["errors"]] == ["points"]


def test_there_are_no_peaks_of_a_missing_upload(folder_service: Service) -> None:
    problem(folder_service.client.get("/v1/audio/aud_01HZZZZZZZZZZZZZZZZZZZZZZZ/peaks"), 404, "not_found")


def test_peaks_of_an_upload_that_the_store_gives_too_slowly_are_given_up(
    valkey: Any, seaweed: S3Server, tmp_path: Path, redis: Redis
) -> None:
    with relay(seaweed.endpoint) as slow:
        server = replace(seaweed, endpoint=slow.url)
        chosen = {**LIMITS, "fetch_timeout": 0.3}
        settings = server.settings("slow", home=tmp_path, redis_url=valkey.connection_url, **chosen)
        for service in serve(settings, tmp_path):
            audio = service.recording()
            slow.pause = 1.0
            problem(service.client.get(f"/v1/audio/{audio['id']}/peaks"), 503, "store_unavailable")
            slow.pause = 0.0
            assert service.deps.budgets.upload_room.used == service.deps.budgets.waveforms.used == 0
