"""Access lines of a front end as a process, and the limit of wrong keys by address."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis

from app.keys.repository import KeyRepository
from app.keys.wrong_keys import WrongKeyLimit
from app.model_registry.registry import ModelRegistry
from app.settings import Settings
from tests.app.conftest import MODEL, Service, empty, problem, serve, wav
from tests.app.test_logs import api

WRONG = "emk_01ARZ3NDEKTSV4RRFFQ69G5FAV_" + "x" * 43  # well-formed


def bearer(key: str, address: str = "203.0.113.7") -> dict[str, str]:
    """Return the headers of a request through a trusted proxy on this machine."""
    return {"Authorization": f"Bearer {key}", "X-Forwarded-For": address}


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_one_line_a_request_tells_who_made_what(tmp_path: Path, redis: Redis, log_format: str) -> None:
    key, written = KeyRepository(redis).create("test", 0, 0, 1)
    ModelRegistry(redis, Settings()).announce(MODEL, "worker-1")
    content = wav(1.0)
    # Only a trusted proxy tells the address; in text, none is trusted here.
    trusted, address = ("127.0.0.0/8", "203.0.113.7") if log_format == "json" else ("10.0.0.0/8", "127.0.0.1")
    variables = {"EARMARK_AUTH": "on", "EARMARK_LOG_FORMAT": log_format, "EARMARK_PROXY_NETWORKS": trusted}
    with api(tmp_path, redis, **variables) as (client, log):
        uploaded = client.post("/v1/audio", files={"file": ("a.wav", content)}, headers=bearer(written))
        assert uploaded.status_code == 201, uploaded.text
        audio_id = uploaded.json()["id"]
        body = {"mixture": {"audio_id": audio_id}, "targets": [{"name": "dog", "label": "Dog"}]}
        created = client.post("/v1/separations", json=body, headers=bearer(written))
        form = {"mixture": ("m.wav", content), "query": ("q.wav", content)}
        at_once = client.post("/v1/separations", files=form, headers=bearer(written))
        client.get("/v1/limits", headers=bearer(WRONG, "198.51.100.9"))
    lines = [line for line in log.read_text().splitlines() if "earmark.access" in line and "/v1/" in line]
    assert len(lines) == 4
    first, second, third, refused = lines
    assert created.status_code == at_once.status_code == 202
    if log_format == "json":
        record = json.loads(first)
        expected = {"client": address, "key": key.id, "made": [audio_id], "status": 201, "route": "/v1/audio"}
        assert record | expected == record
        assert record["bytes_in"] > len(content) and record["bytes_out"] == len(uploaded.content)
        assert json.loads(second)["made"] == [created.json()["id"]]
        assert len(json.loads(third)["made"]) == 3 and json.loads(third)["made"][-1] == at_once.json()["id"]
        record = json.loads(refused)
        assert (record["client"], record["status"]) == ("198.51.100.9", 401) and "key" not in record
        assert record["refused_key"] == "key_01ARZ3NDEKTSV4RRFFQ69G5FAV"
    else:
        for word in (key.id, f"client={address}", audio_id, f"bytes_out={len(uploaded.content)}", "seconds=", " 201"):
            assert word in first, word
        assert created.json()["id"] in second and at_once.json()["id"] in third
    assert written not in log.read_text() and WRONG not in log.read_text()


@pytest.fixture
def limited(valkey: Any, redis: Redis, tmp_path: Path) -> Iterator[Service]:
    """A front end with authentication on that takes one wrong key a minute from an address."""
    settings = Settings(home=tmp_path, redis_url=valkey.connection_url, auth="on", wrong_keys=1)
    for service in serve(settings, tmp_path):
        yield empty(service)


def refused(service: Service, reason: str) -> float:
    value = service.deps.metrics.registry.get_sample_value("earmark_keys_refused_total", {"reason": reason})
    return value or 0.0


def test_wrong_keys_are_counted_and_limited_by_address(limited: Service) -> None:
    def get(key: str, address: str) -> httpx.Response:
        return limited.client.get("/v1/limits", headers=bearer(key, address))

    valid = limited.with_key().client.headers["Authorization"].removeprefix("Bearer ")
    assert get(WRONG, "2001:db8::1").status_code == 401
    answer = get(WRONG, "2001:db8::1")
    problem(answer, 429, "rate_limited")
    assert 0 < int(answer.headers["Retry-After"]) <= 60
    assert get("malformed", "2001:db8::2").status_code == 429, "an address of the same network"
    assert get(valid, "2001:db8::1").status_code == 200
    assert get(WRONG, "2001:db8:0:1::1").status_code == get(WRONG, "192.0.2.1").status_code == 401
    assert (refused(limited, "unknown"), refused(limited, "malformed")) == (4.0, 1.0)


def test_a_request_without_a_key_is_counted_and_not_limited(limited: Service) -> None:
    assert {limited.client.get("/v1/limits").status_code for _ in range(5)} == {401}
    assert refused(limited, "missing") == 5.0


@given(
    rate=st.integers(1, 20),
    steps=st.lists(st.tuples(st.integers(0, 40), st.floats(0, 30)), min_size=1, max_size=120),
)
@hypothesis_settings(deadline=None)
def test_no_address_sends_more_than_its_rate_and_memory_is_bounded(rate: int, steps: list[tuple[int, float]]) -> None:
    now = 0.0
    limit = WrongKeyLimit(rate, most=8, clock=lambda: now)
    passed: dict[int, list[float]] = {}
    for host, pause in steps:
        now += pause
        wait = limit.count(f"192.0.2.{host}")
        assert len(limit) <= 8 and 0 <= wait <= 60
        if not wait:
            passed.setdefault(host, []).append(now)
    if len({host for host, _ in steps}) <= 8:
        for times in passed.values():
            # A burst of a minute's allowance, and what a minute adds.
            assert all(sum(start <= time < start + 60 for time in times) <= 2 * rate for start in times)
