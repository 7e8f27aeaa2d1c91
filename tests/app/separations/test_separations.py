"""Separations over HTTP: creation, polls, cancellation, deletion, and their stems."""

from typing import Any
from urllib.parse import unquote

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


@pytest.fixture
def three_targets(service: Service) -> dict[str, Any]:
    """The body of a separation with an example, a label and a span."""
    mixture, example = service.upload(), service.upload()
    return {
        "mixture": {"audio_id": mixture["id"]},
        "targets": [
            {"name": "dog", "examples": [{"audio_id": example["id"]}]},
            {"name": "siren", "label": "siren"},
            {"name": "solo", "spans": [{"start": 0.2, "end": 1}]},
        ],
        "metadata": {"order": "17"},
    }


def create(service: Service, body: dict[str, Any]) -> httpx.Response:
    answer = service.client.post("/v1/separations", json=body)
    assert answer.status_code == 202, answer.text
    return answer


def test_a_created_separation_tells_where_and_when_to_poll(service: Service, three_targets: dict[str, Any]) -> None:
    answer = create(service, three_targets)
    job = answer.json()
    assert answer.headers["location"] == job["url"] == f"/v1/separations/{job['id']}"
    assert int(answer.headers["retry-after"]) >= 1


def test_a_created_separation_repeats_what_was_requested(service: Service, three_targets: dict[str, Any]) -> None:
    job = create(service, three_targets).json()
    mixture_id = three_targets["mixture"]["audio_id"]
    assert list(job) == FIELDS
    assert (job["status"], job["queue"], job["stems"], job["metrics"]) == ("queued", {"position": 1}, [], None)
    assert job["mixture"] == {"audio_id": mixture_id, "duration": 1.0, "sample_rate": 16000, "channels": 1}
    assert job["model"] == {"name": "base", "version": "1"} and job["metadata"] == {"order": "17"}
    labels = [(target["name"], target["label"]) for target in job["targets"]]
    assert labels == [("dog", None), ("siren", "Siren"), ("solo", None)]


def test_the_default_output_is_flac_with_residual_and_gate(service: Service, three_targets: dict[str, Any]) -> None:
    job = create(service, three_targets).json()
    record = SeparationRequest.model_validate(service.deps.jobs.get(job["id"]).request)
    expected = {
        "format": "flac",
        "bit_depth": None,
        "residual": True,
        "joint": False,
        "gate": True,
        "quality": "standard",
    }
    assert record.output.model_dump() == expected


def test_a_succeeded_separation_has_metrics_and_no_retry_after(service: Service) -> None:
    job = service.separate()
    service.finish(job["id"])
    answer = service.client.get(job["url"])
    assert "retry-after" not in answer.headers
    assert answer.json()["status"] == "succeeded"
    assert answer.json()["progress"] == {"ratio": 1.0, "stage": "done"}
    assert list(answer.json()["metrics"]) == ["queued", "separating"]


def test_a_succeeded_separation_links_its_stems(service: Service) -> None:
    job = service.separate()
    service.finish(job["id"], {"dog": b"0123456789", "residual": b"rest"})
    stems = {stem["name"]: stem for stem in service.client.get(job["url"]).json()["stems"]}
    links = ["url", "peaks_url", "spectrogram_url"]
    assert list(stems["dog"]) == ["name", *links, "content_type", "bytes", "sha256", "peak", "loudness"]
    assert service.client.get(stems["dog"]["url"], follow_redirects=True).content == b"0123456789"
    assert service.client.get(stems["residual"]["url"], follow_redirects=True).content == b"rest"


