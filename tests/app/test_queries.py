"""Saved queries over HTTP: made of examples, kept until deleted, and asked with."""

import json
from typing import Any

import pytest

from app.housekeeping.sweeps import Housekeeping
from app.jobs.lifecycle import JobError
from app.records.queries import QueryRequest, QueryResult
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


def test_a_target_may_have_the_name_of_its_saved_query(folder_service: Service) -> None:
    def save(name: str) -> str:
        examples = [{"audio_id": folder_service.recording()["id"]}]
        query = folder_service.client.post("/v1/queries", json={"name": name, "examples": examples}).json()
        model = ModelRecord(name="base", version="1")
        embedding = EmbeddingRecord(vector=pack_vector(VECTOR), model=model, coherence=0.8, seconds_used=1.0)
        return folder_service.publish(query["id"], embedding).id

    query_id = save("my dög")
    job = folder_service.separate(targets=[{"query_id": query_id}, {"name": "other", "query_id": query_id}])
    assert [target["name"] for target in job["targets"]] == ["my dög", "other"]
    mixture = {"audio_id": folder_service.recording()["id"]}
    for targets, code, pointer in (
        ([{"query_id": query_id}, {"query_id": query_id}], "request_invalid", "/targets/1/name"),
        ([{"query_id": save("dog/cat")}], "request_invalid", "/targets/0/name"),
        ([{"query_id": save("Residual")}], "name_reserved", "/targets/0/name"),
    ):
        answer = folder_service.client.post("/v1/separations", json={"mixture": mixture, "targets": targets})
        assert problem(answer, 422, code)["errors"][0]["pointer"] == pointer


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
    assert "save its examples again" in told["detail"]
    versions = folder_service.client.get(f"/v1/queries/{query_id}").json()["versions"]
    assert versions == {"ready": ["base@0"], "others": False}


def test_another_models_query_with_excerpts_is_left_to_the_worker(folder_service: Service) -> None:
    """Its record names the query, beside an embedding that workers of an earlier release refuse; once the model has
    embedded it, the record has that embedding."""
    service = folder_service
    query_id = service.saved_query(version="0", excerpt_bytes=1000)
    target = target_record(service, service.separate(targets=[{"name": "dog", "query_id": query_id}])["id"])
    assert target["query_id"] == query_id and target["embedding"]["model"]["version"] == "0"
    answer = service.client.get(f"/v1/queries/{query_id}").json()
    assert answer["versions"] == {"ready": ["base@0"], "others": True}
    assert answer["excerpts"] == {"seconds": 1.0, "bytes": 1000} and answer["model"]["version"] == "0"
    job = service.deps.jobs.get(query_id)
    made = EmbeddingRecord(vector=pack_vector([1.0] * 8), model=ModelRecord(name="base", version="1"))
    assert service.deps.jobs.amend(job, QueryResult.model_validate(job.result).with_embedding(made).model_dump())
    assert not service.deps.jobs.amend(job, {}), "the record has changed"
    answer = service.client.get(f"/v1/queries/{query_id}").json()
    assert answer["versions"] == {"ready": ["base@0", "base@1"], "others": True}
    target = target_record(service, service.separate(targets=[{"name": "dog", "query_id": query_id}])["id"])
    assert target["embedding"] == made.model_dump()


def test_a_separation_by_another_models_query_can_be_retried(folder_service: Service) -> None:
    service = folder_service
    plain, gone, kept = (service.saved_query(version="1", excerpt_bytes=count) for count in (0, 1000, 1000))
    for query_id, status in ((plain, 422), (gone, 422), (kept, 202)):
        job = service.separate(targets=[{"name": "dog", "query_id": query_id}])
        service.client.post(f"{job['url']}/cancel")
        if query_id == gone:
            service.client.delete(f"/v1/queries/{gone}")
        service.deps.model_registry.announce(MODEL | {"version": "2"}, "worker-2")
        service.deps.model_registry.leave("base@1", "worker-1")
        answer = service.client.post(f"{job['url']}/retry")
        assert answer.status_code == status, answer.text
        assert status == 202 or answer.json()["code"] == "query_model_mismatch"
        service.deps.model_registry.announce(MODEL, "worker-1")
        service.deps.model_registry.leave("base@2", "worker-2")
    assert answer.json()["model"]["version"] == "2"


def test_a_deleted_query_leaves_nothing_in_the_store(service: Service) -> None:
    query_id = service.saved_query(excerpt_bytes=1000)
    assert [key for key in service.stored_keys() if "queries" in key] == [f"queries/{query_id}/e/0.flac"]
    assert not any(query_id.encode() in name for name in service.orphans()), "the record owns it"
    assert service.client.delete(f"/v1/queries/{query_id}").status_code == 204
    assert [key for key in service.stored_keys() if "queries" in key] == []
    assert service.deps.jobs.excerpt_bytes.total("") == 0


def test_an_api_key_may_keep_so_many_bytes_of_examples(keyed_service: Service) -> None:
    service, other = keyed_service.with_key(), keyed_service.with_key()
    limit = service.deps.settings.excerpt_bytes
    query_id = service.saved_query(excerpt_bytes=limit - 1000)

    def told() -> tuple[int, int]:
        limits = service.client.get("/v1/limits").json()
        return limits["limits"]["excerpt_bytes"], limits["left"]["excerpt_bytes"]

    assert told() == (limit, 1000)
    second = service.saved_query(excerpt_bytes=3000)
    assert told() == (limit, 0), "a worker had found room for it before"
    body = {"name": "mine", "examples": [{"audio_id": service.recording()["id"]}]}
    assert "delete" in problem(service.client.post("/v1/queries", json=body), 429, "quota_exceeded")["detail"]
    samples = [sample for metric in service.deps.budgets.collect() for sample in metric.samples]
    refused = {"budget": "excerpt_bytes", "scope": "key"}
    assert [sample.value >= 1 for sample in samples if sample.labels == refused] == [True]
    other.saved_query(excerpt_bytes=10)
    assert service.client.delete(f"/v1/queries/{second}").status_code == 204
    assert told() == (limit, 1000)
    assert service.client.post("/v1/queries", json=body).status_code == 202
    service.deps.redis.set(f"earmark:job:{query_id}", "{")
    assert service.client.delete(f"/v1/queries/{query_id}").status_code == 204
    assert told() == (limit, limit), "an unreadable record is counted until it is deleted"


def test_without_keys_there_is_no_limit_of_examples(folder_service: Service) -> None:
    folder_service.saved_query(excerpt_bytes=2 * folder_service.deps.settings.excerpt_bytes)
    folder_service.saved_query(excerpt_bytes=1)
    limits = folder_service.client.get("/v1/limits").json()
    assert limits["limits"]["excerpt_bytes"] is None and limits["left"]["excerpt_bytes"] is None


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
