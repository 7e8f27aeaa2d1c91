"""Metrics of what housekeeping is behind with, by the clock of the server."""

from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from redis import Redis

from app.errors import StoreRefused, StoreUnavailable
from app.housekeeping.health import Health
from app.housekeeping.sweeps import Housekeeping
from app.jobs.housekeeping_metrics import HousekeepingMetrics, Rounds
from app.jobs.webhook_outbox import DUE_KEY
from app.records.audio import AudioRepository
from app.records.orphans import OrphanLedger
from app.redis_client import server_clock
from app.settings import Settings
from app.storage import Storage
from tests.app.records import new_audio
from tests.conftest import S3Server


def read(redis: Redis) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(HousekeepingMetrics(redis))
    return {sample.name: sample.value for family in registry.collect() for sample in family.samples}


def test_a_deployment_without_housekeeping_has_no_last_round(redis: Redis) -> None:
    assert read(redis) == {
        "earmark_expiry_lag_seconds": 0.0,
        "earmark_webhooks_pending": 0.0,
        "earmark_webhooks_overdue_seconds": 0.0,
    }


def test_the_last_good_round_is_told_with_its_age(redis: Redis) -> None:
    before = server_clock(redis).now()
    Rounds(redis).record()
    metrics = read(redis)
    assert before - 0.01 <= metrics["earmark_housekeeping_last_round_timestamp_seconds"] <= server_clock(redis).now()
    redis.set("earmark:housekeeping:round", before - 500)
    assert 500 <= read(redis)["earmark_housekeeping_round_age_seconds"] < 560


@pytest.mark.parametrize("late", ["upload", "job", "orphan"])
def test_what_is_overdue_is_told_until_it_is_removed(redis: Redis, tmp_path: Path, late: str) -> None:
    settings, now = Settings(home=tmp_path), server_clock(redis).now()
    AudioRepository(redis, settings).create(new_audio(expires_at=now + 3600))
    OrphanLedger(redis).add(None, "audio/x", now + 3600)
    assert read(redis)["earmark_expiry_lag_seconds"] == 0.0
    if late == "upload":
        AudioRepository(redis, settings).create(new_audio(expires_at=now - 700))
    elif late == "job":
        redis.zadd("earmark:jobs:expiry", {"sep_unknown": now - 700})
    else:
        OrphanLedger(redis).add(None, "audio/y", now - 700)
    assert 700 <= read(redis)["earmark_expiry_lag_seconds"] < 760
    Housekeeping(redis, Storage.open(settings), settings).remove_expired()
    assert read(redis)["earmark_expiry_lag_seconds"] < 60


def test_webhooks_that_wait_for_their_time_are_pending_and_not_overdue(redis: Redis) -> None:
    now = server_clock(redis).now()
    redis.zadd(DUE_KEY, {"sep_1": now + 600})
    metrics = read(redis)
    assert (metrics["earmark_webhooks_pending"], metrics["earmark_webhooks_overdue_seconds"]) == (1.0, 0.0)
    redis.zadd(DUE_KEY, {"sep_2": now - 600})
    assert 600 <= read(redis)["earmark_webhooks_overdue_seconds"] < 660


class BrokenStore(Storage):
    """A store that answers no listing."""

    def pages(self, prefix: str):
        raise StoreUnavailable("It is away.")


def test_a_store_that_refuses_housekeeping_is_reported(redis: Redis, seaweed: S3Server, tmp_path: Path) -> None:
    settings, health = replace(seaweed, access_key="another").settings("p", home=tmp_path), Health()
    with pytest.raises(StoreRefused):
        Housekeeping(redis, Storage.open(settings), settings, health).sweep()
    is_well, page = health.report()
    assert not is_well and "InvalidAccessKeyId: look at EARMARK_STORE_ACCESS_KEY." in page


def test_a_part_that_failed_stays_reported_until_it_succeeds(redis: Redis, tmp_path: Path) -> None:
    settings, health = Settings(home=tmp_path), Health()
    storage = BrokenStore.open(settings)
    housekeeping = Housekeeping(redis, storage, settings, health)
    with pytest.raises(StoreUnavailable):
        housekeeping.sweep()
    housekeeping.sweep()  # the walk through the store is not due again
    assert health.report() == (False, '{"status": "failing", "failures": {"reconciliation": "It is away."}}')
    with health.attempt("reconciliation"):
        pass
    assert health.is_good and health.report() == (True, '{"status": "alive"}')
