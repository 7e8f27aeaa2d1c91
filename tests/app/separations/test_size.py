"""Separations that would fill a disk are refused before they exist; channels and targets count for the quota."""

from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from rq.job import Job as Entry
from rq.serializers import JSONSerializer

from app.errors import RequestTooLarge
from app.records.separations import OutputRecord
from app.records.sizes import SeparationSize, charged_seconds
from app.settings import Settings
from tests.app.conftest import LIMITS, MODEL, Service, problem, serve
from tests.app.records import new_audio

MINUTE_OF_EIGHT = {"duration": 60.0, "channels": 8, "sample_rate": 48000}  # 92 MB as 32-bit floats
TWO, THREE = ([{"name": f"t{number}", "label": "Dog"} for number in range(count)] for count in (2, 3))
WAV = {"format": "wav"}


@pytest.fixture
def service(valkey: Any, redis: Redis, tmp_path: Path) -> Iterator[Service]:
    """A front end with keys whose jobs may use 400 MB of scratch and 300 MB of the store."""
    settings: dict[str, Any] = LIMITS | {"auth": "on", "scratch_bytes": 400_000_000, "stored_bytes": 300_000_000}
    for service in serve(Settings(home=tmp_path, redis_url=valkey.connection_url, **settings), tmp_path):
        service.deps.model_registry.announce(MODEL, "worker-1")
        yield service.with_key(audio_seconds=10_000)


def post(service: Service, audio: dict[str, Any], **fields: Any) -> httpx.Response:
    """Send a request for a separation of an upload with such headers."""
    upload = new_audio(owner=service.deps.caller.key_id, **audio)
    service.deps.audio.create(upload)
    return service.client.post("/v1/separations", json={"mixture": {"audio_id": upload.id}, **fields})


def seconds_left(service: Service) -> int:
    return service.client.get("/v1/limits").json()["left"]["audio_seconds_today"]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"targets": THREE, "output": WAV}, "of scratch"),  # 5 x 92 MB
        ({"auto": {"max_targets": 3}, "output": WAV}, "of scratch"),
        ({"targets": TWO, "output": WAV | {"residual": True}}, None),  # scratch 4 x 92 MB, store 3 x 92
        ({"targets": THREE, "output": WAV | {"residual": False}}, None),
        ({"targets": THREE, "output": {"format": "flac"}}, None),
    ],
)
def test_a_separation_that_does_not_fit_is_refused_and_costs_nothing(
    service: Service, fields: dict[str, Any], place: str | None
) -> None:
    response = post(service, MINUTE_OF_EIGHT, **fields)
    if place is None:
        assert response.status_code == 202, response.text
        return
    assert place in problem(response, 413, "request_too_large")["detail"]
    assert service.deps.jobs.unfinished_count() == 0 and seconds_left(service) == 10_000


def test_stems_that_do_not_fit_in_the_store_are_refused(service: Service) -> None:
    longer = MINUTE_OF_EIGHT | {"duration": 66.0}
    response = post(service, longer, targets=TWO, output={"format": "wav", "residual": True})
    detail = problem(response, 413, "request_too_large")["detail"]
    assert "in the store" in detail or "of scratch" in detail
    stored = SeparationSize(48000, 8, 66.0, 2, OutputRecord(format="wav"))
    with pytest.raises(RequestTooLarge, match="in the store"):
        stored.require_room(Settings(scratch_bytes=10**10, stored_bytes=300_000_000))


def test_a_header_without_a_duration_counts_as_five_minutes(service: Service) -> None:
    unknown = {"duration": None, "channels": 2, "sample_rate": 48000}
    assert post(service, unknown, targets=TWO, output={"format": "flac"}).status_code == 202
    problem(post(service, unknown | {"channels": 4}, targets=TWO, output=WAV), 413, "request_too_large")


@pytest.mark.parametrize(
    ("hours", "channels", "targets", "output", "fits"),
    [
        (2, 2, 8, {"format": "flac"}, True),
        (2, 1, 16, {"format": "flac"}, True),
        (1, 2, 16, {"format": "wav"}, True),
        (1, 8, 1, {"format": "wav"}, True),
        (1, 8, 16, {"format": "flac"}, False),
        (1, 8, 16, {"format": "wav"}, False),
        (2, 2, 16, {"format": "mp3"}, False),
        (2e9 / (2 * 48000 * 3600), 2, 4, {}, True),  # the largest recording
        (2e9 / (2 * 48000 * 3600), 2, 5, {}, False),
        (2e9 / (2 * 48000 * 3600), 2, 1, {"format": "wav"}, True),
    ],
)
def test_what_fits_by_default(hours: float, channels: int, targets: int, output: dict[str, Any], fits: bool) -> None:
    size = SeparationSize(48000, channels, hours * 3600, targets, OutputRecord(**output))
    if fits:
        size.require_room(Settings())
        return
    with pytest.raises(RequestTooLarge):
        size.require_room(Settings())


