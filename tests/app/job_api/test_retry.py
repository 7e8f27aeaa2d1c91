"""`POST /v1/KIND/ID/retry`: a new job with the request of one that failed or was canceled."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from app.job_api.resource import JobResource
from app.jobs.lifecycle import Job, JobError
from app.records.ids import new_id
from tests.app.conftest import MODEL, VECTOR, Service, problem
from tests.app.job_api.test_kinds import create, each
from tests.app.large_jobs import large_metadata

# What a retry takes from the first job: all but what is made when a job is created.
OWN = {"id", "created_at", "changed_at", "expires_at", "request_id", "revision", "stored_fields"}
WEBHOOK = {"url": "https://93.184.216.34/done", "events": ["failed"]}


def record(service: Service, job_id: str) -> Job:
    """Return the complete record of a job."""
    return service.deps.large_fields.load(service.deps.jobs.get(job_id))


def fail(service: Service, job: dict[str, Any]) -> None:
    """Let a job fail, as a worker does."""
    service.deps.jobs.claim(job["id"], "e")
    assert service.deps.jobs.fail(job["id"], "e", JobError(code="timed_out", detail="Too slow."))


def retry(service: Service, job: dict[str, Any], **headers: str) -> httpx.Response:
    return service.client.post(f"/v1/{path(job)}/retry", headers=headers)


def path(job: dict[str, Any]) -> str:
    folder = {"sep": "separations", "det": "detections", "qry": "queries"}[job["id"].partition("_")[0]]
    return f"{folder}/{job['id']}"


def separate(service: Service, *targets: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Create a separation of these targets and let it fail."""
    job = service.separate(targets=list(targets), **fields)
    fail(service, job)
    return job


@each
@pytest.mark.parametrize("end", ["failed", "canceled"])
def test_a_job_that_failed_or_was_canceled_is_created_again(
    keyed_service: Service, resource: JobResource, end: str
) -> None:
    service = keyed_service.with_key()
    first = create(service, resource.kind, metadata={"order": "17"}, webhook=WEBHOOK).json()
    before = record(service, first["id"])
    if end == "failed":
        fail(service, first)
    else:
        service.client.post(f"/v1/{path(first)}/cancel")
    answer = retry(service, first)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["id"] != first["id"] and job["status"] == "queued" and job["queue"]["position"] == 1
    assert answer.headers["location"] == f"/v1/{path(job)}" and answer.headers["retry-after"] == "1"
    assert service.client.get(answer.headers["location"]).json()["id"] == job["id"]
    after = record(service, job["id"])
    assert after.model_dump(exclude=OWN) == before.model_dump(exclude=OWN)
    assert after.webhook is not None and after.webhook.model_dump() == WEBHOOK
    assert service.client.get(f"/v1/{path(first)}").json()["status"] == end  # the first one stays as it is


@each
def test_a_job_that_waits_runs_or_succeeded_is_not(folder_service: Service, resource: JobResource) -> None:
    job = create(folder_service, resource.kind).json()
    problem(retry(folder_service, job), 409, "not_retryable")
    folder_service.deps.jobs.claim(job["id"], "e")
    problem(retry(folder_service, job), 409, "not_retryable")
    folder_service.deps.jobs.publish(job["id"], "e", [], {})
    problem(retry(folder_service, job), 409, "not_retryable")
    problem(retry(folder_service, {"id": new_id(resource.kind.prefix)}), 404, "not_found")
    assert folder_service.deps.jobs.unfinished_count() == 0


def test_the_request_is_taken_over_exactly(folder_service: Service) -> None:
    """Targets of every sort, an embedding in its float32, the matched classes of a text, and a large request."""
    examples = [{"audio_id": folder_service.recording()["id"]}]
    query = folder_service.saved_query()
    for targets in (
        (
            {"text": "a dog"},
            {"name": "saved", "query_id": query},
            {"name": "mine", "spans": [{"start": 0, "end": 0.5}]},
        ),
        (
            {"label": "Dog", "examples": examples, "not_label": "Siren"},
            {"name": "vector", "embedding": list(VECTOR), "model": "base", "not_examples": examples},
        ),
    ):
        output = {"format": "wav", "bit_depth": 16, "gate": False, "residual": False}
        first = separate(folder_service, *targets, output=output, metadata=large_metadata(4))
        assert folder_service.deps.jobs.get(first["id"]).is_partial
        answer = retry(folder_service, first)
        assert answer.status_code == 202, answer.text
        before, after = record(folder_service, first["id"]), record(folder_service, answer.json()["id"])
        assert after.request == before.request and after.metadata == before.metadata == large_metadata(4)
        assert after.audio_ids == before.audio_ids and after.charged_seconds == before.charged_seconds
        assert [target.status for target in after.targets] == ["queued"] * len(targets)


