"""Saved queries over HTTP: made of examples, kept until deleted, and asked with."""

import json
from typing import Any

import pytest

from app.housekeeping.sweeps import Housekeeping
from app.jobs.lifecycle import JobError
from app.records.queries import QueryRequest
from app.records.separations import SeparationRequest
from app.records.shared import EmbeddingRecord, ModelRecord, pack_vector, unpack_vector
from tests.app.conftest import MODEL, VECTOR, Service, problem, wav

OWN = ["name", "examples", "coherence", "seconds_used", "versions", "excerpts"]


def target_record(service: Service, job_id: str) -> dict[str, Any]:
    """Return the record of a separation's first target, which the worker reads."""
    return SeparationRequest.model_validate(service.deps.jobs.get(job_id).request).targets[0].model_dump()


def test_a_saved_query_from_examples_to_a_separation(service: Service) -> None:
    examples = [{"audio_id": service.upload()["id"]}, {"audio_id": service.upload(wav(0.5))["id"]}]
    answer = service.client.post("/v1/queries", json={"name": "Straßenhund №1", "examples": examples})
    assert answer.status_code == 202, answer.text
    query = answer.json()
    assert list(query)[-6:] == OWN
    assert [query[field] for field in OWN] == ["Straßenhund №1", 2, None, None, None, None]
    job = service.deps.jobs.get(query["id"])
    assert job.audio_seconds == 1.5
    record = QueryRequest.model_validate(job.request)
    assert [example.model_dump() for example in record.examples] == examples
    model = ModelRecord(name="base", version="1")
    service.publish(
        query["id"], EmbeddingRecord(vector=pack_vector(VECTOR), model=model, coherence=0.8, seconds_used=1.25)
    )
    told = service.client.get(query["url"]).json()
    assert (told["status"], told["coherence"], told["seconds_used"]) == ("succeeded", 0.8, 1.25)
    assert told["expires_at"] is None and "vector" not in told
    for example in examples:
        assert service.client.delete(f"/v1/audio/{example['audio_id']}").status_code == 204
    separation = service.separate(targets=[{"name": "dog", "query_id": query["id"]}])
    assert service.client.delete(query["url"]).status_code == 204
    asked = target_record(service, separation["id"])["embedding"]  # a copy, which the separation keeps
    assert unpack_vector(asked["vector"]) == pytest.approx(VECTOR) and asked["coherence"] == 0.8


def test_a_saved_query_in_one_form(service: Service) -> None:
    files = [("examples", ("a.wav", wav(0.5))), ("examples", ("b.wav", wav(0.7)))]
    options = json.dumps({"metadata": {"a": "b"}, "model": "base"})
    answer = service.client.post("/v1/queries", files=files, data={"name": "mine", "options": options})
    assert answer.status_code == 202, answer.text
    assert (answer.json()["examples"], answer.json()["metadata"]) == (2, {"a": "b"})
    assert len(service.stored_keys()) == 2


@pytest.mark.parametrize(
    ("files", "fields", "code", "pointer"),
    [
        ([], {"name": "mine"}, "request_invalid", "/examples"),
        ([wav()], {}, "request_invalid", "/name"),
        ([wav()], {"name": ""}, "request_invalid", "/name"),
        ([wav()], {"name": ["a", "b"]}, "request_invalid", "/name"),
        ([wav()], {"name": "mine", "options": "{"}, "request_invalid", "/options"),
        ([wav()], {"name": "mine", "options": '{"name": "b"}'}, "request_invalid", "/options/name"),
        ([wav()], {"name": "mine", "examples": "text"}, "request_invalid", "/examples"),
        ([wav()] * 3, {"name": "mine"}, "request_invalid", "/examples"),
        ([wav(3.0, 8000)], {"name": "mine"}, "audio_too_long", "/examples/0/audio_id"),
        ([b"no audio"], {"name": "mine"}, "audio_undecodable", None),
    ],
)
def test_a_form_that_fails_deletes_its_files(
    folder_service: Service, files: list[bytes], fields: dict[str, Any], code: str, pointer: str | None
) -> None:
    sent: list[Any] = [("examples", ("a.wav", content)) for content in files]
    for name, texts in fields.items():
        sent += [(name, (None, text)) for text in ([texts] if isinstance(texts, str) else texts)]
    answer = folder_service.client.post("/v1/queries", files=sent)
    told = problem(answer, 422, code)
    if pointer is not None:
        assert [fault["pointer"] for fault in told["errors"]] == [pointer]
    assert folder_service.stored_keys() == [] and folder_service.orphans() == []
    assert folder_service.deps.jobs.unfinished_count() == 0


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"name": "line\nbreak"}, "/name"),
        ({"name": "x" * 101}, "/name"),
        ({"name": None}, "/name"),
        ({"examples": []}, "/examples"),
        ({"examples": [{"audio_id": "aud_1"}]}, "/examples/0/audio_id"),
        ({"examples": "twice"}, "/examples"),
        ({"label": "Dog"}, "/label"),
    ],
)
def test_invalid_queries(folder_service: Service, change: dict[str, Any], pointer: str) -> None:
    example = {"audio_id": folder_service.recording()["id"]}
    if change.get("examples") == "twice":
        change = {"examples": [example, example]}
    answer = folder_service.client.post("/v1/queries", json={"name": "mine", "examples": [example]} | change)
    assert [fault["pointer"] for fault in problem(answer, 422, "request_invalid")["errors"]] == [pointer]