def test_high_quality_is_charged_and_given_time_by_the_factor_in_the_limits(service: Service) -> None:
    settings = service.deps.settings
    high = {"targets": TWO, "output": {"quality": "high"}}
    answer = post(service, {"duration": 10.0, "channels": 4, "sample_rate": 48000}, **high)
    assert answer.status_code == 202, answer.text
    assert seconds_left(service) == 10_000 - 10 * 2 * settings.high_quality_factor
    charge = service.client.get("/v1/limits").json()["limits"]["charge"]
    assert f"x {settings.high_quality_factor:g} with quality high" in charge
    entry = Entry.fetch(answer.json()["id"], connection=service.deps.redis, serializer=JSONSerializer)
    assert entry.timeout == settings.job_timeout + settings.job_timeout_factor * 10 * settings.high_quality_factor
    assert settings.execution_seconds > settings.execution_timeout(None, settings.high_quality_factor)
    service.deps.jobs.cancel(answer.json()["id"])
    again = service.client.post(f"/v1/separations/{answer.json()['id']}/retry")
    assert again.status_code == 202, again.text
    before, after = (service.deps.jobs.get(one.json()["id"]) for one in (answer, again))
    assert after.request == before.request and after.request["output"]["quality"] == "high"
    assert (after.effort, after.charged_seconds) == (before.effort, before.charged_seconds)
    assert after.effort == settings.high_quality_factor


@pytest.mark.parametrize(
    ("channels", "targets", "factor"), [(1, 1, 1), (2, 4, 1), (4, 4, 2), (2, 5, 1.25), (8, 16, 16), (1, 16, 4)]
)
def test_the_charge_grows_with_channels_and_targets(channels: int, targets: int, factor: float) -> None:
    assert charged_seconds(60.0, channels, targets) == 60 * factor


def test_more_of_anything_is_never_smaller_or_cheaper() -> None:
    for outputs in product(("wav", "flac", "mp3"), (True, False)):
        output = OutputRecord(format=outputs[0], residual=outputs[1])
        for grown in (
            [SeparationSize(48000, channels, 60.0, 4, output) for channels in range(1, 9)],
            [SeparationSize(48000, 2, 60.0, targets, output) for targets in range(17)],
            [SeparationSize(rate, 2, 60.0, 4, output) for rate in (8000, 44100, 192000)],
            [SeparationSize(48000, 2, seconds, 4, output) for seconds in (0.1, 60.0, 7200.0)],
        ):
            for smaller, larger in pairwise(grown):
                assert smaller.scratch_bytes <= larger.scratch_bytes and smaller.stored_bytes <= larger.stored_bytes
                assert smaller.charged_seconds(Settings()) <= larger.charged_seconds(Settings())


def test_a_job_is_charged_for_its_channels_and_targets_by_the_formula_in_the_limits(service: Service) -> None:
    stereo = {"duration": 10.0, "channels": 2, "sample_rate": 48000}
    assert post(service, stereo, targets=TWO).status_code == 202
    assert seconds_left(service) == 9990
    assert post(service, stereo | {"channels": 8}, targets=TWO).status_code == 202
    assert seconds_left(service) == 9950
    limits = service.client.get("/v1/limits").json()["limits"]
    assert "channels / 2" in limits["charge"] and "targets / 4" in limits["charge"]
    assert limits["scratch_bytes"] == 400_000_000 and limits["stored_bytes"] == 300_000_000


@pytest.mark.parametrize(
    ("limits", "status", "code"),
    [
        ({"scratch_bytes": 100_000_000}, 413, "request_too_large"),
        ({"targets": 1}, 422, "request_invalid"),
        ({}, 202, ""),
    ],
)
def test_a_retry_of_automatic_targets_meets_the_limits_of_today_and_is_charged_anew(
    service: Service, tmp_path: Path, limits: dict[str, Any], status: int, code: str
) -> None:
    job = post(service, MINUTE_OF_EIGHT, auto={"max_targets": 2}, output=WAV).json()
    assert service.client.post(f"/v1/separations/{job['id']}/cancel").status_code == 202
    left = seconds_left(service)
    for restarted in serve(service.deps.settings.model_copy(update=limits), tmp_path):
        headers = {"Authorization": service.client.headers["authorization"]}
        answer = restarted.client.post(f"/v1/separations/{job['id']}/retry", headers=headers)
        if code:
            problem(answer, status, code)
        assert answer.status_code == status
    assert left - seconds_left(service) == (0 if code else 60 * 4)
