"""Long polls: an answer is held back until there is news, and no longer than was asked for."""

import threading
import time
from collections.abc import Callable

import pytest

from app.job_api.long_poll import parse_wait
from app.settings import Settings
from tests.app.conftest import Service, eventually


def act_soon(act: Callable[[], object]) -> threading.Thread:
    """Do something in a thread while the client waits."""
    timer = threading.Timer(0.3, act)
    timer.start()
    return timer


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        ("wait=7", 7),
        ("wait=0", 0),
        ("wait=99999", 60),
        ('respond-async, WAIT = "7"', 7),
        ("return=minimal; wait=3, x", 3),
        ("", 0),
        ("wait", 0),
        ("wait=-1", 0),
        ("wait=1.5", 0),
        ("wait=9999999999", 0),
        ("await=7", 0),
    ],
)
def test_the_wait_that_a_header_requests(sent: str, seconds: int) -> None:
    assert parse_wait(sent, Settings()) == seconds


def test_a_poll_waits_until_the_job_has_finished(folder_service: Service) -> None:
    job = folder_service.separate()
    act = act_soon(lambda: folder_service.finish(job["id"]))
    begun = time.monotonic()
    answer = folder_service.client.get(job["url"], headers={"Prefer": "wait=20"})
    assert answer.json()["status"] == "succeeded" and 0.2 < time.monotonic() - begun < 10
    assert answer.headers["preference-applied"] == "wait=20"
    again = folder_service.client.get(job["url"], headers={"Prefer": "wait=20"})
    assert (again.status_code, again.json()) == (200, answer.json())
    headers = {"Prefer": "wait=20", "If-None-Match": answer.headers["etag"]}
    assert folder_service.client.get(job["url"], headers=headers).status_code == 304
    act.join()
    assert time.monotonic() - begun < 15


def test_a_poll_with_an_etag_waits_until_it_differs(folder_service: Service) -> None:
    job = folder_service.separate()
    headers = {"Prefer": "wait=20", "If-None-Match": folder_service.client.get(job["url"]).headers["etag"]}
    act = act_soon(lambda: folder_service.deps.jobs.claim(job["id"], "a"))
    answer = folder_service.client.get(job["url"], headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (200, "running")
    assert folder_service.client.get(job["url"], headers=headers).status_code == 200
    act.join()


def test_a_poll_waits_no_longer_than_requested(folder_service: Service) -> None:
    job = folder_service.separate()
    begun = time.monotonic()
    answer = folder_service.client.get(job["url"], headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    assert answer.headers["retry-after"] == "1"
    headers = {"Prefer": "wait=1", "If-None-Match": answer.headers["etag"]}
    assert folder_service.client.get(job["url"], headers=headers).status_code == 304
    assert 1.9 < time.monotonic() - begun < 10


def test_preferences_may_come_in_several_headers(folder_service: Service) -> None:
    job = folder_service.separate()
    headers = [("Prefer", "respond-async"), ("Prefer", "wait=1"), ("If-None-Match", "*")]
    answer = folder_service.client.get(job["url"], headers=headers)
    assert (answer.status_code, answer.headers["preference-applied"]) == (304, "wait=1")


def test_a_job_deleted_during_the_wait_is_not_found(folder_service: Service) -> None:
    job = folder_service.separate()
    act = act_soon(lambda: folder_service.deps.jobs.delete(job["id"]))
    assert folder_service.client.get(job["url"], headers={"Prefer": "wait=20"}).status_code == 404
    act.join()


def test_many_long_polls_block_no_request(folder_service: Service) -> None:
    """More of them than there are threads for requests."""
    import asyncio

    import httpx

    job = folder_service.separate()

    async def wait_and_ask() -> float:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=folder_service.client.base_url, limits=limits, timeout=30) as client:
            waiting = [asyncio.create_task(client.get(job["url"], headers={"Prefer": "wait=3"})) for _ in range(60)]
            await asyncio.sleep(1)
            begun = time.monotonic()
            assert (await client.get("/readyz")).status_code == 200
            taken = time.monotonic() - begun
            assert not any(task.done() for task in waiting)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        return taken

    assert asyncio.run(wait_and_ask()) < 1.5
    eventually(lambda: "earmark_http_requests_in_progress 1.0" in folder_service.client.get("/metrics").text, 2)
