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
from tests.app.conftest import LIMITS, Service, emptied, eventually, problem, serve
from tests.app.receivers import Received, Receiver, receiver

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()
NETWORKS = {"outside_networks": "127.0.0.0/8", "webhook_secret": SecretStr(SECRET), "webhook_timeout": 1.0}


@pytest.fixture(scope="module")
def port() -> int:
    """A port for receivers, each on its own loopback address."""
    with receiver() as served:
        return int(served.url.rpartition(":")[2])


@pytest.fixture(scope="module")
def _hooked(valkey: Any, port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("hooked-service")
    settings = Settings(
        home=folder,
        redis_url=valkey.connection_url,
        outside_ports=str(port),
        **{**LIMITS, **NETWORKS, "queue_jobs": 100},
    )
    yield from serve(settings, folder)


@pytest.fixture
def hooked(_hooked: Service, redis: Redis) -> Service:
    """Return a front end that signs webhooks and may call receivers on the loopback network."""
    return emptied(_hooked)


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


def wait_for_delivery(service: Service, served: Receiver, count: int = 1, seconds: float = 8) -> list[Received]:
    """Wait until a receiver has `count` requests and no message is pending; return the requests."""
    eventually(lambda: len(served.got) >= count and not outbox(service).pending_count(), seconds)
    return served.got


def verify(got: Received, secret: str = SECRET) -> dict[str, Any]:
    """Return the body, verified by the reference library of Standard Webhooks."""
    return Webhook(secret).verify(got.body, got.headers)


def test_a_webhook_has_the_same_job_as_a_poll(hooked: Service, port: int) -> None:
    with receiver(port=port) as served, delivery(hooked):
        job = separate(hooked, f"{served.url}/hook?order=17")
        hooked.finish(job["id"])
        (got,) = wait_for_delivery(hooked, served)
    body = verify(got)
    polled = hooked.client.get(job["url"]).json()
    assert body == {"type": "separation.succeeded", "timestamp": polled["finished_at"], "data": polled}
    assert got.path == "/hook?order=17" and got.headers["Content-Type"] == "application/json"


def test_webhooks_are_sent_for_the_requested_events_only(hooked: Service, port: int) -> None:
    jobs = hooked.deps.jobs
    with receiver(port=port) as served, delivery(hooked):
        for events in (["succeeded"], ["failed"], ["canceled"], ["succeeded", "failed", "canceled"]):
            url = f"{served.url}/{'-'.join(events)}"
            succeeded, failed, canceled = (separate(hooked, url, events=events)["id"] for _ in range(3))
            hooked.finish(succeeded)
            jobs.claim(failed, "a")
            jobs.fail(failed, "a", JobError(code="audio_undecodable", detail="No audio."))
            jobs.cancel(canceled)
        hooked.finish(hooked.separate()["id"])
        got = wait_for_delivery(hooked, served, 6)
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
    hooked: Service, port: int, statuses: list[int | None], attempts: int
) -> None:
    schedule = QUICK
    if attempts == 7:  # the last backoff exceeds `give_up_after`
        schedule = replace(QUICK, backoff=(0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 1.2), give_up_after=1.1)
    before = count_outcomes()
    with receiver(lambda before: statuses[before], port=port) as served, delivery(hooked, schedule):
        job = separate(hooked, served.url)
        hooked.finish(job["id"])
        got = wait_for_delivery(hooked, served, attempts)
        time.sleep(0.3)
        assert len(got) == attempts
    outcome = "delivered" if str(statuses[attempts - 1]).startswith("2") else "given_up"
    expected = Counter({outcome: 1}) + Counter({"failed": attempts - 1})
    eventually(lambda: count_outcomes() - before == expected, 5)
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


