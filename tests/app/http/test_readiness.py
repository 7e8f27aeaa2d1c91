"""Readiness beside a store that is slow or away."""

import asyncio
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.errors import StoreUnavailable
from app.metrics import PROCESS
from app.settings import Settings
from app.storage import Storage
from app.storage_probe import StorageProbe
from tests.app.conftest import LIMITS, eventually, problem, serve
from tests.app.relay import relay
from tests.conftest import S3Server
from tests.full_disk import small_disk


def test_a_store_that_takes_seconds_to_respond_makes_no_api_unready(
    seaweed: S3Server, valkey: Any, tmp_path: Path
) -> None:
    with relay(seaweed.endpoint) as slow:
        settings = seaweed.settings("readiness", home=tmp_path, redis_url=valkey.connection_url, **LIMITS)
        for service in serve(settings.model_copy(update={"store_endpoint": slow.url}), tmp_path):
            slow.pause = 60.0
            before = checks()
            assert service.client.get("/readyz").status_code == 200
            assert checks() == before, "it does not wait for the store"
            slow.close()  # the check of the store fails
            eventually(lambda service=service: service.client.get("/readyz").status_code == 503)
            problem(service.client.get("/readyz"), 503, "store_unavailable")
            slow.pause = 0.0
            slow.open()
            eventually(lambda service=service: service.client.get("/readyz").status_code == 200)


def test_a_store_that_refuses_the_account_makes_an_api_unready(seaweed: S3Server, valkey: Any, tmp_path: Path) -> None:
    wrong = replace(seaweed, secret_key="another")
    for service in serve(wrong.settings("p", home=tmp_path, redis_url=valkey.connection_url, **LIMITS), tmp_path):
        eventually(lambda service=service: service.client.get("/readyz").status_code == 503)
        document = problem(service.client.get("/readyz"), 503, "store_unavailable")
        assert document["detail"] == "The object store refuses this server's account."


def test_a_store_that_takes_no_writes_any_more_is_not_ready(tmp_path: Path) -> None:
    async def run() -> None:
        probe = StorageProbe(storage, 60.0, keep_seconds=0.0, stale_seconds=0.0, write_seconds=0.0)
        seldom = StorageProbe(storage, 60.0, keep_seconds=0.0, stale_seconds=0.0)
        for each in (probe, seldom):
            await each.check()
        remount(folder, "ro")
        with pytest.raises(StoreUnavailable, match="may not be used"):
            await probe.check()
        await seldom.check()  # it has written lately
        remount(folder, "rw")
        await probe.check()

    folder = tmp_path / "store"
    with small_disk(folder):
        storage = Storage.open(Settings(home=tmp_path))
        asyncio.run(asyncio.wait_for(run(), 60))


def remount(folder: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], check=True)


def checks() -> float:
    """Return how many checks of a store have ended."""
    count = PROCESS.get_sample_value
    outcomes = ("ok", "failed")
    return sum(
        count("earmark_store_call_duration_seconds_count", {"operation": "check", "outcome": one}) or 0
        for one in outcomes
    )


def test_many_probes_share_one_check_whose_outcome_is_kept(seaweed: S3Server) -> None:
    async def run() -> None:
        with relay(seaweed.endpoint) as slow:
            settings = seaweed.settings("readiness").model_copy(update={"store_endpoint": slow.url})
            probe = StorageProbe(Storage.open(settings), wait_seconds=0.1, keep_seconds=0.2)
            slow.pause = 0.5
            before = checks()
            await asyncio.gather(*(probe.check() for _ in range(50)))
            assert checks() == before, "nobody waits for it"
            while checks() == before:
                await asyncio.sleep(0.01)
            for _ in range(50):
                await probe.check()
            slow.close()
            with pytest.raises(StoreUnavailable):
                while True:
                    await asyncio.sleep(0.05)
                    await probe.check()
            assert checks() - before <= 4

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize(("stale_seconds", "waits"), [(600.0, False), (0.0, True)])
def test_a_probe_waits_for_a_check_only_if_the_last_outcome_is_old(
    seaweed: S3Server, stale_seconds: float, waits: bool
) -> None:
    async def run() -> None:
        with relay(seaweed.endpoint) as slow:
            settings = seaweed.settings("readiness").model_copy(update={"store_endpoint": slow.url})
            probe = StorageProbe(Storage.open(settings), 60.0, keep_seconds=0.0, stale_seconds=stale_seconds)
            slow.pause = 0.2
            before = checks()
            await probe.check()
            assert checks() == before + 1, "there is no outcome yet"
            await probe.check()
            assert checks() == before + 1 + waits
            while checks() < before + 2:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 60))
