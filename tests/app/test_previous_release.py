"""Data of the previous release in Redis: this one reads it, serves its waiting jobs and continues its running ones.

`data/previous_release.json` holds what that release wrote when it ran, as the Redis commands that restore it (an object
stands for its compact JSON, or for bytes in base64), and what it said about it over HTTP. Retention times were a
century, so that nothing expires before the test.
"""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq.job import Job as Entry
from rq.serializers import JSONSerializer

from app.detections.service import DETECTIONS
from app.errors import AudioInUse, NotFound
from app.housekeeping.sweeps import Housekeeping
from app.housekeeping.webhook_delivery import message
from app.jobs.events import RecordReplay, read_all
from app.jobs.kinds import KINDS, TASK_NAMES
from app.jobs.listing import record_key
from app.jobs.repository import JobRepository
from app.jobs.webhook_outbox import WebhookOutbox
from app.keys.callers import Caller
from app.keys.repository import KeyRepository
from app.model_registry.registry import ModelRegistry, workers_key
from app.records.audio import AudioRepository, PendingUpload
from app.records.detections import DetectionRequest, DetectionResult
from app.records.orphans import OrphanLedger
from app.records.queries import QueryRequest
from app.records.separations import SeparationRequest, SeparationResult
from app.records.shared import EmbeddingRecord, unpack_vector
from app.settings import Settings
from app.storage import Storage
from tests.app.conftest import LIMITS, VECTOR, Service, serve

CENTURY = 100 * 365.25 * 86400.0
REQUESTS = {"separation": SeparationRequest, "detection": DetectionRequest, "query": QueryRequest}
RESULTS = {"separation": SeparationResult, "detection": DetectionResult, "query": EmbeddingRecord}
NEW_FIELDS = ("peaks_url", "spectrogram_url")  # of answers, that the previous release does not have
STATES = ("queued", "running", "succeeded", "failed", "canceled", "expired")


def decode(word: Any) -> Any:
    """A word of a command, from its place in the file."""
    if not isinstance(word, dict):
        return word
    if set(word) == {"base64"}:
        return base64.b64decode(word["base64"])
    return json.dumps(word, separators=(",", ":"), ensure_ascii=False)


@dataclass
class Upgrade:
    """The previous release's data in Redis, and this release's settings."""

    data: dict[str, Any]
    redis: Redis
    settings: Settings
    jobs: JobRepository

    def job_id(self, kind: str, state: str) -> str:
        return self.data["jobs"][kind][state]


@pytest.fixture
def upgrade(redis: Redis, tmp_path: Path) -> Upgrade:
    data = json.loads((Path(__file__).parent / "data" / "previous_release.json").read_text())
    with redis.pipeline(transaction=False) as pipe:
        for command in data["commands"]:
            pipe.execute_command(*map(decode, command))
        pipe.execute()
    port = redis.connection_pool.connection_kwargs["port"]
    chosen: dict[str, Any] = {**LIMITS, "auth": "on", "url_seconds": CENTURY, "record_retention": CENTURY}
    chosen["example_seconds"] = 60.0  # its uploads last 20 s
    settings = Settings(home=tmp_path, redis_url=f"redis://127.0.0.1:{port}/0", lost_after=0.0, **chosen)
    return Upgrade(data, redis, settings, JobRepository(redis, settings))


@pytest.fixture
def service(upgrade: Upgrade, tmp_path: Path) -> Iterator[Service]:
    """This release's front end on that data, as the holder of its first key sees it."""
    for running in serve(upgrade.settings, tmp_path):
        running.client.headers["authorization"] = f"Bearer {upgrade.data['keys']['one']['text']}"
        yield replace(running, deps=replace(running.deps, caller=Caller(upgrade.data["keys"]["one"]["id"], 1)))


def without_tokens(text: str) -> Any:
    """Return parsed JSON without the tokens of links, and without the fields that the previous release did not have."""

    def keep(fields: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if name not in NEW_FIELDS}

    return json.loads(re.sub(r"\?token=[A-Za-z0-9._-]+", "", text), object_hook=keep)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_record_and_its_events_are_read(upgrade: Upgrade, kind: str, state: str) -> None:
    job = upgrade.jobs.get(upgrade.job_id(kind, state))
    assert (job.kind, job.status) == (kind, "succeeded" if state == "expired" else state)
    assert job.expired == (state == "expired")
    assert set(REQUESTS[kind].model_validate(job.request).model_dump(exclude_defaults=True)) <= set(job.request)
    assert (job.result is not None) == (state in ("succeeded", "expired"))
    if job.result is not None:
        assert RESULTS[kind].model_validate(job.result).model_dump() == job.result
    assert job.model_dump_json().encode() == upgrade.redis.get(record_key(job.id))
    entries = read_all(upgrade.redis, job.id)
    assert [entry.revision for entry in entries] == list(range(1, job.revision + 1))
    replay = RecordReplay(job)
    states = [replay.apply(entry) for entry in entries]
    assert states[0].status == "queued"
    not_in_events = {"webhook"} if entries[-1].type != "progress" else {"webhook", "changed_at"}
    assert states[-1].model_dump(exclude=not_in_events) == job.model_dump(exclude=not_in_events)