def test_a_message_is_enqueued_with_the_terminal_state_and_survives_a_dead_process(hooked: Service, port: int) -> None:
    job = separate(hooked, f"http://127.0.0.2:{port}")
    box, now = outbox(hooked), time.time()
    hooked.finish(job["id"])
    assert box.pending_count() == 1
    assert box.take(now + 1, 60, 10) == [job["id"]]
    assert box.take(now + 50, 60, 10) == []  # leased
    assert box.take(now + 62, 60, 10) == [job["id"]]  # the lease has expired
    hooked.deps.jobs.expire(job["id"])  # changes the record
    assert box.pending_count() == 1
    box.remove([job["id"]])
    assert box.pending_count() == 0
    box.postpone([job["id"]], now)  # by a process whose lease has expired
    assert box.pending_count() == 0


def test_concurrent_deliveries_send_each_message_once(hooked: Service, port: int) -> None:
    with receiver(port=port) as served, delivery(hooked), delivery(hooked), delivery(hooked):
        ids = [separate(hooked, served.url)["id"] for _ in range(20)]
        for job_id in ids:
            hooked.finish(job_id)
        got = wait_for_delivery(hooked, served, 20)
    assert sorted(verify(request)["data"]["id"] for request in got) == sorted(ids)


def test_a_slow_receiver_does_not_delay_others(hooked: Service, port: int) -> None:
    with (
        receiver(port=port, pause=30) as slow,
        receiver(port=port, address="127.0.0.3") as prompt,
        delivery(hooked),
    ):
        for _ in range(40):
            hooked.finish(separate(hooked, slow.url)["id"])
        eventually(lambda: len(slow.got) >= 8, 5)
        hooked.finish(separate(hooked, prompt.url)["id"])
        begun = time.monotonic()
        eventually(lambda: prompt.got, 5)
        assert time.monotonic() - begun < 2.5
        eventually(lambda: len(slow.got) >= 16, 8)  # each attempt ends after its timeout of a second
        eventually(lambda: outbox(hooked).pending_count() == 40, 5)


def test_many_slow_receivers_of_one_key_do_not_delay_other_keys(hooked: Service, port: int) -> None:
    keys = KeyRepository(hooked.deps.redis)

    def finish_job(owner: str, url: str) -> None:
        service = replace(hooked, deps=replace(hooked.deps, caller=Caller(owner)))
        audio_id = service.recording()["id"]
        body = {"mixture": {"audio_id": audio_id}, "targets": [{"label": "Dog"}], "webhook": {"url": url}}
        service.finish(separations.create(service.deps, SeparationCreate.model_validate(body)).job.id)

    slowed, other = (keys.create(name, rate=0, audio_seconds=0, priority=1)[0].id for name in ("slowed", "other"))
    with (
        ExitStack() as stack,
        receiver(port=port, address="127.0.0.3") as prompt,
        delivery(hooked, webhook_timeout=8.0, upload_idle=8.0),
    ):
        slow = [
            stack.enter_context(receiver(port=port, address=f"127.0.1.{number}", pause=30)) for number in range(1, 9)
        ]
        for number in range(64):
            finish_job(slowed, slow[number % 8].url)
        eventually(lambda: sum(len(server.got) for server in slow) >= 32, 5)
        time.sleep(0.5)  # enough for further attempts
        assert sum(len(server.got) for server in slow) == 32
        finish_job(other, prompt.url)
        begun = time.monotonic()
        eventually(lambda: prompt.got, 5)
        assert time.monotonic() - begun < 2.5
        for server in slow:
            server.over.set()


def test_a_private_address_is_never_called(hooked: Service, port: int) -> None:
    with receiver(port=port) as served, delivery(hooked, outside_networks=""):
        job = separate(hooked, served.url)
        hooked.finish(job["id"])
        assert wait_for_failures(hooked, job["id"]) >= 2 and served.got == [] and outbox(hooked).pending_count() == 1


def wait_for_failures(service: Service, job_id: str) -> int:
    """Wait until more than one attempt has failed; return how many."""

    def failures() -> int:
        count: Any = service.deps.redis.hget("earmark:webhooks:tries", job_id)
        return int(count or 0)

    eventually(lambda: failures() >= 2, 5)
    return failures()


def test_no_webhook_is_sent_for_a_deleted_job(hooked: Service, port: int) -> None:
    with receiver(port=port) as served:
        job = separate(hooked, served.url)
        hooked.finish(job["id"])
        hooked.client.delete(job["url"])
        with delivery(hooked):
            eventually(lambda: not outbox(hooked).pending_count(), 5)
        assert served.got == []


