"""Server-sent events: everything that happened to a job, in order, once, and then the end."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from app.job_api import event_stream
from app.jobs.events import events_key
from app.jobs.lifecycle import TargetState
from app.jobs.listing import record_key
from tests.app.conftest import Service, eventually, problem


@dataclass
class Event:
    """One server-sent event."""

    id: int
    type: str
    job: dict[str, Any]


def parse_events(answer: httpx.Response) -> Iterator[Event]:
    """Yield the events of a stream until it closes, parsed as a browser does."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        name, _, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
        elif not line:
            if "data" in fields:
                yield Event(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            fields = {}


def read_events(service: Service, job: dict[str, Any], after: int | str | None = None) -> list[Event]:
    """Return all events until the stream closes."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    with service.client.stream("GET", job["events_url"], headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        return list(parse_events(answer))


def do_work(service: Service, job_id: str) -> None:
    """Act as the worker, with progress and a target's outcome on the way."""
    jobs = service.deps.jobs
    assert jobs.claim(job_id, "a")
    assert jobs.report_progress(job_id, "a", 0.25, "separating")
    assert jobs.update_target(job_id, "a", TargetState(name="dog", label="Dog", status="succeeded", presence=0.9))
    assert jobs.report_progress(job_id, "a", 0.75, "encoding")


def test_past_events_are_replayed_and_the_stream_closes(folder_service: Service) -> None:
    job = folder_service.separate()
    do_work(folder_service, job["id"])
    folder_service.finish(job["id"])
    told = read_events(folder_service, job)
    assert [event.id for event in told] == list(range(1, 8))
    kinds = ["state", "state", "progress", "target", "progress", "state", "state"]
    assert [event.type for event in told] == kinds
    assert [event.job["status"] for event in told] == ["queued", *["running"] * 5, "succeeded"]
    assert [event.job["progress"]["ratio"] for event in told] == [0, 0, 0.25, 0.25, 0.75, 0, 1]
    assert told[3].job["targets"][0]["presence"] == 0.9
    assert told[0].job == job | {"queue": told[0].job["queue"]}
    assert told[-1].job == folder_service.client.get(job["url"]).json()


@pytest.mark.parametrize(("after", "first"), [(0, 1), (1, 2), (6, 7), (99, 1), ("x", 1), ("-1", 1), ("9" * 40, 1)])
def test_events_up_to_last_event_id_are_not_sent_again(folder_service: Service, after: int | str, first: int) -> None:
    job = folder_service.separate()
    do_work(folder_service, job["id"])
    folder_service.finish(job["id"])
    told = read_events(folder_service, job, after)
    assert [event.id for event in told] == list(range(first, 8))
    assert told[-1].job["progress"]["ratio"] == 1


def test_no_content_after_the_last_event(folder_service: Service) -> None:
    job = folder_service.separate()
    folder_service.finish(job["id"])
    last = read_events(folder_service, job)[-1].id
    answer = folder_service.client.get(job["events_url"], headers={"Last-Event-ID": str(last)})
    assert (answer.status_code, answer.content) == (204, b"")
    folder_service.deps.jobs.expire(job["id"])
    assert [(event.id, event.job["stems"]) for event in read_events(folder_service, job, last)] == [(last + 1, [])]


@pytest.mark.parametrize("job_id", ["sep_" + "0" * 26, "x"])
def test_events_of_an_unknown_job_are_not_found(folder_service: Service, job_id: str) -> None:
    problem(folder_service.client.get(f"/v1/separations/{job_id}/events"), 404, "not_found")


def test_events_arrive_as_they_happen(folder_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the next comment, for which the test would wait too long."""
    monkeypatch.setattr(event_stream, "HEARTBEAT_SECONDS", 3600.0)
    job = folder_service.separate()
    jobs = folder_service.deps.jobs
    with folder_service.client.stream("GET", job["events_url"]) as answer:
        events = parse_events(answer)
        assert next(events).job["status"] == "queued"
        jobs.claim(job["id"], "a")
        assert next(events).job["status"] == "running"
        for number in range(1, 11):
            jobs.report_progress(job["id"], "a", number / 20, "separating")
            assert next(events).job["progress"]["ratio"] == number / 20
        jobs.cancel(job["id"])
        assert next(events).job["cancel_requested_at"] is not None
        jobs.confirm_cancel(job["id"], "a")
        assert next(events).job["status"] == "canceled"
        assert list(events) == []
    wait_for_no_subscriptions(folder_service)


def wait_for_no_subscriptions(service: Service) -> None:
    """Wait until the event feed reads no stream any more: no connection of it waits for entries."""
    eventually(lambda: all(client["cmd"] != "xread" for client in service.deps.redis.client_list()))


def test_a_stream_ends_when_its_job_is_deleted(folder_service: Service) -> None:
    job = folder_service.separate()
    with folder_service.client.stream("GET", job["events_url"]) as answer:
        events = parse_events(answer)
        next(events)
        assert folder_service.client.delete(job["url"]).status_code == 204
        assert list(events) == []
    assert 0 < folder_service.deps.redis.ttl(events_key(job["id"])) <= 60
    assert folder_service.client.get(job["events_url"]).status_code == 404


def test_idle_streams_send_keepalive_comments(folder_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_SECONDS", 0.1)
    job = folder_service.separate()
    with folder_service.client.stream("GET", job["events_url"]) as answer:
        comments = 0
        for line in answer.iter_lines():
            comments += line.startswith(":")
            if comments == 3:
                break
    wait_for_no_subscriptions(folder_service)


def test_a_stream_ends_when_a_server_that_lost_events_has_ended_the_job(
    folder_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed server may lose the last two seconds of its log, and then reuses the numbers of events."""
    monkeypatch.setattr(event_stream, "HEARTBEAT_SECONDS", 0.1)
    jobs, redis = folder_service.deps.jobs, folder_service.deps.redis
    job = folder_service.separate()
    kept = {key: redis.dump(key) for key in (record_key(job["id"]), events_key(job["id"]))}
    with folder_service.client.stream("GET", job["events_url"]) as answer:
        events = parse_events(answer)
        next(events)
        jobs.claim(job["id"], "a")
        jobs.report_progress(job["id"], "a", 0.5, "separating")
        assert [next(events).job["status"] for _ in range(2)] == ["running", "running"]
        for key, value in kept.items():
            redis.restore(key, 0, value or b"", replace=True)
        assert jobs.cancel(job["id"]).revision == 2
        assert list(events) == []
    answer = folder_service.client.get(job["events_url"], headers={"Last-Event-ID": "3"})
    assert '"canceled"' in answer.text, "whoever asks again is told"


def test_a_stream_survives_a_redis_restart(folder_service: Service) -> None:
    """Closed connections are what a restart of the server looks like."""
    job = folder_service.separate()
    with folder_service.client.stream("GET", job["events_url"]) as answer:
        events = parse_events(answer)
        next(events)
        folder_service.deps.redis.client_kill_filter(_type="normal", skipme=True)
        folder_service.deps.jobs.claim(job["id"], "a")
        assert next(events).job["status"] == "running"


def test_many_streams_share_one_connection_and_block_no_request(folder_service: Service) -> None:
    jobs = [folder_service.separate() for _ in range(10)]
    redis, deps = folder_service.deps.redis, folder_service.deps
    with folder_service.client.stream("GET", jobs[0]["events_url"]):
        before = len(redis.client_list())

    async def read(client: httpx.AsyncClient, job: dict[str, Any], opened: list[int]) -> None:
        async with client.stream("GET", job["events_url"]) as answer:
            ids = []
            async for line in answer.aiter_lines():
                if line.startswith("id: "):
                    ids.append(int(line.removeprefix("id: ")))
                    opened.append(1)
        assert ids == [1, 2]

    async def all_of_them() -> int:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=folder_service.client.base_url, limits=limits, timeout=60) as client:
            opened: list[int] = []
            tasks = [asyncio.create_task(read(client, job, opened)) for job in jobs for _ in range(10)]
            while len(opened) < len(tasks):
                await asyncio.sleep(0.05)
            connections = len(redis.client_list())
            assert (await client.get("/readyz")).status_code == 200, "the streams go on meanwhile"
            for job in jobs:
                deps.jobs.cancel(job["id"])
            await asyncio.gather(*tasks)
            return connections

    # One for the feed; the rest, one a thread, is the server's pool.
    assert asyncio.run(all_of_them()) <= before + 40
    wait_for_no_subscriptions(folder_service)