def test_lists_hold_the_jobs(upgrade: Upgrade) -> None:
    owner = upgrade.data["keys"]["one"]["id"]
    for kind, states in upgrade.data["jobs"].items():
        page, before = upgrade.jobs.listing.page(owner, kind, 100, None, None)
        assert ({job.id for job in page}, before) == (set(states.values()), None)
    with pytest.raises(NotFound):
        upgrade.jobs.get(upgrade.data["deleted"])


def test_waiting_jobs_keep_their_positions_and_turns(upgrade: Upgrade) -> None:
    jobs, positions = upgrade.jobs, upgrade.data["positions"]
    assert {job_id: jobs.fair_queue.position(jobs.get(job_id)) for job_id in positions} == positions
    assert jobs.fair_queue.waiting_count("base") == len(positions)
    assert jobs.fair_queue.waiting_seconds("base") == upgrade.data["waiting_seconds"]
    assert jobs.unfinished_count() == len(positions) + len(KINDS)
    assert jobs.rq_queues.running_count("base") == len(KINDS)
    assert jobs.find_lost() == []
    for short in (False, True):
        upgrade.redis.delete(workers_key("base", short))  # their last heartbeats, as time goes by
    jobs.fair_queue.fill("base")
    queue = jobs.rq_queues.queue("base")
    for job_id in upgrade.data["order"]:
        assert upgrade.redis.lpop(queue.key) == job_id.encode()
        entry = Entry.fetch(job_id, connection=upgrade.redis, serializer=JSONSerializer)
        assert (entry.func_name, entry.args) == (TASK_NAMES[jobs.get(job_id).kind], [job_id])
        assert entry.origin == queue.name and entry.retries_left == upgrade.settings.job_attempts
        assert jobs.claim(job_id, "new") is not None
    for job_id in upgrade.data["order"]:
        assert jobs.publish(job_id, "new", [], {})
        assert [entry.revision for entry in read_all(upgrade.redis, job_id)] == [1, 2, 3]
        assert not upgrade.redis.exists(f"rq:job:{job_id}")
    assert jobs.fair_queue.waiting_count("base") == jobs.fair_queue.waiting_seconds("base") == 0


def test_waiting_jobs_are_canceled_and_deleted(upgrade: Upgrade) -> None:
    jobs = upgrade.jobs
    canceled, deleted = upgrade.data["order"][0], upgrade.data["order"][-1]
    assert jobs.cancel(canceled).status == "canceled"
    jobs.delete(deleted)
    for job_id in (canceled, deleted):
        assert not upgrade.redis.exists(f"rq:job:{job_id}")
    assert jobs.fair_queue.waiting_count("base") == len(upgrade.data["positions"]) - 2
    assert jobs.find_lost() == []


@pytest.mark.parametrize("kind", KINDS)
def test_running_jobs_go_on(upgrade: Upgrade, kind: str) -> None:
    jobs, job_id = upgrade.jobs, upgrade.job_id(kind, "running")
    execution = upgrade.data["executions"][job_id]
    assert not jobs.should_stop(job_id, execution)
    assert jobs.report_progress(job_id, execution, 0.75, "encoding")
    assert f"{KINDS[kind].folder}/{job_id}/{execution}".encode() in upgrade.redis.zrange("earmark:leftovers", 0, -1)
    (audio_id,) = jobs.get(job_id).audio_ids
    with pytest.raises(AudioInUse):
        AudioRepository(upgrade.redis, upgrade.settings).delete(audio_id)
    assert jobs.publish(job_id, execution, [], {})
    assert f"{KINDS[kind].folder}/{job_id}/{execution}".encode() not in upgrade.redis.zrange("earmark:leftovers", 0, -1)


def test_housekeeping_requeues_what_its_workers_lose_and_removes_what_has_expired(upgrade: Upgrade) -> None:
    jobs, orphans, data = upgrade.jobs, OrphanLedger(upgrade.redis), upgrade.data
    assert data["orphan"] in orphans.due(100)
    assert jobs.expired_ids(100) == [data["due"]]
    lost = upgrade.job_id("separation", "running")
    upgrade.redis.delete(f"rq:execution:{lost}:{data['executions'][lost]}")
    Housekeeping(upgrade.redis, Storage.open(upgrade.settings), upgrade.settings).sweep()
    assert jobs.get(lost).status == "queued" and jobs.fair_queue.position(jobs.get(lost)) > 0
    assert jobs.should_stop(lost, data["executions"][lost])
    assert jobs.get(data["due"]).expired and jobs.expired_ids(100) == []
    assert data["orphan"] not in orphans.due(100)
    for kind in ("detection", "query"):
        assert jobs.get(upgrade.job_id(kind, "running")).status == "running"