def test_forged_and_replayed_messages_are_refused(hooked: Service) -> None:
    job = hooked.deps.jobs.get(separate(hooked, f"http://127.0.0.2:{hooked.deps.settings.outside_ports}")["id"])
    job = hooked.finish(job.id)

    def request_at(now: datetime) -> Received:
        signed = sign_at(hooked, job, now)
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


def test_a_job_of_a_key_is_signed_with_the_secret_of_the_key(hooked: Service) -> None:
    key, _ = KeyRepository(hooked.deps.redis).create("shop", rate=0, audio_seconds=0, priority=1)
    created = separate(hooked, f"http://127.0.0.2:{hooked.deps.settings.outside_ports}")
    job = hooked.finish(created["id"]).model_copy(update={"owner": key.id})
    signed = sign_at(hooked, job, datetime.now(UTC))
    body = verify(Received("/", signed.headers, signed.body, 0.0), key.webhook_secret)
    assert "?token=" in body["data"]["stems"][0]["url"]  # so that no key is needed to fetch it
    KeyRepository(hooked.deps.redis).revoke(key.id)
    assert message(hooked.deps, job, SEPARATIONS.to_answer(hooked.deps, job), datetime.now(UTC)) is None


def sign_at(service: Service, job: Job, now: datetime) -> Message:
    """Return the message of a job, signed at a time."""
    signed = message(service.deps, job, SEPARATIONS.to_answer(service.deps, job), now)
    assert signed is not None
    return signed


def test_secrets_are_not_in_logs_or_responses(hooked: Service, port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with receiver(lambda before: [500, 200][before], port=port) as served, delivery(hooked):
        job = separate(hooked, f"{served.url}/inbox/k3y?token=t0ken")
        hooked.finish(job["id"])
        wait_for_delivery(hooked, served, 2)
    logged = caplog.text + json.dumps(hooked.client.get(job["url"]).json())
    assert job["id"] in logged and "127.0.0.2" in logged
    for secret in (SECRET, SECRET.removeprefix("whsec_"), "k3y", "t0ken"):
        assert secret not in logged
    with hooked.client.stream("GET", job["events_url"]) as answer:
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
def test_an_invalid_webhook_is_rejected(hooked: Service, webhook: Any, code: str, pointer: str) -> None:
    body = {"mixture": {"audio_id": hooked.recording()["id"]}, "targets": [{"label": "Dog"}], "webhook": webhook}
    answer = problem(hooked.client.post("/v1/separations", json=body), 422, code)
    assert [error["pointer"] for error in answer["errors"]] == [pointer]


@pytest.mark.parametrize(
    "host",
    [
        *("10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "[::1]"),
        *("[::ffff:127.0.0.1]", "[fd00::1]", "[fe80::1]", "[64:ff9b::a00:1]", "10.1", "2130706433", "0x7f000001"),
        *("0x7f.0.0.1", "0", "1.0x", "127.0.0.1.", "a.127", "127.0.0.1.0x1"),
    ],
)
def test_a_private_address_is_rejected_in_the_request(hooked: Service, host: str) -> None:
    """In every notation and for every kind of job, except networks that the settings allow."""
    port, audio_id = hooked.deps.settings.outside_ports, hooked.recording()["id"]
    webhook = {"url": f"http://{host}:{port}/hook"}
    for path, body in (
        ("/v1/separations", {"mixture": {"audio_id": audio_id}, "targets": [{"label": "Dog"}]}),
        ("/v1/detections", {"audio_id": audio_id}),
        ("/v1/queries", {"name": "mine", "examples": [{"audio_id": audio_id}]}),
    ):
        answer = hooked.client.post(path, json={**body, "webhook": webhook})
        body = problem(answer, 422, "url_refused")
        assert body["errors"] == [{"pointer": "/webhook/url", "detail": "The URL's host has no public address."}]
    assert hooked.deps.jobs.unfinished_count() == 0
    separate(hooked, f"http://127.0.0.9:{port}/hook")


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
