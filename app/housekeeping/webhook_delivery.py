"""Delivery of webhooks: at least once, with retries and backoff, for one day.

A response 2xx acknowledges a message; 410 stops its retries. Response bodies are not read and redirects not followed.
Every attempt at a message has the same `webhook-id`, by which receivers recognize duplicates. Logs name only the host
of a receiver, since the rest of its URL may hold secrets.
"""

import asyncio
import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from pydantic import BaseModel
from redis.exceptions import RedisError
from standardwebhooks import Webhook

from app.dependencies import Dependencies
from app.errors import EarmarkError, NotFound, RecordUnreadable, StoreUnavailable, UrlRefused
from app.job_api.resource import JobResource
from app.job_api.webhooks import signing_secret
from app.jobs.lifecycle import Job
from app.jobs.listing import record_key
from app.jobs.webhook_outbox import WebhookOutbox
from app.metrics import webhook_deliveries
from app.resources import SERVED_KINDS
from app.settings import Settings

log = logging.getLogger("earmark.webhooks")

CONCURRENCY = 64
CONCURRENCY_PER = {"host": 8, "owner": 32}  # so that slow receivers delay neither other hosts nor other keys
_BUSY_SECONDS = 1.0  # before another look at a message whose host or owner has used up its concurrency
_LEASE_MARGIN = 5.0  # s beyond two timeouts, after which another process may take a message
_GONE = 410

_RESOURCES: dict[str, JobResource] = {served.resource.kind.name: served.resource for served in SERVED_KINDS}


@dataclass(frozen=True)
class Schedule:
    """Times of attempts, in seconds.

    backoff: before the second attempt, the third, ...; the last value repeats.
    give_up_after: since the job has finished.
    poll_interval: between two queries for messages that are due.
    """

    backoff: tuple[float, ...] = (5.0, 30.0, 120.0, 600.0, 3600.0, 21600.0)
    give_up_after: float = 86400.0
    poll_interval: float = 0.5


@dataclass(frozen=True)
class Message:
    """One attempt to deliver the terminal state of a job."""

    job: Job
    url: str
    body: bytes
    headers: dict[str, str]

    @property
    def host(self) -> str:
        """The only part of the URL that logs may show."""
        return urlsplit(self.url).hostname or ""

    @property
    def limit_groups(self) -> list[tuple[str, str]]:
        """The groups whose concurrency limits apply: its host and, if API keys are on, its owner."""
        return [("host", self.host), *([("owner", self.job.owner)] if self.job.owner else [])]


def message(deps: Dependencies, job: Job, answer: BaseModel, now: datetime) -> Message | None:
    """Return the signed message for a finished job; None if it has no webhook, or no secret any more."""
    secret = signing_secret(deps, job.owner)
    if job.webhook is None or job.finished_at is None or secret is None:
        return None
    finished_at = datetime.fromtimestamp(job.finished_at, UTC).isoformat().replace("+00:00", "Z")
    envelope = {"type": f"{job.kind}.{job.status}", "timestamp": finished_at, "data": answer.model_dump(mode="json")}
    body = json.dumps(envelope, ensure_ascii=False, separators=(",", ":"))
    message_id = f"msg_{job.id}"
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "Earmark",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, now, body),
    }
    return Message(job, job.webhook.url, body.encode(), headers)


