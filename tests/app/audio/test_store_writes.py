"""Writes of uploads to the store: of audio only, and few at a time, of which each key has its share."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from tests.app.audio.test_audio import assert_nothing_left
from tests.app.audio.test_upload_budgets import upload
from tests.app.conftest import LIMITS, Service, empty, eventually, problem, serve, wav
from tests.app.relay import Relay, relay
from tests.conftest import S3Server


@pytest.fixture(scope="module")
def store_relay(seaweed: S3Server) -> Iterator[Relay]:
    with relay(seaweed.endpoint) as opened:
        yield opened


@pytest.fixture(scope="module")
def _relayed_service(
    valkey: Any, seaweed: S3Server, store_relay: Relay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("writes")
    choices: dict[str, Any] = {**LIMITS, "auth": "on", "store_slots": 2, "budget_patience": 0.0, "store_timeout": 120}
    server = replace(seaweed, endpoint=store_relay.url)
    for service in serve(server.settings("writes", home=folder, redis_url=valkey.connection_url, **choices), folder):
        assert upload(service.with_key(), wav()).status_code == 201  # the bucket is seen
        yield service


@pytest.fixture
def relayed_service(_relayed_service: Service, redis: Redis) -> Service:
    """The front end with keys, and two writes to a store at a time."""
    return empty(_relayed_service)


def test_what_is_no_audio_costs_the_store_nothing(relayed_service: Service, store_relay: Relay) -> None:
    """It is refused while the store is away; only what is audio misses the store."""
    key = relayed_service.with_key()
    store_relay.close()
    try:
        problem(upload(key, b"no audio" * 1000), 422, "audio_undecodable")
        assert relayed_service.orphans() == []
        problem(upload(key, wav()), 503, "store_unavailable")
    finally:
        store_relay.open()
    assert upload(key, wav()).status_code == 201


def test_a_key_that_fills_its_share_of_the_writes_leaves_others_theirs(
    relayed_service: Service, store_relay: Relay
) -> None:
    greedy, other, third = (relayed_service.with_key() for _ in range(3))
    writes = relayed_service.deps.budgets.store_writes
    with ThreadPoolExecutor(2) as threads:
        store_relay.pause = 60.0
        try:
            first = threads.submit(upload, greedy, wav())
            eventually(lambda: writes.used == 1)
            assert "uploads being stored is 1 at once" in problem(upload(greedy, wav()), 429, "rate_limited")["detail"]
            second = threads.submit(upload, other, wav())
            eventually(lambda: writes.used == 2)
            problem(upload(third, wav()), 503, "overloaded")
        finally:
            store_relay.pause = 0.0
        assert [first.result().status_code, second.result().status_code] == [201, 201]
    assert writes.used == 0
    for key, sent in ((greedy, first), (other, second)):
        assert key.client.delete(sent.result().headers["location"]).status_code == 204
    assert_nothing_left(relayed_service)