def test_a_query_that_is_not_ready_is_refused_and_creates_no_job(folder_service: Service) -> None:
    service = folder_service
    examples = [{"audio_id": service.recording()["id"]}]
    query_id = service.client.post("/v1/queries", json={"name": "mine", "examples": examples}).json()["id"]

    def asked() -> Any:
        targets = [{"name": "dog", "query_id": query_id}]
        return service.client.post("/v1/separations", json={"mixture": examples[0], "targets": targets})

    for state in ("queued", "running", "failed"):
        if state == "running":
            service.deps.jobs.claim(query_id, "a")
        if state == "failed":
            service.deps.jobs.fail(query_id, "a", JobError(code="audio_silent", detail="Silent."))
        told = problem(asked(), 409, "query_not_ready")
        assert state in told["detail"] and told["errors"][0]["pointer"] == "/targets/0/query_id"
    service.client.delete(f"/v1/queries/{query_id}")
    assert problem(asked(), 404, "not_found")["errors"][0]["pointer"] == "/targets/0/query_id"
    assert service.client.get("/v1/separations").json()["data"] == []


def test_another_models_query_is_refused(folder_service: Service) -> None:
    query_id = folder_service.saved_query(version="0")
    mixture = {"audio_id": folder_service.recording()["id"]}
    targets = [{"name": "dog", "query_id": query_id}]
    answer = folder_service.client.post("/v1/separations", json={"mixture": mixture, "targets": targets})
    told = problem(answer, 422, "query_model_mismatch")
    assert told["errors"][0]["pointer"] == "/targets/0/query_id" and "base@0" in told["detail"]


def test_a_query_of_an_earlier_version_with_the_same_query_encoder_is_used(folder_service: Service) -> None:
    query_id = folder_service.saved_query(version="0")
    mixture = {"audio_id": folder_service.recording()["id"]}
    folder_service.deps.model_registry.announce(MODEL | {"queries_of": ["0"]}, "worker-2")
    targets = [{"name": "dog", "query_id": query_id}]
    answer = folder_service.client.post("/v1/separations", json={"mixture": mixture, "targets": targets})
    assert answer.status_code == 202, answer.text


def test_a_saved_query_outlives_every_retention(folder_service: Service) -> None:
    service = folder_service
    query_id = service.saved_query()
    housekeeping = Housekeeping(service.deps.redis, service.deps.storage, service.deps.settings)
    housekeeping.remove_expired()
    assert service.deps.redis.zscore("earmark:jobs:expiry", query_id) is None
    assert service.deps.redis.ttl(f"earmark:job:{query_id}") == -1
    assert service.client.get(f"/v1/queries/{query_id}").json()["status"] == "succeeded"
    assert service.client.delete(f"/v1/queries/{query_id}").status_code == 204
    left = list(service.deps.redis.scan_iter(f"earmark:*{query_id}*"))
    assert all(service.deps.redis.ttl(key) > 0 for key in left)


@pytest.mark.parametrize("value", [0.0, -0.0, 0.1, 1 / 3, 1e-40, 1e6, -1e6])
def test_embeddings_are_kept_as_float32(value: float) -> None:
    kept = unpack_vector(pack_vector([value, 1.0]))
    assert kept[0] == pytest.approx(value, rel=6e-8, abs=1e-45) and unpack_vector(pack_vector(kept)) == kept
