"""What jobs of every kind answer alike: accepted, polled, listed, canceled, deleted, and only their owner's."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from app.detections.service import DETECTIONS
from app.errors import NotFound
from app.job_api.resource import JobResource
from app.job_api.schemas import JobAnswer
from app.jobs.kinds import KINDS, Kind
from app.jobs.lifecycle import JobError
from app.keys.callers import Caller
from app.queries.service import QUERIES
from app.separations.service import SEPARATIONS
from tests.app.conftest import Service, problem

RESOURCES: tuple[JobResource, ...] = (SEPARATIONS, DETECTIONS, QUERIES)
each = pytest.mark.parametrize("resource", RESOURCES, ids=[resource.kind.folder for resource in RESOURCES])
UNKNOWN = "01HZZZZZZZZZZZZZZZZZZZZZZZ"


def body(service: Service, kind: Kind) -> dict[str, Any]:
    """A request for a job of this kind."""
    audio = {"audio_id": service.recording()["id"]}
    return {
        "separation": {"mixture": audio, "targets": [{"label": "Dog"}]},
        "detection": audio,
        "query": {"name": "mine", "examples": [audio]},
    }[kind.name]


def create(service: Service, kind: Kind, **fields: Any) -> httpx.Response:
    return service.client.post(f"/v1/{kind.folder}", json=body(service, kind) | fields)


def test_every_kind_is_tested() -> None:
    assert {resource.kind.name for resource in RESOURCES} == set(KINDS)


@each
def test_a_job_is_created_and_polled(folder_service: Service, resource: JobResource) -> None:
    answer = create(folder_service, resource.kind, metadata={"order": "17"}, model="base@1")
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert list(job)[: len(JobAnswer.model_fields)] == list(JobAnswer.model_fields)
    assert answer.headers["location"] == job["url"] == f"/v1/{resource.kind.folder}/{job['id']}"
    assert answer.headers["retry-after"] == "1"
    assert (job["status"], job["metadata"], job["queue"]["position"]) == ("queued", {"order": "17"}, 1)
    assert job["model"] == {"name": "base", "version": "1"}
    first = folder_service.client.get(job["url"])
    assert first.json() == job and first.headers["retry-after"] == "1"
    headers = {"If-None-Match": first.headers["etag"]}
    assert folder_service.client.get(job["url"], headers=headers).status_code == 304
    folder_service.deps.jobs.claim(job["id"], "a")
    folder_service.deps.jobs.fail(job["id"], "a", JobError(code="audio_silent", detail="Silent."))
    over = folder_service.client.get(job["url"], headers=headers | {"Prefer": "wait=9"})
    assert over.json()["error"] == {"code": "audio_silent", "detail": "Silent."}
    assert "retry-after" not in over.headers


@each
def test_lists_hold_one_kind_each(folder_service: Service, resource: JobResource) -> None:
    made = {kind.name: create(folder_service, kind).json() for kind in KINDS.values()}
    told = folder_service.client.get(f"/v1/{resource.kind.folder}").json()
    job = folder_service.client.get(made[resource.kind.name]["url"]).json()
    assert told == {"data": [job], "next_cursor": None, "has_more": False}
    other = next(made[kind.name]["id"] for kind in KINDS.values() if kind != resource.kind)
    answer = folder_service.client.get(f"/v1/{resource.kind.folder}", params={"cursor": other})
    problem(answer, 422, "request_invalid")
    problem(folder_service.client.get(f"/v1/{resource.kind.folder}/{other}"), 404, "not_found")


@each
def test_canceling(folder_service: Service, resource: JobResource) -> None:
    waiting, running = (create(folder_service, resource.kind).json() for _ in range(2))
    answer = folder_service.client.post(f"{waiting['url']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "canceled")
    again = problem(folder_service.client.post(f"{waiting['url']}/cancel"), 409, "already_over")
    kind = resource.kind.name
    assert again["detail"] == (
        f"The {kind} is canceled; only a queued or running one can be canceled: retry it to run it again."
    )
    folder_service.deps.jobs.claim(running["id"], "a")
    asked = folder_service.client.post(f"{running['url']}/cancel")
    assert asked.status_code == 202 and asked.json()["cancel_requested_at"]
    assert folder_service.deps.jobs.should_stop(running["id"], "a")


@each
def test_deleting_stops_the_work_and_empties_the_store(service: Service, resource: JobResource) -> None:
    job = create(service, resource.kind).json()
    claimed = service.deps.jobs.claim(job["id"], "a")
    assert claimed is not None
    (service.folder / "output").write_bytes(b"abc")
    service.deps.storage.put_file(f"{resource.kind.folder}/{job['id']}/a/0", service.folder / "output")
    assert service.client.delete(job["url"]).status_code == 204
    assert service.deps.jobs.should_stop(job["id"], "a")
    assert not [key for key in service.stored_keys() if not key.startswith("audio/")]
    problem(service.client.delete(job["url"]), 404, "not_found")
    assert service.client.get(f"/v1/{resource.kind.folder}").json()["data"] == []


@each
def test_malformed_ids_and_other_keys_jobs_are_not_found(folder_service: Service, resource: JobResource) -> None:
    base = f"/v1/{resource.kind.folder}"
    for name in ("x", f"{resource.kind.prefix}_1", f"{resource.kind.prefix}_{UNKNOWN}"):
        problem(folder_service.client.get(f"{base}/{name}"), 404, "not_found")
        problem(folder_service.client.delete(f"{base}/{name}"), 404, "not_found")
        problem(folder_service.client.post(f"{base}/{name}/cancel"), 404, "not_found")
    job_id = create(folder_service, resource.kind).json()["id"]
    another = replace(folder_service.deps, caller=Caller("another"))
    for refused in (resource.get, resource.delete):
        with pytest.raises(NotFound):
            refused(another, job_id)
    assert resource.page(another, None, 10, None) == ([], None)
    assert resource.get(folder_service.deps, job_id).id == job_id


@each
def test_unknown_models_are_unavailable(folder_service: Service, resource: JobResource) -> None:
    for model in ("paper", "base@2"):
        problem(create(folder_service, resource.kind, model=model), 503, "model_unavailable")
    problem(create(folder_service, resource.kind, model="../x"), 422, "request_invalid")


@each
def test_uploads_stay_while_a_job_needs_them(folder_service: Service, resource: JobResource) -> None:
    job = create(folder_service, resource.kind).json()
    audio_id = folder_service.deps.jobs.get(job["id"]).audio_ids[0]
    problem(folder_service.client.delete(f"/v1/audio/{audio_id}"), 409, "audio_in_use")
    folder_service.client.post(f"{job['url']}/cancel")
    assert folder_service.client.delete(f"/v1/audio/{audio_id}").status_code == 204
