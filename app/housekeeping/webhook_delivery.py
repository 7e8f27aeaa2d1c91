"""Delivers webhooks: at least once, with longer and longer pauses, for a day.

A receiver has taken a message when it answers 2xx; 410 says that it wants no more. Bodies of answers are not read, and
redirects not followed. Every try of a message has the same `webhook-id`, which is how receivers know it again. Logs
name a receiver by its host: addresses may hold secrets.
"""

import asyncio
import json
import logging
import threading
import time
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
from app.errors import EarmarkError, NotFound, UrlRefused
from app.job_api.resource import JobResource
from app.job_api.webhooks import signing_secret
from app.jobs.lifecycle import Job
from app.jobs.webhook_outbox import WebhookOutbox
from app.metrics import webhook_deliveries
from app.resources import SERVED_KINDS
from app.settings import Settings

log = logging.getLogger("earmark.webhooks")

PAUSES = (5.0, 30.0, 120.0, 600.0, 3600.0, 21600.0)  # s before the second try, the third, ...; the last for all later
GIVEN_UP_AFTER = 86400.0  # s since the job was over
_LOOK_SECONDS = 0.5  # between two looks for what is due
_AT_ONCE = 64
_AT_ONCE_OF = {"host": 8, "owner": 32}  # so that a slow receiver holds up nobody else, nor a key's many slow ones
_CROWDED_SECONDS = 1.0  # until a message is looked at again whose host or owner has as many tries running as it may
_LEASE_SLACK = 5.0  # s beyond twice a try's time, after which a message is taken for left behind
_GONE = 410

_RESOURCES: dict[str, JobResource] = {served.resource.kind.name: served.resource for served in SERVED_KINDS}


@dataclass(frozen=True)
class Message:
    """One try of telling that a job is over."""

    job: Job
    url: str
    body: bytes
    headers: dict[str, str]

    @property
    def host(self) -> str:
        """All of the address that logs may show."""
        return urlsplit(self.url).hostname or ""

    @property
    def places(self) -> list[tuple[str, str]]:
        """Among whose tries it counts; with keys switched off there are no owners."""
        return [("host", self.host), *([("owner", self.job.owner)] if self.job.owner else [])]