def test_automatic_targets_are_chosen_anew(folder_service: Service) -> None:
    body = {"mixture": {"audio_id": folder_service.recording()["id"]}, "auto": {"max_targets": 2, "threshold": 0.4}}
    first = folder_service.client.post("/v1/separations", json=body).json()
    fail(folder_service, first)
    after = record(folder_service, retry(folder_service, first).json()["id"])
    assert after.request == record(folder_service, first["id"]).request and after.targets == []


@each
def test_without_its_uploads_a_job_is_gone(folder_service: Service, resource: JobResource) -> None:
    job = create(folder_service, resource.kind).json()
    fail(folder_service, job)
    [audio_id] = record(folder_service, job["id"]).audio_ids
    assert folder_service.client.delete(f"/v1/audio/{audio_id}").status_code == 204
    problem(retry(folder_service, job), 410, "uploads_expired")
    assert len(folder_service.client.get(f"/v1/{resource.kind.folder}").json()["data"]) == 1


def test_an_example_that_is_gone(folder_service: Service) -> None:
    """Only the transaction that creates the job looks for examples; what was stored of a large request is deleted."""
    example = folder_service.recording()["id"]
    target = {"name": "dog", "examples": [{"audio_id": example}]}
    job = separate(folder_service, target, metadata=large_metadata(4))
    folder_service.client.delete(f"/v1/audio/{example}")
    before = folder_service.deps.storage.keys("records")
    problem(retry(folder_service, job), 410, "uploads_expired")
    assert folder_service.deps.storage.keys("records") == before


def test_an_upload_that_is_deleted_meanwhile(folder_service: Service) -> None:
    """Either the job is created and its upload in use, or the upload is deleted and the job refused."""
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            job = separate(folder_service, {"label": "Dog"})
            url = f"/v1/audio/{job['mixture']['audio_id']}"
            deletion = pool.submit(folder_service.client.delete, url)
            outcome = retry(folder_service, job).status_code, deletion.result().status_code
            assert outcome in ((202, 409), (410, 204)), outcome
            for waiting in folder_service.client.get("/v1/separations?status=queued").json()["data"]:
                folder_service.client.delete(waiting["url"])


def test_the_model_is_found_anew(folder_service: Service) -> None:
    by_label = separate(folder_service, {"label": "Dog"}, model="base@1")
    by_text = separate(folder_service, {"text": "a dog"})
    by_vector = separate(folder_service, {"name": "v", "embedding": list(VECTOR), "model": "base@1"})
    detection = folder_service.client.post("/v1/detections", json={"audio_id": folder_service.recording()["id"]}).json()
    fail(folder_service, detection)
    folder_service.deps.model_registry.announce({**MODEL, "version": "2"}, "worker-2")
    for job, version in ((by_label, "1"), (by_text, "2"), (detection, "2")):  # the first request named its version
        answer = retry(folder_service, job)
        assert answer.status_code == 202, answer.text
        assert answer.json()["model"] == {"name": "base", "version": version}
    refusal = problem(retry(folder_service, by_vector), 422, "query_model_mismatch")
    assert refusal["errors"][0]["pointer"] == "/targets/0/embedding"
    nameless = [{**each, "askable": False} for each in MODEL["classes"]]
    folder_service.deps.model_registry.announce({**MODEL, "version": "3", "classes": nameless}, "worker-3")
    problem(retry(folder_service, by_text), 422, "label_unknown")
    assert retry(folder_service, by_label).status_code == 202


def test_a_retry_is_a_new_job_for_keys_and_repetitions(keyed_service: Service) -> None:
    """The quota is charged again, a repeated key replays the response, and others do not find the job."""
    service = keyed_service.with_key(audio_seconds=2)
    job = separate(service, {"label": "Dog"})
    problem(retry(keyed_service.with_key(), job), 404, "not_found")
    first, again = (retry(service, job, **{"Idempotency-Key": "a"}) for _ in range(2))
    assert first.status_code == again.status_code == 202 and first.content == again.content
    assert again.headers["location"] == first.headers["location"]
    problem(retry(service, job, **{"Idempotency-Key": "b"}), 429, "quota_exceeded")
    assert len(service.client.get("/v1/separations").json()["data"]) == 2
