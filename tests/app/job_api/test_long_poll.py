"""Long polls: an answer is held back until there is news, and no longer than was asked for."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.job_api.long_poll import parse_wait
from app.settings import Settings
from tests.app.conftest import Service, eventually


def act_soon(act: Callable[[], object]) -> threading.Thread:
    """Do something in a thread while the client waits."""
    timer = threading.Timer(0.3, act)
    timer.start()
    return timer


def wait_for(service: Service, job: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
    """Poll a job with the longest wait, of a minute; raise `httpx.ReadTimeout` if it is not cut short."""
    return service.client.get(job["url"], headers={"Prefer": "wait=60", **(headers or {})}, timeout=40)


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
    answer = wait_for(folder_service, job)
    assert answer.json()["status"] == "succeeded" and time.monotonic() - begun > 0.2
    assert answer.headers["preference-applied"] == "wait=60"
    again = wait_for(folder_service, job)
    assert (again.status_code, again.json()) == (200, answer.json())
    assert wait_for(folder_service, job, {"If-None-Match": answer.headers["etag"]}).status_code == 304
    act.join()


def test_a_poll_with_an_etag_waits_until_it_differs(folder_service: Service) -> None:
    job = folder_service.separate()
    headers = {"If-None-Match": folder_service.client.get(job["url"]).headers["etag"]}
    act = act_soon(lambda: folder_service.deps.jobs.claim(job["id"], "a"))
    answer = wait_for(folder_service, job, headers)
    assert (answer.status_code, answer.json()["status"]) == (200, "running")
    assert wait_for(folder_service, job, headers).status_code == 200
    act.join()


def test_progress_ends_no_wait_and_is_told_at_its_end(folder_service: Service) -> None:
    job = folder_service.separate()
    folder_service.deps.jobs.claim(job["id"], "a")
    headers = {"Prefer": "wait=2", "If-None-Match": folder_service.client.get(job["url"]).headers["etag"]}
    act = act_soon(lambda: folder_service.deps.jobs.report_progress(job["id"], "a", 0.5, "separating"))
    begun = time.monotonic()
    answer = folder_service.client.get(job["url"], headers={"Prefer": "wait=2"})
    assert answer.json()["progress"] == {"ratio": 0.5, "stage": "separating"} and time.monotonic() - begun > 1.9
    act.join()
    act = act_soon(lambda: folder_service.deps.jobs.report_progress(job["id"], "a", 0.75, "separating"))
    assert folder_service.client.get(job["url"], headers=headers).status_code == 304
    act.join()


def test_a_poll_waits_no_longer_than_requested(folder_service: Service) -> None:
    job = folder_service.separate()
    begun = time.monotonic()
    answer = folder_service.client.get(job["url"], headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    assert answer.headers["retry-after"] == "1"
    headers = {"Prefer": "wait=1", "If-None-Match": answer.headers["etag"]}
    assert folder_service.client.get(job["url"], headers=headers).status_code == 304
    assert time.monotonic() - begun > 1.9


def test_preferences_may_come_in_several_headers(folder_service: Service) -> None:
    job = folder_service.separate()
    headers = [("Prefer", "respond-async"), ("Prefer", "wait=1"), ("If-None-Match", "*")]
    answer = folder_service.client.get(job["url"], headers=headers)
    assert (answer.status_code, answer.headers["preference-applied"]) == (304, "wait=1")


def test_a_job_deleted_during_the_wait_is_not_found(folder_service: Service) -> None:
    job = folder_service.separate()
    act = act_soon(lambda: folder_service.deps.jobs.delete(job["id"]))
    assert wait_for(folder_service, job).status_code == 404
    act.join()


def test_many_long_polls_block_no_request(folder_service: Service) -> None:
    """More of them than there are threads for requests."""
    job = folder_service.separate()

    async def wait_and_ask() -> None:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=folder_service.client.base_url, limits=limits, timeout=60) as client:
            waiting = [asyncio.create_task(client.get(job["url"], headers={"Prefer": "wait=60"})) for _ in range(60)]
            while "earmark_http_requests_in_progress 61.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.05)
            assert (await client.get("/readyz")).status_code == 200
            assert not any(task.done() for task in waiting)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(wait_and_ask())
    eventually(lambda: "earmark_http_requests_in_progress 1.0" in folder_service.client.get("/metrics").text)