def message(deps: Dependencies, job: Job, told: BaseModel, now: datetime) -> Message | None:
    """What to send now for a job that is over; None where nobody wants it or nothing could sign it any more."""
    secret = signing_secret(deps, job.owner)
    if job.webhook is None or job.finished_at is None or secret is None:
        return None
    over_at = datetime.fromtimestamp(job.finished_at, UTC).isoformat().replace("+00:00", "Z")
    envelope = {"type": f"{job.kind}.{job.status}", "timestamp": over_at, "data": told.model_dump(mode="json")}
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
    """Delivers what is due. Any number of them may run beside each other."""

    def __init__(self, deps: Dependencies) -> None:
        self._deps = deps
        self._outbox = WebhookOutbox(deps.redis)
        self._timeout = deps.settings.webhook_timeout
        self._running: set[asyncio.Task[None]] = set()
        self._tries: Counter[tuple[str, str]] = Counter()  # running, by place
        # Of messages that were found crowded, so that finding it again costs nothing.
        self._places: dict[str, list[tuple[str, str]]] = {}

    async def run(self, stopping: Callable[[], bool]) -> None:
        """Deliver until told to stop; tries that run then get the time that one may take."""
        while not stopping():
            try:
                taken = await self._start_due()
            except RedisError as error:
                log.error("webhooks wait: the queue's server does not answer: %s", error)
                taken = 0
            except Exception:  # a defect must not end all deliveries
                log.exception("webhooks wait")
                taken = 0
            if not taken or len(self._running) >= _AT_ONCE:
                await asyncio.sleep(_LOOK_SECONDS)
        if self._running:
            await asyncio.wait(self._running, timeout=self._timeout)

    async def _start_due(self) -> int:
        free = _AT_ONCE - len(self._running)
        lease = 2 * self._timeout + _LEASE_SLACK
        ids = await asyncio.to_thread(self._outbox.take, time.time(), lease, free) if free else []
        if not self._running:
            self._places.clear()  # what others have delivered, too
        crowded = [job_id for job_id in ids if self._crowded(self._places.get(job_id, []))]
        await asyncio.to_thread(self._outbox.postpone, crowded, time.time() + _CROWDED_SECONDS)
        for job_id in set(ids) - set(crowded):
            task = asyncio.create_task(self._guarded(job_id))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return len(ids)

    def _crowded(self, places: list[tuple[str, str]]) -> bool:
        return any(self._tries[place] >= _AT_ONCE_OF[place[0]] for place in places)

    async def _guarded(self, job_id: str) -> None:
        try:
            await self._deliver(job_id)
        except RedisError as error:
            log.error("the webhook of %s waits: the queue's server does not answer: %s", job_id, error)
        except Exception:  # its lease ends, and it is tried again
            log.exception("the webhook of %s", job_id)

    async def _deliver(self, job_id: str) -> None:
        found = await asyncio.to_thread(self._message, job_id)
        if found is None:
            await asyncio.to_thread(self._outbox.remove, [job_id])
            return
        if self._crowded(found.places):
            self._places[job_id] = found.places
            await asyncio.to_thread(self._outbox.postpone, [job_id], time.time() + _CROWDED_SECONDS)
            return
        self._places.pop(job_id, None)
        self._tries.update(found.places)
        try:
            outcome = await self._post(found)
        finally:
            self._tries -= Counter(found.places)  # and forget a place without tries
        await asyncio.to_thread(self._settle, found, outcome)

    def _message(self, job_id: str) -> Message | None:
        try:
            job = self._deps.jobs.get(job_id)
        except NotFound:
            log.info("the webhook of %s: the job was deleted", job_id)
            return None
        except ValueError:
            log.exception("the webhook of %s: its record cannot be read", job_id)
            return None
        made = message(self._deps, job, _RESOURCES[job.kind].to_answer(self._deps, job), datetime.now(UTC))
        if made is None:
            log.warning("the webhook of %s: there is no secret to sign it with any more", job_id)
        return made

    async def _post(self, found: Message) -> int | str:
        """The status of the answer, or why there is none."""
        try:
            return await self._deps.outbound.post(found.url, found.body, found.headers, self._timeout)
        except UrlRefused as error:
            return error.detail

    def _settle(self, found: Message, outcome: int | str) -> None:
        job = found.job
        if isinstance(outcome, int) and (200 <= outcome < 300 or outcome == _GONE):
            self._outbox.remove([job.id])
            webhook_deliveries.labels("given_up" if outcome == _GONE else "delivered").inc()
            log.info("the webhook of %s to %s: %s", job.id, found.host, outcome)
            return
        tries = self._outbox.count_failure(job.id)
        again = time.time() + PAUSES[min(tries, len(PAUSES)) - 1]
        given_up = again > (job.finished_at or 0.0) + GIVEN_UP_AFTER
        if given_up:
            self._outbox.remove([job.id])
        else:
            self._outbox.postpone([job.id], again)
        webhook_deliveries.labels("given_up" if given_up else "failed").inc()
        log.warning(
            "the webhook of %s to %s failed, try %d%s: %s",
            job.id,
            found.host,
            tries,
            ", given up" if given_up else "",
            outcome,
        )


@contextmanager
def deliver_in_background(settings: Settings, stopping: threading.Event) -> Iterator[None]:
    """Deliver in a thread of its own, until `stopping` is set, which must be so when the context ends."""
    thread = threading.Thread(target=_deliver_until, args=(settings, stopping), name="webhooks", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(settings.webhook_timeout + _LEASE_SLACK)


def _deliver_until(settings: Settings, stopping: threading.Event) -> None:
    while not stopping.is_set():
        try:
            deps = Dependencies.open(settings)
        except EarmarkError as error:  # the store's folder cannot be opened yet
            log.error("webhooks wait: %s", error)
            stopping.wait(_LOOK_SECONDS)
            continue
        asyncio.run(WebhookDelivery(deps).run(stopping.is_set))
        deps.redis.close()
