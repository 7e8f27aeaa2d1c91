"""Webhooks: delivery at least once, retries and backoff, signatures, and the SSRF guard."""

import base64
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from redis import Redis
from standardwebhooks import Webhook, WebhookVerificationError

from app.housekeeping.webhook_delivery import Message, Schedule, deliver_in_background, message
from app.jobs.lifecycle import Job, JobError
from app.jobs.webhook_outbox import WebhookOutbox
from app.keys.callers import Caller
from app.keys.repository import KeyRepository
from app.metrics import PROCESS
from app.separations import service as separations
from app.separations.schemas import SeparationCreate
from app.separations.service import SEPARATIONS
from app.settings import Settings
from tests.app.conftest import LIMITS, Service, empty, eventually, problem, serve
from tests.app.large_jobs import detection_result, large_metadata
from tests.app.receivers import Received, Receiver, receiver

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()
NETWORKS = {"outside_networks": "127.0.0.0/8", "webhook_secret": SecretStr(SECRET), "webhook_timeout": 60.0}


@pytest.fixture(scope="module")
def port() -> int:
    """A port for receivers, each on its own loopback address."""
    with receiver() as served:
        return int(served.url.rpartition(":")[2])


@pytest.fixture(scope="module")
def _module_service(valkey: Any, port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("front_end-service")
    settings = Settings(
        home=folder,
        redis_url=valkey.connection_url,
        outside_ports=str(port),
        **{**LIMITS, **NETWORKS, "queue_jobs": 100},
    )
    yield from serve(settings, folder)


@pytest.fixture
def front_end(_module_service: Service, redis: Redis) -> Service:
    """Return a front end that signs webhooks and may call receivers on the loopback network."""
    return empty(_module_service)


QUICK = Schedule(backoff=(0.1,) * len(Schedule().backoff), poll_interval=0.05)


@contextmanager
def delivery(service: Service, schedule: Schedule = QUICK, **settings: Any) -> Iterator[None]:
    """Deliver webhooks in a thread, as housekeeping does."""
    changed = service.deps.settings.model_copy(update=settings)
    stopping = threading.Event()
    with deliver_in_background(changed, stopping, schedule):
        try:
            yield
        finally:
            stopping.set()


def separate(service: Service, url: str, **webhook: Any) -> dict[str, Any]:
    return service.separate(webhook={"url": url, **webhook})


def outbox(service: Service) -> WebhookOutbox:
    return WebhookOutbox(service.deps.redis)


def wait_for_delivery(service: Service, served: Receiver, count: int = 1) -> list[Received]:
    """Wait until a receiver has `count` requests and no message is pending; return the requests."""
    eventually(lambda: len(served.requests) >= count and not outbox(service).pending_count())
    return served.requests


def verify(got: Received, secret: str = SECRET) -> dict[str, Any]:
    """Return the body, verified by the reference library of Standard Webhooks."""
    return Webhook(secret).verify(got.body, got.headers)


def test_a_webhook_has_the_same_job_as_a_poll(front_end: Service, port: int) -> None:
    with receiver(port=port) as served, delivery(front_end):
        job = separate(front_end, f"{served.url}/hook?order=17")
        front_end.finish(job["id"])
        (got,) = wait_for_delivery(front_end, served)
    body = verify(got)
    polled = front_end.client.get(job["url"]).json()
    assert body == {"type": "separation.succeeded", "timestamp": polled["finished_at"], "data": polled}
    assert got.path == "/hook?order=17" and got.headers["Content-Type"] == "application/json"


def test_a_large_result_is_delivered_whole_once_the_store_returns_it(front_end: Service, port: int) -> None:
    audio_id, job_folder = front_end.recording()["id"], front_end.folder / "store" / "records"
    with receiver(port=port) as served:
        body = {"audio_id": audio_id, "webhook": {"url": served.url}}
        job = front_end.client.post("/v1/detections", json=body).json()
        assert front_end.publish(job["id"], detection_result(audio_id, events=2000)).is_partial
        job_folder.rename(away := front_end.folder / "away")
        with delivery(front_end):
            time.sleep(0.5)  # enough for some attempts
            assert served.requests == [] and outbox(front_end).pending_count() == 1
            away.rename(job_folder)
            (got,) = wait_for_delivery(front_end, served)
    polled = front_end.client.get(job["url"])
    assert verify(got)["data"] == polled.json() and len(polled.json()["events"]) == 2000
    assert polled.content in got.body, "the same bytes"


def test_the_webhook_of_a_large_request_is_sent_for_the_requested_events_only(front_end: Service, port: int) -> None:
    audio_id, metadata = front_end.recording()["id"], large_metadata(16, "m")
    with receiver(port=port) as served, delivery(front_end):
        for events in (["failed", "canceled"], ["succeeded"]):
            body = {"audio_id": audio_id, "metadata": metadata, "webhook": {"url": served.url, "events": events}}
            job = front_end.client.post("/v1/detections", json=body).json()
            assert front_end.deps.jobs.get(job["id"]).webhook is None, "it is in the store"
            front_end.publish(job["id"], detection_result(audio_id, events=1, tags=1))
        (got,) = wait_for_delivery(front_end, served)
    assert (verify(got)["data"]["id"], verify(got)["data"]["metadata"]) == (job["id"], metadata)


def test_a_result_that_the_store_has_lost_is_given_up_after_a_day(front_end: Service, port: int) -> None:
    audio_id = front_end.recording()["id"]
    with receiver(port=port) as served:
        body = {"audio_id": audio_id, "webhook": {"url": served.url}}
        job = front_end.client.post("/v1/detections", json=body).json()
        front_end.publish(job["id"], detection_result(audio_id, events=2000))
        front_end.deps.storage.delete_prefix("records")
        with delivery(front_end, replace(QUICK, give_up_after=0.0)):
            eventually(lambda: not outbox(front_end).pending_count())
    assert served.requests == []


def test_webhooks_are_sent_for_the_requested_events_only(front_end: Service, port: int) -> None:
    jobs = front_end.deps.jobs
    with receiver(port=port) as served, delivery(front_end):
        for events in (["succeeded"], ["failed"], ["canceled"], ["succeeded", "failed", "canceled"]):
            url = f"{served.url}/{'-'.join(events)}"
            succeeded, failed, canceled = (separate(front_end, url, events=events)["id"] for _ in range(3))
            front_end.finish(succeeded)
            jobs.claim(failed, "a")
            jobs.fail(failed, "a", JobError(code="audio_undecodable", detail="No audio."))
            jobs.cancel(canceled)
        front_end.finish(front_end.separate()["id"])
        got = wait_for_delivery(front_end, served, 6)
        time.sleep(0.3)
    sent = sorted((request.path, verify(request)["type"]) for request in got)
    types = [f"separation.{status}" for status in ("canceled", "failed", "succeeded")]
    expected = [(f"/{name.partition('.')[2]}", name) for name in types]
    assert sent == sorted(expected + [("/succeeded-failed-canceled", name) for name in types])


@pytest.mark.parametrize(
    ("statuses", "attempts"),
    [([200], 1), ([204], 1), ([299], 1), ([410], 1), ([500, 200], 2), ([404, 302, 429, None, 204], 5), ([503] * 8, 7)],
)
def test_responses_of_receivers_end_or_repeat_the_delivery(
    front_end: Service, port: int, statuses: list[int | None], attempts: int
) -> None:
    schedule = QUICK
    if attempts == 7:  # the last backoff exceeds `give_up_after`
        schedule = replace(QUICK, backoff=(*(0.05,) * 6, 7200.0), give_up_after=3600.0)
    before = count_outcomes()
    with receiver(lambda before: statuses[before], port=port) as served, delivery(front_end, schedule):
        job = separate(front_end, served.url)
        front_end.finish(job["id"])
        got = wait_for_delivery(front_end, served, attempts)
        time.sleep(0.3)
        assert len(got) == attempts
    outcome = "delivered" if str(statuses[attempts - 1]).startswith("2") else "given_up"
    expected = Counter({outcome: 1}) + Counter({"failed": attempts - 1})
    eventually(lambda: count_outcomes() - before == expected)
    assert {request.path for request in got} == {"/"}  # redirects are not followed
    bodies = [verify(request) for request in got]
    assert len({request.headers["webhook-id"] for request in got}) == 1
    assert all(body == bodies[0] for body in bodies)


def count_outcomes() -> Counter[str]:
    """Return the attempts so far by outcome, from the metrics."""
    outcomes = ((name, {"outcome": name}) for name in ("delivered", "failed", "given_up"))
    counts = {name: PROCESS.get_sample_value("earmark_webhook_deliveries_total", labels) for name, labels in outcomes}
    return Counter({name: int(count or 0) for name, count in counts.items()})


def test_the_default_backoff_grows_and_retries_end_after_a_day() -> None:
    assert Schedule().backoff == (5, 30, 120, 600, 3600, 6 * 3600) and Schedule().give_up_after == 24 * 3600


def test_a_message_is_enqueued_with_the_terminal_state_and_survives_a_dead_process(
    front_end: Service, port: int
) -> None:
    job = separate(front_end, f"http://127.0.0.2:{port}")
    box, now = outbox(front_end), time.time()
    front_end.finish(job["id"])
    assert box.pending_count() == 1
    assert box.take(now + 1, 60, 10) == [job["id"]]
    assert box.take(now + 50, 60, 10) == []  # leased
    assert box.take(now + 62, 60, 10) == [job["id"]]  # the lease has expired
    front_end.deps.jobs.expire(job["id"])  # changes the record
    assert box.pending_count() == 1
    box.remove([job["id"]])
    assert box.pending_count() == 0
    box.postpone([job["id"]], now)  # by a process whose lease has expired
    assert box.pending_count() == 0


def test_concurrent_deliveries_send_each_message_once(front_end: Service, port: int) -> None:
    with receiver(port=port) as served, delivery(front_end), delivery(front_end), delivery(front_end):
        ids = [separate(front_end, served.url)["id"] for _ in range(20)]
        for job_id in ids:
            front_end.finish(job_id)
        got = wait_for_delivery(front_end, served, 20)
    assert sorted(verify(request)["data"]["id"] for request in got) == sorted(ids)


def test_a_slow_receiver_does_not_delay_others(front_end: Service, port: int) -> None:
    with (
        receiver(port=port, pause=300) as slow,
        receiver(port=port, address="127.0.0.3") as prompt,
        delivery(front_end),
    ):
        for _ in range(16):
            front_end.finish(separate(front_end, slow.url)["id"])
        eventually(lambda: len(slow.requests) >= 8)
        front_end.finish(separate(front_end, prompt.url)["id"])
        eventually(lambda: prompt.requests)
        assert len(slow.requests) == 8, "none of which has been answered"
        slow.closing.set()


def test_an_attempt_ends_after_its_timeout(front_end: Service, port: int) -> None:
    with receiver(port=port, pause=300) as served, delivery(front_end, webhook_timeout=0.2):
        front_end.finish(separate(front_end, served.url)["id"])
        eventually(lambda: len(served.requests) >= 2)
        assert outbox(front_end).pending_count() == 1


def test_many_slow_receivers_of_one_key_do_not_delay_other_keys(front_end: Service, port: int) -> None:
    keys = KeyRepository(front_end.deps.redis)

    def finish_job(owner: str, url: str) -> None:
        service = replace(front_end, deps=replace(front_end.deps, caller=Caller(owner)))
        audio_id = service.recording()["id"]
        body = {"mixture": {"audio_id": audio_id}, "targets": [{"label": "Dog"}], "webhook": {"url": url}}
        service.finish(separations.create(service.deps, SeparationCreate.model_validate(body)).job.id)

    slowed, other = (keys.create(name, rate=0, audio_seconds=0, priority=1)[0].id for name in ("slowed", "other"))
    with (
        ExitStack() as stack,
        receiver(port=port, address="127.0.0.3") as prompt,
        delivery(front_end),
    ):
        slow = [
            stack.enter_context(receiver(port=port, address=f"127.0.1.{number}", pause=300)) for number in range(1, 9)
        ]
        for number in range(64):
            finish_job(slowed, slow[number % 8].url)
        eventually(lambda: sum(len(server.requests) for server in slow) >= 32)
        time.sleep(0.5)  # enough for further attempts
        assert sum(len(server.requests) for server in slow) == 32
        finish_job(other, prompt.url)
        eventually(lambda: prompt.requests)
        assert sum(len(server.requests) for server in slow) == 32, "none of which has been answered"
        for server in slow:
            server.closing.set()


def test_a_private_address_is_never_called(front_end: Service, port: int) -> None:
    with receiver(port=port) as served, delivery(front_end, outside_networks=""):
        job = separate(front_end, served.url)
        front_end.finish(job["id"])
        assert (
            wait_for_failures(front_end, job["id"]) >= 2
            and served.requests == []
            and outbox(front_end).pending_count() == 1
        )


def wait_for_failures(service: Service, job_id: str) -> int:
    """Wait until more than one attempt has failed; return how many."""

    def failures() -> int:
        count: Any = service.deps.redis.hget("earmark:webhooks:tries", job_id)
        return int(count or 0)

    eventually(lambda: failures() >= 2)
    return failures()


def test_no_webhook_is_sent_for_a_deleted_job(front_end: Service, port: int) -> None:
    with receiver(port=port) as served:
        job = separate(front_end, served.url)
        front_end.finish(job["id"])
        front_end.client.delete(job["url"])
        with delivery(front_end):
            eventually(lambda: not outbox(front_end).pending_count())
        assert served.requests == []


def test_forged_and_replayed_messages_are_refused(front_end: Service) -> None:
    job = front_end.deps.jobs.get(
        separate(front_end, f"http://127.0.0.2:{front_end.deps.settings.outside_ports}")["id"]
    )
    job = front_end.finish(job.id)

    def request_at(now: datetime) -> Received:
        signed = sign_at(front_end, job, now)
        return Received("/", signed.headers, signed.body, 0.0)

    now = datetime.now(UTC)
    genuine = request_at(now)
    verify(genuine)
    forged = [
        replace(genuine, body=genuine.body.replace(b"succeeded", b"failed")),
        replace(genuine, headers=genuine.headers | {"webhook-id": "msg_other"}),
        replace(genuine, headers=genuine.headers | {"webhook-timestamp": str(int(now.timestamp()) + 1)}),
        replace(genuine, headers=genuine.headers | {"webhook-signature": "v1," + base64.b64encode(bytes(32)).decode()}),
        request_at(now - timedelta(minutes=6)),
        request_at(now + timedelta(minutes=6)),
    ]
    for request in forged:
        with pytest.raises(WebhookVerificationError):
            verify(request)
    with pytest.raises(WebhookVerificationError):
        verify(genuine, OTHER)


def test_a_job_of_a_key_is_signed_with_the_secret_of_the_key(front_end: Service) -> None:
    key, _ = KeyRepository(front_end.deps.redis).create("shop", rate=0, audio_seconds=0, priority=1)
    created = separate(front_end, f"http://127.0.0.2:{front_end.deps.settings.outside_ports}")
    job = front_end.finish(created["id"]).model_copy(update={"owner": key.id})
    signed = sign_at(front_end, job, datetime.now(UTC))
    body = verify(Received("/", signed.headers, signed.body, 0.0), key.webhook_secret)
    assert "?token=" in body["data"]["stems"][0]["url"]  # so that no key is needed to fetch it
    KeyRepository(front_end.deps.redis).revoke(key.id)
    assert message(front_end.deps, job, SEPARATIONS.to_answer(front_end.deps, job), datetime.now(UTC)) is None


def sign_at(service: Service, job: Job, now: datetime) -> Message:
    """Return the message of a job, signed at a time."""
    signed = message(service.deps, job, SEPARATIONS.to_answer(service.deps, job), now)
    assert signed is not None
    return signed


def test_secrets_are_not_in_logs_or_responses(front_end: Service, port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with receiver(lambda before: [500, 200][before], port=port) as served, delivery(front_end):
        job = separate(front_end, f"{served.url}/inbox/k3y?token=t0ken")
        front_end.finish(job["id"])
        wait_for_delivery(front_end, served, 2)
    logged = caplog.text + json.dumps(front_end.client.get(job["url"]).json())
    assert job["id"] in logged and "127.0.0.2" in logged
    for secret in (SECRET, SECRET.removeprefix("whsec_"), "k3y", "t0ken"):
        assert secret not in logged
    with front_end.client.stream("GET", job["events_url"]) as answer:
        assert "k3y" not in "".join(answer.iter_text())


@pytest.mark.parametrize(
    ("webhook", "code", "pointer"),
    [
        ({"url": "ftp://example.com"}, "url_refused", "/webhook/url"),
        ({"url": "http://user:password@example.com"}, "url_refused", "/webhook/url"),
        ({"url": "http://example.com:22"}, "url_refused", "/webhook/url"),
        ({"url": ""}, "request_invalid", "/webhook/url"),
        ({}, "request_invalid", "/webhook/url"),
        ({"url": "https://example.com", "events": []}, "request_invalid", "/webhook/events"),
        ({"url": "https://example.com", "events": ["queued"]}, "request_invalid", "/webhook/events/0"),
        ({"url": "https://example.com", "secret": "x"}, "request_invalid", "/webhook/secret"),
        ("https://example.com", "request_invalid", "/webhook"),
    ],
)
def test_an_invalid_webhook_is_rejected(front_end: Service, webhook: Any, code: str, pointer: str) -> None:
    body = {
        "mixture": {"audio_id": front_end.recording()["id"]},
        "targets": [{"label": "Dog"}],
        "webhook": webhook,
    }
    answer = problem(front_end.client.post("/v1/separations", json=body), 422, code)
    assert [error["pointer"] for error in answer["errors"]] == [pointer]


@pytest.mark.parametrize(
    "host",
    [
        *("10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "[::1]"),
        *("[::ffff:127.0.0.1]", "[fd00::1]", "[fe80::1]", "[64:ff9b::a00:1]", "10.1", "2130706433", "0x7f000001"),
        *("0x7f.0.0.1", "0", "1.0x", "127.0.0.1.", "a.127", "127.0.0.1.0x1"),
    ],
)
def test_a_private_address_is_rejected_in_the_request(front_end: Service, host: str) -> None:
    """In every notation and for every kind of job, except networks that the settings allow."""
    port, audio_id = front_end.deps.settings.outside_ports, front_end.recording()["id"]
    webhook = {"url": f"http://{host}:{port}/hook"}
    for path, body in (
        ("/v1/separations", {"mixture": {"audio_id": audio_id}, "targets": [{"label": "Dog"}]}),
        ("/v1/detections", {"audio_id": audio_id}),
        ("/v1/queries", {"name": "mine", "examples": [{"audio_id": audio_id}]}),
    ):
        answer = front_end.client.post(path, json={**body, "webhook": webhook})
        body = problem(answer, 422, "url_refused")
        assert body["errors"] == [{"pointer": "/webhook/url", "detail": "The URL's host has no public address."}]
    assert front_end.deps.jobs.unfinished_count() == 0
    separate(front_end, f"http://127.0.0.9:{port}/hook")


def test_without_a_signing_secret_webhooks_are_rejected(folder_service: Service) -> None:
    body = {
        "mixture": {"audio_id": folder_service.recording()["id"]},
        "targets": [{"label": "Dog"}],
        "webhook": {"url": "https://example.com"},
    }
    answer = problem(folder_service.client.post("/v1/separations", json=body), 422, "request_invalid")
    assert answer["errors"][0]["pointer"] == "/webhook"


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", SECRET[6:], "whsec_!" + SECRET[7:], "x" + SECRET])
def test_an_invalid_signing_secret_is_rejected_at_start(secret: str) -> None:
    with pytest.raises(ValidationError) as error:
        Settings(webhook_secret=SecretStr(secret))
    assert "24 to 64 random bytes" in str(error.value)
    assert len(secret) < 10 or secret not in str(error.value)
