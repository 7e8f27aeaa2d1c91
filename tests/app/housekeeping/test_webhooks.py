"""Webhooks: whoever asked is told, at least once, by a message that only this service can have signed."""

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

from app.housekeeping import webhook_delivery
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
from tests.app.receivers import Received, Receiver, receiver

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()
NETWORKS = {"outside_networks": "127.0.0.0/8", "webhook_secret": SecretStr(SECRET), "webhook_timeout": 1.0}


@pytest.fixture(scope="module")
def port() -> int:
    """The receivers' port, on addresses of their own."""
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
    """A front end that signs webhooks and may call receivers on the loopback network."""
    return empty(_hooked)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of a tenth of a second, six of them, as there are."""
    monkeypatch.setattr(webhook_delivery, "PAUSES", (0.1,) * len(webhook_delivery.PAUSES))
    monkeypatch.setattr(webhook_delivery, "_LOOK_SECONDS", 0.05)


@contextmanager
def delivering(service: Service, **settings: Any) -> Iterator[None]:
    """Housekeeping's thread."""
    chosen = service.deps.settings.model_copy(update=settings)
    stopping = threading.Event()
    with webhook_delivery.deliver_in_background(chosen, stopping):
        try:
            yield
        finally:
            stopping.set()


def ask(service: Service, url: str, **webhook: Any) -> dict[str, Any]:
    return service.separate(webhook={"url": url, **webhook})


def outbox(service: Service) -> WebhookOutbox:
    return WebhookOutbox(service.deps.redis)


def delivered(service: Service, served: Receiver, count: int = 1, seconds: float = 8) -> list[Received]:
    """What a receiver got, once it has got so many requests and nothing waits any more."""
    eventually(lambda: len(served.got) >= count and not outbox(service).pending_count(), seconds)
    return served.got


def verified(got: Received, secret: str = SECRET) -> dict[str, Any]:
    """The body, if the standard's own library takes it for genuine."""
    return Webhook(secret).verify(got.body, got.headers)


def test_a_webhook_tells_the_job_as_polled(hooked: Service, port: int, quick: None) -> None:
    with receiver(port=port) as served, delivering(hooked):
        job = ask(hooked, f"{served.url}/hook?order=17")
        hooked.finish(job["id"])
        (got,) = delivered(hooked, served)
    told = verified(got)
    polled = hooked.client.get(job["url"]).json()
    assert told == {"type": "separation.succeeded", "timestamp": polled["finished_at"], "data": polled}
    assert got.path == "/hook?order=17" and got.headers["Content-Type"] == "application/json"


def test_each_end_is_told_to_those_who_asked_for_it(hooked: Service, port: int, quick: None) -> None:
    jobs = hooked.deps.jobs
    with receiver(port=port) as served, delivering(hooked):
        for events in (["succeeded"], ["failed"], ["canceled"], ["succeeded", "failed", "canceled"]):
            url = f"{served.url}/{'-'.join(events)}"
            succeeded, failed, canceled = (ask(hooked, url, events=events)["id"] for _ in range(3))
            hooked.finish(succeeded)
            jobs.claim(failed, "a")
            jobs.fail(failed, "a", JobError(code="audio_undecodable", detail="No audio."))
            jobs.cancel(canceled)
        hooked.finish(hooked.separate()["id"])
        got = delivered(hooked, served, 6)
        time.sleep(0.3)
    told = sorted((each.path, verified(each)["type"]) for each in got)
    ends = [f"separation.{end}" for end in ("canceled", "failed", "succeeded")]
    assert told == sorted(
        [("/" + end.partition(".")[2], end) for end in ends] + [("/succeeded-failed-canceled", end) for end in ends]
    )


