"""Rate limits (requests a minute) and quotas (audio seconds a day) of keys, and of callers without one."""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from app.keys.quotas import quota_key, rate_key
from app.records.audio import audio_key
from app.settings import Settings
from tests.app.conftest import LIMITS, MODEL, Service, problem, serve

DAY = 86400


def policy(response: httpx.Response, name: str) -> dict[str, int]:
    """The parameters of one policy in `RateLimit-Policy` and `RateLimit`."""
    parameters: dict[str, int] = {}
    for header in ("ratelimit-policy", "ratelimit"):
        for item in response.headers[header].split(", "):
            if item.startswith(f'"{name}"'):
                parameters |= {key: int(value) for key, value in re.findall(r";(\w)=(\d+)", item)}
    return parameters


def job_request(service: Service) -> dict[str, Any]:
    """A request for a separation of a recording of one second."""
    return {"mixture": {"audio_id": service.recording()["id"]}, "targets": [{"label": "Dog"}]}


def post_job(service: Service, request: dict[str, Any]) -> httpx.Response:
    return service.client.post("/v1/separations", json=request)


def limits(service: Service) -> dict[str, Any]:
    return service.client.get("/v1/limits").json()


def use_up_rate(service: Service) -> list[httpx.Response]:
    """Send requests until one is refused; return all responses."""
    responses = [service.client.get("/v1/limits")]
    while responses[-1].status_code == 200:
        responses.append(service.client.get("/v1/limits"))
    return responses


def use_up_quota(service: Service, request: dict[str, Any]) -> httpx.Response:
    """Create jobs until one is refused; return that response."""
    while (response := post_job(service, request)).status_code == 202:
        pass
    return response