def test_a_poll_with_the_same_etag_is_not_modified(folder_service: Service) -> None:
    job = folder_service.separate()
    first = folder_service.client.get(job["url"])
    assert first.headers["retry-after"] == "1"
    unchanged = folder_service.client.get(job["url"], headers={"If-None-Match": first.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert unchanged.headers["etag"] == first.headers["etag"] and "retry-after" in unchanged.headers


def test_the_etag_changes_with_the_state_and_not_with_progress(folder_service: Service) -> None:
    job = folder_service.separate()
    queued = folder_service.client.get(job["url"]).headers["etag"]
    folder_service.deps.jobs.claim(job["id"], "a")
    running = folder_service.client.get(job["url"], headers={"If-None-Match": queued})
    assert running.status_code == 200 and running.json()["status"] == "running"
    folder_service.deps.jobs.report_progress(job["id"], "a", 0.5, "separating")
    headers = {"If-None-Match": running.headers["etag"]}
    assert folder_service.client.get(job["url"], headers=headers).status_code == 304


def test_a_store_that_signs_urls_serves_stems_itself(s3_service: Service) -> None:
    job = s3_service.separate()
    s3_service.finish(job["id"])
    answer = s3_service.client.get(f"/v1/separations/{job['id']}/stems/dog")
    assert answer.status_code == 303 and answer.headers["cache-control"] == "no-store"
    assert httpx.get(answer.headers["location"]).content == b"0123456789"


def test_the_api_serves_stems_of_a_signing_store_on_request(s3_service: Service) -> None:
    job = s3_service.separate()
    s3_service.finish(job["id"])
    url = f"/v1/separations/{job['id']}/stems/dog"
    part = s3_service.client.get(f"{url}?redirect=0", headers={"Range": "bytes=2-3"})
    assert (part.status_code, part.content) == (206, b"23")
    attachment = s3_service.client.get(f"{url}?download=1")
    assert (attachment.status_code, attachment.content) == (200, b"0123456789")
    assert attachment.headers["content-disposition"] == 'attachment; filename="street-dog.flac"'


@pytest.fixture
def stem_url(folder_service: Service) -> str:
    """The URL of a stem of ten bytes, in a folder store; its name must be quoted."""
    job = folder_service.separate(targets=[{"name": "a b.c", "label": "Dog"}])
    folder_service.finish(job["id"], {"a b.c": b"0123456789"})
    return folder_service.client.get(job["url"]).json()["stems"][0]["url"]


def test_a_stem_from_a_folder_store(folder_service: Service, stem_url: str) -> None:
    answer = folder_service.client.get(stem_url)
    assert (answer.status_code, answer.content) == (200, b"0123456789")
    assert answer.headers["content-type"] == "audio/flac" and "content-disposition" not in answer.headers
    head = folder_service.client.head(stem_url)
    assert (head.headers["content-length"], head.content) == ("10", b"")
    attachment = folder_service.client.get(f"{stem_url}?download=1")
    assert attachment.headers["content-disposition"] == 'attachment; filename="street-a b.c.flac"'


@pytest.mark.parametrize(("header", "body"), [("bytes=0-0", b"0"), ("bytes=-3", b"789"), ("bytes=8-99", b"89")])
def test_a_range_of_a_stem(folder_service: Service, stem_url: str, header: str, body: bytes) -> None:
    part = folder_service.client.get(stem_url, headers={"Range": header})
    assert (part.status_code, part.content) == (206, body)


def test_a_range_beyond_a_stem_is_refused(folder_service: Service, stem_url: str) -> None:
    refused = folder_service.client.get(stem_url, headers={"Range": "bytes=10-"})
    problem(refused, 416, "range_not_satisfiable")
    assert refused.headers["content-range"] == "bytes */10"


def test_a_waiting_separation_has_no_stems(service: Service) -> None:
    job = service.separate()
    problem(service.client.get(f"/v1/separations/{job['id']}/stems/dog"), 404, "not_found")


@pytest.mark.parametrize("name", ["cat", "residual", "%00", "a%2fdog"])
def test_an_unknown_stem_is_not_found(service: Service, name: str) -> None:
    job = service.separate()
    service.finish(job["id"])
    told = problem(service.client.get(f"/v1/separations/{job['id']}/stems/{name}"), 404, "not_found")
    if "/" not in unquote(name):
        assert told["detail"] == "There is no such stem; there are dog."


def test_expired_stems_are_gone_and_the_separation_stays(service: Service) -> None:
    job = service.separate()
    service.finish(job["id"])
    service.deps.jobs.expire(job["id"])
    problem(service.client.get(f"/v1/separations/{job['id']}/stems/dog"), 410, "stems_expired")
    expired = service.client.get(job["url"]).json()
    assert expired["status"] == "succeeded" and expired["stems"] == []


def test_stems_that_are_missing_in_the_store_are_not_found(folder_service: Service) -> None:
    job = folder_service.separate()
    folder_service.finish(job["id"])
    folder_service.deps.storage.delete_prefix(f"separations/{job['id']}")
    problem(folder_service.client.get(f"/v1/separations/{job['id']}/stems/dog"), 404, "not_found")


def test_deleting_a_separation_deletes_its_stems(service: Service) -> None:
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


def test_canceling_a_waiting_separation_ends_it(folder_service: Service) -> None:
    url = folder_service.separate()["url"]
    answer = folder_service.client.post(f"{url}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "canceled")
    problem(folder_service.client.post(f"{url}/cancel"), 409, "already_over")


def test_canceling_a_running_separation_requests_a_stop_once(folder_service: Service) -> None:
    job = folder_service.separate()
    folder_service.deps.jobs.claim(job["id"], "a")
    answer = folder_service.client.post(f"{job['url']}/cancel")
    assert answer.status_code == 202 and answer.json()["cancel_requested_at"]
    assert folder_service.client.post(f"{job['url']}/cancel").json() == answer.json()


def test_canceling_an_unknown_separation_is_not_found(folder_service: Service) -> None:
    problem(folder_service.client.post("/v1/separations/sep_1/cancel"), 404, "not_found")


def test_a_failed_separation_has_its_error_and_its_targets_errors(folder_service: Service) -> None:
    job = folder_service.separate()
    folder_service.deps.jobs.claim(job["id"], "a")
    error = JobError(code="audio_silent", detail="The example is silent.")
    target = TargetState(name="dog", status="failed", error=error)
    folder_service.deps.jobs.fail(job["id"], "a", error, [target])
    failed = folder_service.client.get(job["url"]).json()
    assert failed["status"] == "failed" and failed["error"] == error.model_dump()
    assert failed["targets"][0]["error"] == error.model_dump()


@pytest.mark.parametrize("name", ["sep_1", UNKNOWN, "sep_01HZZZZZZZZZZZZZZZZZZZZZZZ"])
def test_unknown_separations_are_not_found(folder_service: Service, name: str) -> None:
    url = f"/v1/separations/{name}"
    for answer in (
        folder_service.client.get(url),
        folder_service.client.delete(url),
        folder_service.client.get(f"{url}/stems/dog"),
        folder_service.client.get(f"{url}/archive"),
        folder_service.client.get(url, headers={"Prefer": "wait=60"}),
    ):
        problem(answer, 404, "not_found")


def test_the_model_of_these_tests_has_the_fields_of_an_engine_description() -> None:
    assert set(MODEL) == {"name", "version", "embedding_size", "labels", "askable_labels", "sample_rate", "classes"}