@pytest.mark.parametrize(
    ("answers", "tries"),
    [([200], 1), ([204], 1), ([299], 1), ([410], 1), ([500, 200], 2), ([404, 302, 429, None, 204], 5), ([503] * 8, 7)],
)
def test_what_receivers_may_answer(
    hooked: Service, port: int, quick: None, answers: list[int | None], tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tries == 7:  # given up: in a day that lasts half a second
        monkeypatch.setattr(webhook_delivery, "GIVEN_UP_AFTER", 1.1)
        monkeypatch.setattr(webhook_delivery, "PAUSES", (0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 1.2))
    before = outcomes()
    with receiver(lambda before: answers[before], port=port) as served, delivering(hooked):
        job = ask(hooked, served.url)
        hooked.finish(job["id"])
        got = delivered(hooked, served, tries)
        time.sleep(0.3)
        assert len(got) == tries
    end = "delivered" if str(answers[tries - 1]).startswith("2") else "given_up"
    told = Counter({end: 1}) + Counter({"failed": tries - 1})
    eventually(lambda: outcomes() - before == told, 5)
    assert {each.path for each in got} == {"/"}  # a redirect leads nowhere
    bodies = [verified(each) for each in got]
    assert len({each.headers["webhook-id"] for each in got}) == 1
    assert all(body == bodies[0] for body in bodies)


def outcomes() -> Counter[str]:
    """Tries so far, by outcome, as Prometheus is told."""
    told = ((name, {"outcome": name}) for name in ("delivered", "failed", "given_up"))
    counts = {name: PROCESS.get_sample_value("earmark_webhook_deliveries_total", labels) for name, labels in told}
    return Counter({name: int(count or 0) for name, count in counts.items()})


def test_the_pauses_grow_and_end_after_a_day() -> None:
    assert webhook_delivery.PAUSES == (5, 30, 120, 600, 3600, 6 * 3600) and webhook_delivery.GIVEN_UP_AFTER == 24 * 3600


def test_a_message_is_entered_with_the_end_itself_and_survives_its_deliverer(hooked: Service, port: int) -> None:
    job = ask(hooked, f"http://127.0.0.2:{port}")
    box, now = outbox(hooked), time.time()
    hooked.finish(job["id"])
    assert box.pending_count() == 1
    assert box.take(now + 1, 60, 10) == [job["id"]]
    assert box.take(now + 50, 60, 10) == []  # somebody has it
    assert box.take(now + 62, 60, 10) == [job["id"]]  # who has died
    hooked.deps.jobs.expire(job["id"])  # writes the record again
    assert box.pending_count() == 1
    box.remove([job["id"]])
    assert box.pending_count() == 0
    box.postpone([job["id"]], now)  # by one who was slow
    assert box.pending_count() == 0


def test_many_deliverers_tell_each_job_once(hooked: Service, port: int, quick: None) -> None:
    with receiver(port=port) as served, delivering(hooked), delivering(hooked), delivering(hooked):
        ids = [ask(hooked, served.url)["id"] for _ in range(20)]
        for job_id in ids:
            hooked.finish(job_id)
        got = delivered(hooked, served, 20)
    assert sorted(verified(each)["data"]["id"] for each in got) == sorted(ids)


def test_a_slow_receiver_holds_up_nobody_else(hooked: Service, port: int, quick: None) -> None:
    with (
        receiver(port=port, pause=30) as slow,
        receiver(port=port, address="127.0.0.3") as prompt,
        delivering(hooked),
    ):
        for _ in range(40):
            hooked.finish(ask(hooked, slow.url)["id"])
        eventually(lambda: len(slow.got) >= 8, 5)
        hooked.finish(ask(hooked, prompt.url)["id"])
        begun = time.monotonic()
        eventually(lambda: prompt.got, 5)
        assert time.monotonic() - begun < 2.5
        eventually(lambda: len(slow.got) >= 16, 8)  # each was cut off after a second
        eventually(lambda: outbox(hooked).pending_count() == 40, 5)


def test_a_keys_many_slow_receivers_hold_up_no_other_keys(hooked: Service, port: int, quick: None) -> None:
    keys = KeyRepository(hooked.deps.redis)

    def end(owner: str, url: str) -> None:
        service = replace(hooked, deps=replace(hooked.deps, caller=Caller(owner)))
        audio_id = service.recording()["id"]
        sent = {"mixture": {"audio_id": audio_id}, "targets": [{"label": "Dog"}], "webhook": {"url": url}}
        service.finish(separations.create(service.deps, SeparationCreate.model_validate(sent)).job.id)

    slowed, other = (keys.create(name, rate=0, audio_seconds=0, priority=1)[0].id for name in ("slowed", "other"))
    with (
        ExitStack() as stack,
        receiver(port=port, address="127.0.0.3") as prompt,
        delivering(hooked, webhook_timeout=8.0, upload_idle=8.0),
    ):
        slow = [
            stack.enter_context(receiver(port=port, address=f"127.0.1.{number}", pause=30)) for number in range(1, 9)
        ]
        for number in range(64):
            end(slowed, slow[number % 8].url)
        eventually(lambda: sum(len(each.got) for each in slow) >= 32, 5)
        time.sleep(0.5)  # time enough for more
        assert sum(len(each.got) for each in slow) == 32
        end(other, prompt.url)
        begun = time.monotonic()
        eventually(lambda: prompt.got, 5)
        assert time.monotonic() - begun < 2.5
        for each in slow:
            each.over.set()


def test_a_private_address_is_never_called(hooked: Service, port: int, quick: None) -> None:
    with receiver(port=port) as served, delivering(hooked, outside_networks=""):
        job = ask(hooked, served.url)
        hooked.finish(job["id"])
        tries: Any = eventually_tried(hooked, job["id"])
        assert tries >= 2 and served.got == [] and outbox(hooked).pending_count() == 1


def eventually_tried(service: Service, job_id: str) -> int:
    """How many tries have failed, once it is more than one."""
    tries = 0

    def twice() -> bool:
        nonlocal tries
        found: Any = service.deps.redis.hget("earmark:webhooks:tries", job_id)
        tries = int(found or 0)
        return tries >= 2

    eventually(twice, 5)
    return tries


def test_a_deleted_job_is_not_told(hooked: Service, port: int, quick: None) -> None:
    with receiver(port=port) as served:
        job = ask(hooked, served.url)
        hooked.finish(job["id"])
        hooked.client.delete(job["url"])
        with delivering(hooked):
            eventually(lambda: not outbox(hooked).pending_count(), 5)
        assert served.got == []


def test_forged_and_replayed_messages_are_refused(hooked: Service) -> None:
    job = hooked.deps.jobs.get(ask(hooked, f"http://127.0.0.2:{hooked.deps.settings.outside_ports}")["id"])
    job = hooked.finish(job.id)

    def sent(now: datetime) -> Received:
        made = made_at(hooked, job, now)
        return Received("/", made.headers, made.body, 0.0)

    now = datetime.now(UTC)
    genuine = sent(now)
    verified(genuine)
    forged = [
        replace(genuine, body=genuine.body.replace(b"succeeded", b"failed")),
        replace(genuine, headers=genuine.headers | {"webhook-id": "msg_other"}),
        replace(genuine, headers=genuine.headers | {"webhook-timestamp": str(int(now.timestamp()) + 1)}),
        replace(genuine, headers=genuine.headers | {"webhook-signature": "v1," + base64.b64encode(bytes(32)).decode()}),
        sent(now - timedelta(minutes=6)),
        sent(now + timedelta(minutes=6)),
    ]
    for message in forged:
        with pytest.raises(WebhookVerificationError):
            verified(message)
    with pytest.raises(WebhookVerificationError):
        verified(genuine, OTHER)


def test_a_keys_job_is_signed_with_its_own_secret(hooked: Service) -> None:
    key, _ = KeyRepository(hooked.deps.redis).create("shop", rate=0, audio_seconds=0, priority=1)
    asked = ask(hooked, f"http://127.0.0.2:{hooked.deps.settings.outside_ports}")
    job = hooked.finish(asked["id"]).model_copy(update={"owner": key.id})
    made = made_at(hooked, job, datetime.now(UTC))
    told = verified(Received("/", made.headers, made.body, 0.0), key.webhook_secret)
    assert "?token=" in told["data"]["stems"][0]["url"]  # so that it can be fetched as it is
    KeyRepository(hooked.deps.redis).revoke(key.id)
    assert (
        webhook_delivery.message(hooked.deps, job, SEPARATIONS.to_answer(hooked.deps, job), datetime.now(UTC)) is None
    )


def made_at(service: Service, job: Job, now: datetime) -> webhook_delivery.Message:
    made = webhook_delivery.message(service.deps, job, SEPARATIONS.to_answer(service.deps, job), now)
    assert made is not None
    return made


def test_secrets_are_not_in_logs_or_answers(
    hooked: Service, port: int, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with receiver(lambda before: [500, 200][before], port=port) as served, delivering(hooked):
        job = ask(hooked, f"{served.url}/inbox/k3y?token=t0ken")
        hooked.finish(job["id"])
        delivered(hooked, served, 2)
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
def test_what_cannot_be_called_is_refused(hooked: Service, webhook: Any, code: str, pointer: str) -> None:
    body = {"mixture": {"audio_id": hooked.recording()["id"]}, "targets": [{"label": "Dog"}], "webhook": webhook}
    told = problem(hooked.client.post("/v1/separations", json=body), 422, code)
    assert [error["pointer"] for error in told["errors"]] == [pointer]


@pytest.mark.parametrize(
    "host",
    [
        *("10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "[::1]"),
        *("[::ffff:127.0.0.1]", "[fd00::1]", "[fe80::1]", "[64:ff9b::a00:1]", "10.1", "2130706433", "0x7f000001"),
        *("0x7f.0.0.1", "0", "1.0x", "127.0.0.1.", "a.127", "127.0.0.1.0x1"),
    ],
)
def test_a_private_address_is_refused_when_it_is_named(hooked: Service, host: str) -> None:
    """However it is spelled, and on every kind of job; but not the network that the settings allow."""
    port, audio_id = hooked.deps.settings.outside_ports, hooked.recording()["id"]
    webhook = {"url": f"http://{host}:{port}/hook"}
    for path, body in (
        ("/v1/separations", {"mixture": {"audio_id": audio_id}, "targets": [{"label": "Dog"}]}),
        ("/v1/detections", {"audio_id": audio_id}),
        ("/v1/queries", {"name": "mine", "examples": [{"audio_id": audio_id}]}),
    ):
        answer = hooked.client.post(path, json={**body, "webhook": webhook})
        told = problem(answer, 422, "url_refused")
        assert told["errors"] == [{"pointer": "/webhook/url", "detail": "The URL's host has no public address."}]
    assert hooked.deps.jobs.unfinished_count() == 0
    ask(hooked, f"http://127.0.0.9:{port}/hook")


def test_without_a_secret_no_webhook_is_promised(folder_service: Service) -> None:
    body = {
        "mixture": {"audio_id": folder_service.recording()["id"]},
        "targets": [{"label": "Dog"}],
        "webhook": {"url": "https://example.com"},
    }
    told = problem(folder_service.client.post("/v1/separations", json=body), 422, "request_invalid")
    assert told["errors"][0]["pointer"] == "/webhook"


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", SECRET[6:], "whsec_!" + SECRET[7:], "x" + SECRET])
def test_a_secret_that_cannot_sign_is_refused_at_start(secret: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(webhook_secret=SecretStr(secret))
    assert "24 to 64 random bytes" in str(refused.value)
    assert len(secret) < 10 or secret not in str(refused.value)