def run_in_threads(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def seconds_to_midnight(redis: Redis) -> int:
    """Seconds until the day ends, UTC, by the clock of the server that counts."""
    now: Any = redis.time()
    return DAY - now[0] % DAY


# Rate limits


def test_a_response_reports_the_rate_limit_and_what_is_left_of_it(keyed_service: Service) -> None:
    response = keyed_service.with_key(rate=30).client.get("/v1/limits")
    assert policy(response, "requests") == {"q": 30, "w": 60, "r": 29, "t": 2}
    assert response.json()["limits"]["requests_per_minute"] == 30 and response.json()["left"]["requests"] == 29


def test_a_rate_limit_allows_a_burst_of_a_minutes_requests(keyed_service: Service) -> None:
    start = time.monotonic()
    responses = use_up_rate(keyed_service.with_key(rate=30))
    assert 30 <= len(responses) - 1 <= 31 + (time.monotonic() - start) / 2


def test_a_request_beyond_the_rate_limit_is_told_when_to_retry(keyed_service: Service) -> None:
    refused = use_up_rate(keyed_service.with_key(rate=30))[-1]
    problem(refused, 429, "rate_limited")
    assert int(refused.headers["retry-after"]) in (1, 2)
    assert policy(refused, "requests")["r"] == 0
    assert 58 <= policy(refused, "requests")["t"] <= 60


def test_a_request_after_retry_after_is_allowed(keyed_service: Service) -> None:
    service = keyed_service.with_key(rate=30)
    time.sleep(int(use_up_rate(service)[-1].headers["retry-after"]))
    assert service.client.get("/v1/limits").status_code == 200


def test_the_rate_limit_of_one_key_does_not_affect_another(keyed_service: Service) -> None:
    mine, yours = keyed_service.with_key(rate=30), keyed_service.with_key(rate=30)
    use_up_rate(mine)
    assert yours.client.get("/v1/limits").status_code == 200


def test_a_rate_limit_holds_for_concurrent_requests(keyed_service: Service) -> None:
    service = keyed_service.with_key(rate=20)
    statuses: Counter[int] = Counter()

    def send_ten() -> None:
        with httpx.Client(base_url=service.client.base_url, headers=service.client.headers) as client:
            statuses.update(client.get("/v1/limits").status_code for _ in range(10))

    start = time.monotonic()
    run_in_threads(5, send_ten)
    assert 20 <= statuses[200] <= 21 + (time.monotonic() - start) / 3 and sum(statuses.values()) == 50


# Headers

ANY_STATUS = [("GET", "/v1/models", 200), ("GET", "/v1/nothing", 404), ("POST", "/v1/separations", 415)]
ANY_STATUS += [("PUT", "/v1/audio", 405)]


@pytest.mark.parametrize(("method", "path", "status"), ANY_STATUS)
def test_responses_of_any_status_report_the_quota(keyed_service: Service, method: str, path: str, status: int) -> None:
    response = keyed_service.with_key(rate=100, audio_seconds=50).client.request(method, path)
    assert response.status_code == status
    assert policy(response, "audio-seconds") | {"t": 0} == {"q": 50, "w": DAY, "r": 50, "t": 0}
    assert 0 < policy(response, "audio-seconds")["t"] <= DAY


def test_requests_of_any_status_count_for_the_rate_limit(keyed_service: Service) -> None:
    service = keyed_service.with_key(rate=100, audio_seconds=50)
    for number, (method, path, _) in enumerate(ANY_STATUS):
        response = service.client.request(method, path)
        assert policy(response, "requests")["r"] in (99 - number, 100 - number)


def test_a_key_without_limits_gets_no_rate_limit_headers(keyed_service: Service) -> None:
    response = keyed_service.with_key().client.get("/v1/limits")
    assert "ratelimit" not in response.headers
    left = response.json()["left"]
    assert (left["requests"], left["audio_seconds_today"]) == (None, None)


def test_a_public_path_gets_no_rate_limit_headers(keyed_service: Service) -> None:
    assert "ratelimit" not in keyed_service.client.get("/livez").headers


# Quotas


def test_a_job_is_charged_by_the_seconds_of_its_mixture(keyed_service: Service) -> None:
    service = keyed_service.with_key(audio_seconds=3)
    request = job_request(service)
    for left in (2, 1, 0):
        response = post_job(service, request)
        assert response.status_code == 202 and policy(response, "audio-seconds")["r"] == left
    assert len(service.client.get("/v1/separations").json()["data"]) == 3


def test_a_job_beyond_the_quota_is_refused_until_midnight(keyed_service: Service, redis: Redis) -> None:
    service = keyed_service.with_key(audio_seconds=3)
    before = seconds_to_midnight(redis)
    refused = use_up_quota(service, job_request(service))
    passed = (before - seconds_to_midnight(redis)) % DAY
    assert "0 s are left" in problem(refused, 429, "quota_exceeded")["detail"]
    assert (before - int(refused.headers["retry-after"])) % DAY <= passed
    assert len(service.client.get("/v1/separations").json()["data"]) == 3


def test_the_limits_report_a_quota_that_is_used_up(keyed_service: Service) -> None:
    service = keyed_service.with_key(audio_seconds=3)
    use_up_quota(service, job_request(service))
    answer = limits(service)
    assert answer["left"]["audio_seconds_today"] == 0 and answer["limits"]["audio_seconds_per_day"] == 3


def test_the_limits_report_midnight_as_the_reset_of_the_quota(keyed_service: Service) -> None:
    service = keyed_service.with_key(audio_seconds=3)
    before = service.deps.clock.now() // DAY
    resets_at = datetime.fromisoformat(limits(service)["resets_at"]).timestamp()
    assert resets_at % DAY == 0 and before < resets_at / DAY <= service.deps.clock.now() // DAY + 1


def test_a_quota_is_full_again_on_a_new_day(keyed_service: Service) -> None:
    service = keyed_service.with_key(audio_seconds=1)
    service.separate()
    yesterday = int(time.time() // DAY) - 1
    service.deps.redis.hset(quota_key(service.deps.caller.key_id), "day", str(yesterday))
    assert limits(service)["left"]["audio_seconds_today"] == 1
    service.separate()


def test_a_job_that_cannot_be_created_is_refunded(keyed_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service = keyed_service.with_key(audio_seconds=10)
    request = job_request(service)
    create = keyed_service.deps.jobs.create

    def create_without_upload(job: Any) -> Any:
        """Delete the upload between validation and creation of the job."""
        keyed_service.deps.redis.delete(audio_key(request["mixture"]["audio_id"]))
        return create(job)

    monkeypatch.setattr(keyed_service.deps.jobs, "create", create_without_upload)
    response = post_job(service, request)
    problem(response, 404, "not_found")
    assert policy(response, "audio-seconds")["r"] == 10
    assert limits(service)["left"]["audio_seconds_today"] == 10


def test_a_quota_holds_for_concurrent_jobs(keyed_service: Service) -> None:
    service = keyed_service.with_key(audio_seconds=5)
    request = job_request(service)
    statuses: Counter[int] = Counter()
    run_in_threads(12, lambda: statuses.update([post_job(service, request).status_code]))
    assert statuses == {202: 5, 429: 7}


# Without authentication


@pytest.fixture
def open_service(valkey: Any, redis: Redis, tmp_path: Path) -> Iterator[Service]:
    """A front end without authentication that limits all callers together."""
    settings: dict[str, Any] = LIMITS | {"open_rate": 30, "open_audio_seconds": 2}
    for service in serve(Settings(home=tmp_path, redis_url=valkey.connection_url, **settings), tmp_path):
        service.deps.model_registry.announce(MODEL, "worker-1")
        yield service


def test_callers_without_keys_can_share_a_rate_limit(open_service: Service) -> None:
    assert policy(open_service.client.get("/v1/limits"), "requests")["q"] == 30
    now: Any = open_service.deps.redis.time()
    open_service.deps.redis.set(rate_key(""), (now[0] + 3600) * 10**6)  # as if many requests had been sent
    problem(open_service.client.get("/v1/limits"), 429, "rate_limited")


def test_callers_without_keys_can_share_a_quota(open_service: Service) -> None:
    open_service.separate()
    open_service.separate()
    problem(post_job(open_service, job_request(open_service)), 429, "quota_exceeded")


def test_without_limits_responses_have_no_rate_limit_headers(folder_service: Service) -> None:
    response = folder_service.client.get("/v1/limits")
    assert "ratelimit" not in response.headers and "ratelimit-policy" not in response.headers


def test_without_limits_only_those_of_the_settings_are_reported(folder_service: Service) -> None:
    answer = limits(folder_service)
    assert answer["limits"]["upload_bytes"] == LIMITS["upload_bytes"]
    assert answer["limits"]["requests_per_minute"] is None and answer["left"]["requests"] is None


def test_without_limits_requests_are_not_counted(folder_service: Service) -> None:
    folder_service.client.get("/v1/limits")
    assert not list(folder_service.deps.redis.scan_iter("earmark:rate*"))