class WebhookDelivery:
    """Delivers the messages that are due. Any number of instances may run concurrently."""

    def __init__(self, deps: Dependencies, schedule: Schedule = Schedule()) -> None:
        self._deps = deps
        self._schedule = schedule
        self._outbox = WebhookOutbox(deps.redis)
        self._clock = deps.clock
        self._timeout = deps.settings.webhook_timeout
        self._running: set[asyncio.Task[None]] = set()
        self._in_flight: Counter[tuple[str, str]] = Counter()  # attempts by limit group
        # Limit groups of postponed messages, so that the next look need not read their records.
        self._postponed_groups: dict[str, list[tuple[str, str]]] = {}

    async def run(self, stopping: Callable[[], bool]) -> None:
        """Deliver until `stopping` returns True; attempts that are running then may take until their timeout."""
        while not stopping():
            try:
                due_count = await self._start_due()
            except RedisError as error:
                log.error("webhooks are delayed: Redis does not respond: %s", error)
                due_count = 0
            except Exception:  # a defect must not end all deliveries
                log.exception("webhooks are delayed")
                due_count = 0
            if not due_count or len(self._running) >= CONCURRENCY:
                await asyncio.sleep(self._schedule.poll_interval)
        if self._running:
            await asyncio.wait(self._running, timeout=self._timeout)

    async def _start_due(self) -> int:
        """Start an attempt for each message that is due and within its limits; return how many were due."""
        free = CONCURRENCY - len(self._running)
        lease = 2 * self._timeout + _LEASE_MARGIN
        ids = await asyncio.to_thread(self._outbox.take, self._clock.now(), lease, free) if free else []
        if not self._running:
            self._postponed_groups.clear()  # including messages that other processes have delivered
        busy = [job_id for job_id in ids if self._is_busy(self._postponed_groups.get(job_id, []))]
        await asyncio.to_thread(self._outbox.postpone, busy, self._clock.now() + _BUSY_SECONDS)
        for job_id in [job_id for job_id in ids if job_id not in busy]:
            task = asyncio.create_task(self._attempt(job_id))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return len(ids)

    def _is_busy(self, groups: list[tuple[str, str]]) -> bool:
        return any(self._in_flight[group] >= CONCURRENCY_PER[group[0]] for group in groups)

    async def _attempt(self, job_id: str) -> None:
        try:
            await self._deliver(job_id)
        except RedisError as error:
            log.error("webhook of %s delayed: Redis does not respond: %s", job_id, error)
        except Exception:  # its lease expires, and it is retried
            log.exception("webhook of %s", job_id)

    async def _deliver(self, job_id: str) -> None:
        try:
            job = await asyncio.to_thread(self._deps.jobs.get, job_id)
            signed = await self._message_of(job)
        except NotFound:
            log.info("webhook of %s dropped: the job was deleted", job_id)
            signed = None
        except RecordUnreadable:
            await asyncio.to_thread(self._deps.jobs.quarantine.add, record_key(job_id))
            log.error("webhook of %s dropped: the record of the job cannot be read", job_id)
            signed = None
        except StoreUnavailable as error:  # no failure of the receiver
            log.error("webhook of %s delayed: %s", job_id, error.detail)
            await asyncio.to_thread(self._outbox.postpone, [job_id], self._clock.now() + self._schedule.backoff[0])
            return
        if signed is None:
            await asyncio.to_thread(self._outbox.remove, [job_id])
            return
        if self._is_busy(signed.limit_groups):
            self._postponed_groups[job_id] = signed.limit_groups
            await asyncio.to_thread(self._outbox.postpone, [job_id], self._clock.now() + _BUSY_SECONDS)
            return
        self._postponed_groups.pop(job_id, None)
        self._in_flight.update(signed.limit_groups)
        try:
            outcome = await self._post(signed)
        finally:
            self._in_flight -= Counter(signed.limit_groups)  # subtraction drops groups at zero
        await asyncio.to_thread(self._record_outcome, signed, outcome)

    async def _message_of(self, job: Job) -> Message | None:
        """Return the message of a job; None if there is none to send.

        Raises `NotFound`, `RecordUnreadable` and `StoreUnavailable`.
        """
        try:
            complete = await self._deps.large_fields_cache.load(job)
            return await asyncio.to_thread(self._sign, complete) if complete.wants_webhook else None
        except StoreUnavailable:
            if self._clock.now() <= (job.finished_at or 0.0) + self._schedule.give_up_after:
                raise
            webhook_deliveries.labels("given_up").inc()
            log.warning("webhook of %s dropped: the store does not return its content", job.id)
            return None

    def _sign(self, job: Job) -> Message | None:
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        signed = message(self._deps, job, _RESOURCES[job.kind].to_answer(self._deps, job), now)
        if signed is None:
            log.warning("webhook of %s dropped: there is no secret to sign it with any more", job.id)
        return signed

    async def _post(self, signed: Message) -> int | str:
        """Return the status of the response, or why there is none."""
        try:
            return await self._deps.outbound.post(signed.url, signed.body, signed.headers, self._timeout)
        except UrlRefused as error:
            return error.detail

    def _record_outcome(self, signed: Message, outcome: int | str) -> None:
        job = signed.job
        if isinstance(outcome, int) and (200 <= outcome < 300 or outcome == _GONE):
            self._outbox.remove([job.id])
            webhook_deliveries.labels("given_up" if outcome == _GONE else "delivered").inc()
            log.info("webhook of %s to %s: status %s", job.id, signed.host, outcome)
            return
        failures = self._outbox.count_failure(job.id)
        backoff = self._schedule.backoff
        retry_at = self._clock.now() + backoff[min(failures, len(backoff)) - 1]
        given_up = retry_at > (job.finished_at or 0.0) + self._schedule.give_up_after
        if given_up:
            self._outbox.remove([job.id])
        else:
            self._outbox.postpone([job.id], retry_at)
        webhook_deliveries.labels("given_up" if given_up else "failed").inc()
        log.warning(
            "webhook of %s to %s failed, attempt %d%s: %s",
            job.id,
            signed.host,
            failures,
            ", giving up" if given_up else "",
            outcome,
        )


@contextmanager
def deliver_in_background(
    settings: Settings, stopping: threading.Event, schedule: Schedule = Schedule()
) -> Iterator[None]:
    """Deliver in a separate thread until `stopping` is set; set it before the context ends."""
    arguments = (settings, stopping, schedule)
    thread = threading.Thread(target=_deliver_until, args=arguments, name="webhooks", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(settings.webhook_timeout + _LEASE_MARGIN)


def _deliver_until(settings: Settings, stopping: threading.Event, schedule: Schedule) -> None:
    while not stopping.is_set():
        try:
            deps = Dependencies.open(settings)
        except EarmarkError as error:  # the store's folder cannot be opened yet
            log.error("webhooks are delayed: %s", error)
            stopping.wait(schedule.poll_interval)
            continue
        asyncio.run(WebhookDelivery(deps, schedule).run(stopping.is_set))
        deps.url_signer.close()
        deps.clock.close()
        deps.redis.close()