def test_answers_to_polls_are_the_same(upgrade: Upgrade, service: Service) -> None:
    for job_id, expected in upgrade.data["answers"].items():
        answer = service.client.get(expected["url"])
        assert answer.status_code == 200 and without_tokens(answer.text) == expected
        listed = service.client.get(expected["url"].rpartition("/")[0], params={"limit": 100})
        assert listed.status_code == 200 and expected in without_tokens(listed.text)["data"]
        headers = {"Authorization": f"Bearer {upgrade.data['keys']['two']['text']}"}
        assert service.client.get(expected["url"], headers=headers).status_code == 404, job_id


def test_events_are_streamed(upgrade: Upgrade, service: Service) -> None:
    for kind in KINDS:
        expected = upgrade.data["answers"][upgrade.job_id(kind, "succeeded")]
        events = service.client.get(expected["events_url"])
        assert events.status_code == 200
        *_, last = (line.removeprefix("data: ") for line in events.text.splitlines() if line.startswith("data: "))
        assert without_tokens(last) == expected


def test_keys_and_signed_addresses_open_what_they_opened(upgrade: Upgrade, service: Service) -> None:
    one, two = (upgrade.data["keys"][name] for name in ("one", "two"))
    keys = {key.id: key for key in KeyRepository(upgrade.redis).list()}
    assert set(keys) == {one["id"], two["id"]}
    assert (keys[two["id"]].rate, keys[two["id"]].audio_seconds, keys[two["id"]].priority) == (6000, 100000, 3)
    path, token = upgrade.data["signed"].split("?token=")
    assert service.deps.url_signer.verify(token, path) == one["id"]
    assert service.deps.url_signer.sign(path, one["id"]) == upgrade.data["signed"]
    service.client.headers.pop("authorization")
    assert service.client.get(f"/v1/audio/{upgrade.data['audio']}").status_code == 401
    assert service.client.get(upgrade.data["signed"]).status_code == 404  # opened, but its bytes were not kept


def test_uploads_are_read_and_awaited_ones_completed(upgrade: Upgrade, service: Service) -> None:
    audio = AudioRepository(upgrade.redis, upgrade.settings)
    expected = upgrade.data["audio_answer"]
    answer = service.client.get(f"/v1/audio/{upgrade.data['audio']}").json()
    assert {name: value for name, value in answer.items() if name not in NEW_FIELDS} == expected
    awaited = PendingUpload.model_validate(upgrade.data["awaited"])
    assert audio.get_pending(awaited.id) == awaited
    audio.delete_pending(awaited.id, awaited.owner)
    with pytest.raises(NotFound):
        audio.get_pending(awaited.id)


def test_a_saved_query_and_the_announced_model_are_used(upgrade: Upgrade, service: Service) -> None:
    query = upgrade.jobs.get(upgrade.job_id("query", "succeeded"))
    record = EmbeddingRecord.model_validate(query.result)
    assert unpack_vector(record.vector) == pytest.approx(VECTOR)
    assert ModelRegistry(upgrade.redis, upgrade.settings).model("base").embedding_size == len(VECTOR)
    body = {"mixture": {"audio_id": upgrade.data["audio"]}, "targets": [{"name": "mine", "query_id": query.id}]}
    answer = service.client.post("/v1/separations", json=body)
    assert answer.status_code == 202, answer.text
    assert answer.json()["queue"]["position"] > 0


def test_a_repeated_request_gets_its_first_answer(upgrade: Upgrade, service: Service) -> None:
    sent, before = upgrade.data["idempotency"], upgrade.jobs.unfinished_count()
    headers = {"Idempotency-Key": sent["key"], "Content-Type": "application/json"}
    answer = service.client.post("/v1/detections", content=sent["body"], headers=headers)
    assert (answer.status_code, answer.json()["id"]) == (202, sent["id"])
    assert upgrade.jobs.unfinished_count() == before


def test_a_webhooks_message_is_delivered(upgrade: Upgrade, service: Service) -> None:
    outbox, job = WebhookOutbox(upgrade.redis), upgrade.jobs.get(upgrade.job_id("detection", "succeeded"))
    assert outbox.pending_count() == 1 and job.finished_at is not None
    assert outbox.take(job.finished_at + 1, 60, 10) == [job.id]
    made = message(service.deps, job, DETECTIONS.to_answer(service.deps, job), datetime.now(UTC))
    assert made is not None and made.url == "https://hooks.example.com/earmark"
    outbox.remove([job.id])
    assert outbox.pending_count() == 0


@pytest.mark.parametrize("state", ["failed", "canceled"])
@pytest.mark.parametrize("kind", KINDS)
def test_jobs_are_retried(upgrade: Upgrade, service: Service, kind: str, state: str) -> None:
    job_id = upgrade.job_id(kind, state)
    answer = service.client.post(f"/v1/{KINDS[kind].folder}/{job_id}/retry")
    assert answer.status_code == 202, answer.text
    before, after = upgrade.jobs.get(job_id), upgrade.jobs.get(answer.json()["id"])
    request = REQUESTS[kind].model_validate(after.request)
    assert request == REQUESTS[kind].model_validate(before.request)
    assert (after.metadata, after.webhook, after.audio_ids) == (before.metadata, before.webhook, before.audio_ids)
