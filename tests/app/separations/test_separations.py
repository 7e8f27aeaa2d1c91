"""Separations over HTTP: asked for, polled, canceled, deleted, and their stems fetched."""

import httpx
import pytest

from app.jobs.lifecycle import JobError, TargetState
from app.records.separations import SeparationRequest
from tests.app.conftest import MODEL, Service, problem

FIELDS = [
    *("id", "status", "progress", "url", "events_url", "queue", "cancel_requested_at", "created_at", "started_at"),
    *("finished_at", "expires_at", "warnings", "error", "metadata", "model", "archive_url", "mixture", "targets"),
    *("stems", "gain", "metrics"),
]
UNKNOWN = "aud_01HZZZZZZZZZZZZZZZZZZZZZZZ"


def test_a_separation_from_asking_to_its_stems(service: Service) -> None:
    mixture, example = service.upload(), service.upload()
    sent = {
        "mixture": {"audio_id": mixture["id"]},
        "targets": [
            {"name": "dog", "examples": [{"audio_id": example["id"]}]},
            {"name": "siren", "label": "siren"},
            {"name": "solo", "spans": [{"start": 0.2, "end": 1}]},
        ],
        "metadata": {"order": "17"},
    }
    answer = service.client.post("/v1/separations", json=sent)
    assert answer.status_code == 202
    job = answer.json()
    assert list(job) == FIELDS
    assert answer.headers["location"] == job["url"] == f"/v1/separations/{job['id']}"
    assert int(answer.headers["retry-after"]) >= 1
    assert (job["status"], job["queue"], job["stems"], job["metrics"]) == ("queued", {"position": 1}, [], None)
    assert job["mixture"] == {"audio_id": mixture["id"], "duration": 1.0, "sample_rate": 16000, "channels": 1}
    assert job["model"] == {"name": "base", "version": "1"} and job["metadata"] == {"order": "17"}
    assert [(target["name"], target["label"]) for target in job["targets"]] == [
        ("dog", None),
        ("siren", "Siren"),
        ("solo", None),
    ]
    record = SeparationRequest.model_validate(service.deps.jobs.get(job["id"]).request)
    assert record.output.model_dump() == {
        "format": "flac",
        "bit_depth": None,
        "residual": True,
        "joint": False,
        "gate": True,
    }
    service.finish(job["id"], {"dog": b"0123456789", "residual": b"rest"})
    answer = service.client.get(job["url"])
    done = answer.json()
    assert "retry-after" not in answer.headers
    assert (done["status"], done["progress"]) == ("succeeded", {"ratio": 1.0, "stage": "done"})
    assert list(done["metrics"]) == ["queued", "separating"]
    stems = {stem["name"]: stem for stem in done["stems"]}
    assert list(stems["dog"]) == ["name", "url", "content_type", "bytes", "sha256", "peak", "loudness"]
    assert service.client.get(stems["dog"]["url"], follow_redirects=True).content == b"0123456789"
    assert service.client.get(stems["residual"]["url"], follow_redirects=True).content == b"rest"


def test_polling_by_etag(folder_service: Service) -> None:
    job = folder_service.separate()
    first = folder_service.client.get(job["url"])
    assert first.headers["retry-after"] == "1"
    headers = {"If-None-Match": first.headers["etag"]}
    unchanged = folder_service.client.get(job["url"], headers=headers)
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert unchanged.headers["etag"] == first.headers["etag"] and "retry-after" in unchanged.headers
    folder_service.deps.jobs.claim(job["id"], "a")
    running = folder_service.client.get(job["url"], headers=headers)
    assert running.status_code == 200 and running.json()["status"] == "running"
    headers = {"If-None-Match": running.headers["etag"]}
    folder_service.deps.jobs.report_progress(job["id"], "a", 0.5, "separating")
    assert folder_service.client.get(job["url"], headers=headers).status_code == 304


def test_stems_where_the_store_signs(s3_service: Service) -> None:
    service = s3_service
    job = service.separate()
    url = f"/v1/separations/{job['id']}/stems/dog"
    service.finish(job["id"])
    answer = service.client.get(url)
    assert answer.status_code == 303 and answer.headers["cache-control"] == "no-store"
    assert httpx.get(answer.headers["location"]).content == b"0123456789"
    here = service.client.get(f"{url}?redirect=0", headers={"Range": "bytes=2-3"})
    assert (here.status_code, here.content) == (206, b"23")
    saved = service.client.get(f"{url}?download=1")
    assert (saved.status_code, saved.content) == (200, b"0123456789")
    assert saved.headers["content-disposition"] == "attachment; filename*=UTF-8''dog.flac"


def test_stems_from_a_folder(folder_service: Service) -> None:
    target = {"name": "a b.c", "label": "Dog"}
    job = folder_service.separate(targets=[target])
    folder_service.finish(job["id"], {"a b.c": b"0123456789"})
    url = folder_service.client.get(job["url"]).json()["stems"][0]["url"]
    answer = folder_service.client.get(url)
    assert (answer.status_code, answer.content) == (200, b"0123456789")
    assert answer.headers["content-type"] == "audio/flac" and "content-disposition" not in answer.headers
    for header, body in {"bytes=0-0": b"0", "bytes=-3": b"789", "bytes=8-99": b"89"}.items():
        part = folder_service.client.get(url, headers={"Range": header})
        assert (part.status_code, part.content) == (206, body)
    refused = folder_service.client.get(url, headers={"Range": "bytes=10-"})
    problem(refused, 416, "range_not_satisfiable")
    assert refused.headers["content-range"] == "bytes */10"
    head = folder_service.client.head(url)
    assert (head.headers["content-length"], head.content) == ("10", b"")
    saved = folder_service.client.get(f"{url}?download=1")
    assert saved.headers["content-disposition"] == "attachment; filename*=UTF-8''a%20b.c.flac"


def test_stems_that_are_not_there(service: Service) -> None:
    job = service.separate()
    url = f"/v1/separations/{job['id']}/stems/dog"
    problem(service.client.get(url), 404, "not_found")
    service.finish(job["id"])
    for name in ("cat", "residual", "%00", "a%2fdog"):
        problem(service.client.get(f"/v1/separations/{job['id']}/stems/{name}"), 404, "not_found")
    service.deps.jobs.expire(job["id"])
    problem(service.client.get(url), 410, "stems_expired")
    told = service.client.get(job["url"]).json()
    assert told["status"] == "succeeded" and told["stems"] == []


def test_stems_that_the_store_lost_are_not_found(folder_service: Service) -> None:
    job = folder_service.separate()
    folder_service.finish(job["id"])
    folder_service.deps.storage.delete_prefix(f"separations/{job['id']}")
    problem(folder_service.client.get(f"/v1/separations/{job['id']}/stems/dog"), 404, "not_found")


def test_a_deleted_separation_is_gone_from_the_store(service: Service) -> None:
    job = service.separate()
    service.finish(job["id"])
    assert any(key.startswith("separations/") for key in service.stored_keys())
    assert service.client.delete(job["url"]).status_code == 204
    assert not any(key.startswith("separations/") for key in service.stored_keys())
    problem(service.client.get(job["url"]), 404, "not_found")
    problem(service.client.delete(job["url"]), 404, "not_found")


def test_deleting_a_running_separation_stops_it(folder_service: Service) -> None:
    job = folder_service.separate()
    folder_service.deps.jobs.claim(job["id"], "a")
    assert folder_service.client.delete(job["url"]).status_code == 204
    assert folder_service.deps.jobs.should_stop(job["id"], "a")


def test_canceling(folder_service: Service) -> None:
    waiting, running = folder_service.separate(), folder_service.separate()
    answer = folder_service.client.post(f"{waiting['url']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "canceled")
    problem(folder_service.client.post(f"{waiting['url']}/cancel"), 409, "already_over")
    folder_service.deps.jobs.claim(running["id"], "a")
    asked = folder_service.client.post(f"{running['url']}/cancel")
    assert asked.status_code == 202 and asked.json()["cancel_requested_at"]
    assert folder_service.client.post(f"{running['url']}/cancel").json() == asked.json()
    problem(folder_service.client.post("/v1/separations/sep_1/cancel"), 404, "not_found")


def test_a_failed_job_tells_what_it_died_of(folder_service: Service) -> None:
    job = folder_service.separate()
    folder_service.deps.jobs.claim(job["id"], "a")
    error = JobError(code="audio_silent", detail="The example is silent.")
    target = TargetState(name="dog", status="failed", error=error)
    folder_service.deps.jobs.fail(job["id"], "a", error, [target])
    told = folder_service.client.get(job["url"]).json()
    assert told["status"] == "failed" and told["error"] == error.model_dump()
    assert told["targets"][0]["error"] == error.model_dump()


@pytest.mark.parametrize("name", ["sep_1", UNKNOWN, "sep_01HZZZZZZZZZZZZZZZZZZZZZZZ"])
def test_separations_that_are_not_there(folder_service: Service, name: str) -> None:
    url = f"/v1/separations/{name}"
    for answer in (
        folder_service.client.get(url),
        folder_service.client.delete(url),
        folder_service.client.get(f"{url}/stems/dog"),
        folder_service.client.get(f"{url}/archive"),
        folder_service.client.get(url, headers={"Prefer": "wait=60"}),
    ):
        problem(answer, 404, "not_found")


def test_the_model_of_these_tests_is_what_an_engine_describes() -> None:
    assert set(MODEL) == {"name", "version", "embedding_size", "labels", "askable_labels", "sample_rate", "classes"}
