"""`Idempotency-Key`: a repeated request is processed once, and its response replayed."""

import io
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from app.errors import RateLimited
from app.idempotency.fingerprints import Fingerprint
from app.idempotency.repository import Claim, IdempotencyRepository, StoredResponse
from app.settings import Settings
from tests.app.conftest import LIMITS, Service, eventually, problem, serve, wav


def post(service: Service, key: str, path: str = "/v1/separations", **request: Any) -> httpx.Response:
    return service.client.post(path, headers={"Idempotency-Key": key}, **request)


def job_request(service: Service, **fields: Any) -> dict[str, Any]:
    return {"mixture": {"audio_id": service.recording()["id"]}, "targets": [{"label": "Dog"}], **fields}


def count_jobs(service: Service) -> int:
    return len(service.client.get("/v1/separations").json()["data"])


def test_a_job_is_created_once_and_its_response_replayed(folder_service: Service) -> None:
    request = job_request(folder_service)
    first = post(folder_service, "order-17", json=request)
    assert first.status_code == 202 and "idempotent-replayed" not in first.headers
    folder_service.client.post(f"{first.headers['location']}/cancel")
    again = post(folder_service, "order-17", json=request)
    assert again.status_code == 202 and again.headers["idempotent-replayed"] == "true"
    assert again.content == first.content  # although the job has changed
    for name in ("location", "retry-after", "content-type", "content-length"):
        assert again.headers[name] == first.headers[name]
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert count_jobs(folder_service) == 1
    assert post(folder_service, "order-18", json=request).json()["id"] != first.json()["id"]
    assert folder_service.client.post("/v1/separations", json=request).json()["id"] != first.json()["id"]


def test_responses_are_stored_for_a_day(folder_service: Service) -> None:
    post(folder_service, "k", json=job_request(folder_service))
    (key,) = folder_service.deps.redis.scan_iter("earmark:idempotency:*")
    seconds: Any = folder_service.deps.redis.ttl(key)
    assert 86400 - 60 < seconds <= 86400


@pytest.mark.parametrize("change", ["body", "path", "query", "type"])
def test_a_different_request_with_the_same_key_is_refused(folder_service: Service, change: str) -> None:
    request = job_request(folder_service)
    assert post(folder_service, "k", json=request).status_code == 202
    other = request | ({"metadata": {"a": "b"}} if change == "body" else {})
    path = {"path": "/v1/audio", "query": "/v1/separations?a=1"}.get(change, "/v1/separations")
    headers = {"Idempotency-Key": "k"} | ({"Content-Type": "application/x+json"} if change == "type" else {})
    problem(folder_service.client.post(path, headers=headers, json=other), 422, "idempotency_mismatch")
    huge = folder_service.client.post("/v1/separations", headers={"Idempotency-Key": "k"}, content=b"x" * 200_000)
    problem(huge, 422, "idempotency_mismatch")
    assert count_jobs(folder_service) == 1


def test_forms_are_equal_by_their_fields_and_files(folder_service: Service) -> None:
    """Boundaries and file names may differ between repetitions; contents may not."""

    def post_form(mixture: bytes, query: bytes, label: str, name: str = "street.wav") -> httpx.Response:
        files = [
            ("mixture", (name, io.BytesIO(mixture))),
            ("query", ("dog.wav", io.BytesIO(query))),
            ("label", (None, label.encode())),
        ]
        return post(folder_service, "form", files=files)

    mixture, query = wav(0.5), wav(0.3)
    first = post_form(mixture, query, "Dog")
    assert first.status_code == 202
    again = post_form(mixture, query, "Dog", name="other.wav")
    assert again.headers["idempotent-replayed"] == "true" and again.content == first.content
    for changed in ((query, query, "Dog"), (mixture, mixture, "Dog"), (mixture, query, "Siren")):
        problem(post_form(*changed), 422, "idempotency_mismatch")
    assert count_jobs(folder_service) == 1 and len(list(folder_service.deps.storage.keys("audio"))) == 2


def test_an_upload_is_stored_once(folder_service: Service) -> None:
    answers = [post(folder_service, "u", "/v1/audio", files={"file": ("a.wav", wav())}) for _ in range(3)]
    assert {answer.json()["id"] for answer in answers} == {answers[0].json()["id"]}
    assert len(folder_service.stored_keys()) == 1


def test_a_request_without_a_body_is_replayed(folder_service: Service) -> None:
    url = folder_service.separate()["url"]
    first = post(folder_service, "c", f"{url}/cancel")
    assert first.status_code == 202 and first.json()["status"] == "canceled"
    problem(folder_service.client.post(f"{url}/cancel"), 409, "already_over")
    assert post(folder_service, "c", f"{url}/cancel").content == first.content
    problem(post(folder_service, "d", f"{url}/cancel", json={"ignored": 1}), 409, "already_over")


def test_errors_are_replayed_too(folder_service: Service) -> None:
    request = job_request(folder_service, targets=[{"label": "Nothing"}])
    first = problem(post(folder_service, "r", json=request), 422, "label_unknown")
    again = post(folder_service, "r", json=request)
    assert again.headers["idempotent-replayed"] == "true" and again.json() == first
    assert again.headers["content-type"] == "application/problem+json"


def test_errors_that_a_retry_may_change_are_not_stored(keyed_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = keyed_service.with_key(audio_seconds=1)
    request = job_request(mine)
    mine.separate()
    problem(post(mine, "q", json=request), 429, "quota_exceeded")
    mine.deps.redis.delete(f"earmark:quota:{mine.deps.caller.key_id}")
    assert post(mine, "q", json=request).status_code == 202

    with monkeypatch.context() as patched:  # an unexpected exception
        patched.setattr(keyed_service.deps.model_registry, "model", lambda name: 1 / 0)
        assert post(mine, "d", json=request).status_code == 500
    mine.deps.redis.delete(f"earmark:quota:{mine.deps.caller.key_id}")
    assert post(mine, "d", json=request).status_code == 202


def test_errors_before_the_end_of_the_body_are_not_stored(folder_service: Service) -> None:
    files = {"other": ("a.wav", wav(3.0)), "file": ("b.wav", wav(30.0))}
    for _ in range(2):
        answer = post(folder_service, "early", "/v1/audio", files=files)
        problem(answer, 422, "request_invalid")
        assert "idempotent-replayed" not in answer.headers
    assert not list(folder_service.deps.redis.scan_iter("earmark:idempotency:*"))


def test_one_of_many_concurrent_requests_is_processed(folder_service: Service) -> None:
    request = job_request(folder_service)
    statuses: Counter[int] = Counter()

    def send() -> None:
        statuses.update([post(folder_service, "once", json=request).status_code])

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {202, 409} and statuses[202] >= 1
    assert count_jobs(folder_service) == 1


def test_a_repetition_during_the_first_request_is_a_conflict(
    folder_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = job_request(folder_service)
    started, proceed = threading.Event(), threading.Event()
    create = folder_service.deps.jobs.create

    def create_slowly(job: Any) -> Any:
        started.set()
        assert proceed.wait(200)
        return create(job)

    monkeypatch.setattr(folder_service.deps.jobs, "create", create_slowly)
    first: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: first.append(post(folder_service, "slow", json=request)))
    thread.start()
    assert started.wait(200)
    problem(post(folder_service, "slow", json=request), 409, "idempotency_in_progress")
    proceed.set()
    thread.join()
    assert post(folder_service, "slow", json=request).content == first[0].content
    assert count_jobs(folder_service) == 1


def test_keys_do_not_share_responses(keyed_service: Service) -> None:
    mine, yours = keyed_service.with_key(), keyed_service.with_key()
    first = post(mine, "k", json=job_request(mine))
    second = post(yours, "k", json=job_request(yours))
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] != second.json()["id"]


def test_a_replay_signs_nothing_that_a_client_wrote(keyed_service: Service) -> None:
    """Metadata may come from the client's own users, and be shown to them."""
    mine = keyed_service.with_key()
    other = mine.recording()["id"]
    url, forged = f"/v1/audio/{other}/content", "0" * 26 + ".ffffffff." + "A" * 43
    other_key = keyed_service.with_key().deps
    metadata = {
        "plain": f"{url}?token=x",
        "forged": f"{url}?token={forged}",
        "another key's": other_key.url_signer.sign(url, other_key.caller.key_id),
        "another resource's": mine.deps.url_signer.sign("/v1/audio/x", mine.deps.caller.key_id).replace(
            "/v1/audio/x", url
        ),
    }
    request = job_request(mine, metadata=metadata)
    first = post(mine, "m", json=request)
    assert first.status_code == 202
    again = post(mine, "m", json=request)
    assert again.headers["idempotent-replayed"] == "true" and again.json()["metadata"] == metadata


def test_signed_urls_in_a_replayed_response_are_renewed(
    keyed_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = keyed_service.with_key()
    request = job_request(mine)
    now = time.time()
    with monkeypatch.context() as patched:
        patched.setattr(mine.deps.url_signer, "clock", lambda: now - 20 * 3600)
        first = post(mine, "k", json=request).json()
    problem(keyed_service.client.get(first["url"]), 401, "unauthorized")
    again = post(mine, "k", json=request).json()
    assert again["id"] == first["id"] and keyed_service.client.get(again["url"]).json()["id"] == first["id"]


@pytest.mark.parametrize("key", ["", "x" * 256, b"\xc3\xa9", "a\tb"])
def test_malformed_keys_are_refused(folder_service: Service, key: str | bytes) -> None:
    value = key if isinstance(key, bytes) else key.encode()
    answer = folder_service.client.post("/v1/separations", headers=[(b"Idempotency-Key", value)], json={})
    problem(answer, 422, "request_invalid")
    assert "Idempotency-Key" in answer.json()["detail"]


# Claims


def new_response(body: str = "{}") -> StoredResponse:
    return StoredResponse(fingerprint="f", bytes=2, status=202, headers=[], body=body)


def test_a_claim_of_a_dead_process_expires(redis: Redis) -> None:
    repository = IdempotencyRepository(redis, Settings(idempotency_lease=0.2))
    dead = repository.claim("", "k")
    assert isinstance(dead, Claim) and repository.claim("", "k") is None
    eventually(lambda: isinstance(repository.claim("", "k"), Claim))
    dead.store(new_response("late"))  # the process was only slow; its lease has expired
    dead.release()
    assert repository.claim("", "k") is None


def test_a_renewed_claim_does_not_expire(redis: Redis) -> None:
    repository = IdempotencyRepository(redis, Settings(idempotency_lease=600.0))
    claim = repository.claim("", "k")
    assert isinstance(claim, Claim)
    [key] = redis.keys("earmark:idempotency:*")
    for _ in range(3):
        redis.expire(key, 60)
        claim.renew()
        assert redis.ttl(key) > 60
        assert repository.claim("", "k") is None
    claim.store(new_response())
    assert repository.claim("", "k") == new_response()
    claim.renew()
    assert repository.claim("", "k") == new_response()


def test_a_large_refusal_is_not_stored_and_an_acceptance_is(redis: Redis) -> None:
    repository = IdempotencyRepository(redis, Settings(idempotency_refusal_bytes=1000))
    refusal = new_response("x" * 1000).model_copy(update={"status": 422})
    for _ in range(2):
        claim = repository.claim("", "large")
        assert isinstance(claim, Claim), "computed again"
        claim.store(refusal)
    small = refusal.model_copy(update={"body": "x"})
    for key, response in (("small", small), ("accepted", new_response("x" * 1000))):
        claim = repository.claim("", key)
        assert isinstance(claim, Claim)
        claim.store(response)
        assert repository.claim("", key) == response


def test_a_key_without_room_gets_no_claim_until_bytes_expire_and_another_does(redis: Redis) -> None:
    repository = IdempotencyRepository(redis, Settings(idempotency_bytes=1000, idempotency_seconds=1.0))
    claim = repository.claim("key", "a")
    assert isinstance(claim, Claim)
    claim.store(new_response("x" * 1000))
    with pytest.raises(RateLimited) as raised:
        repository.claim("key", "b")
    assert 0 < (raised.value.retry_after or 0) <= 25
    other = repository.claim("other", "b")
    assert isinstance(other, Claim)


@pytest.fixture
def short_lease_service(valkey: Any, redis: Redis, tmp_path: Path) -> Iterator[Service]:
    """A front end whose claims expire after 3 s and are renewed every second."""
    limits: dict[str, Any] = LIMITS | {"idempotency_lease": 3.0}
    settings = Settings(home=tmp_path, redis_url=valkey.connection_url, **limits)
    yield from serve(settings, tmp_path)


def test_a_slow_upload_keeps_its_claim(short_lease_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service = short_lease_service
    renewals: list[Claim] = []
    renew = Claim.renew

    def record_renewal(claim: Claim) -> None:
        renew(claim)
        renewals.append(claim)

    monkeypatch.setattr(Claim, "renew", record_renewal)
    conflicts: list[httpx.Response] = []

    def form_in_pieces() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        content = wav(0.4)
        yield content[:4000]
        eventually(lambda: len(renewals) >= 4)  # after the first lease
        yield content[4000:]
        conflicts.append(post(service, "slow", "/v1/audio", files={"file": ("f", content)}))
        yield b"\r\n--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x", "Idempotency-Key": "slow"}
    answer = httpx.post(f"{service.client.base_url}/v1/audio", headers=headers, content=form_in_pieces(), timeout=60)
    assert answer.status_code == 201
    problem(conflicts[0], 409, "idempotency_in_progress")


# Fingerprints


def form(boundary: str, parts: list[tuple[str, bool, bytes]]) -> bytes:
    body = b""
    for name, is_file, content in parts:
        filename = '; filename="x"' if is_file else ""
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


def fingerprint_of(body: bytes, boundary: str, cuts: list[int]) -> str:
    headers = [
        (b"content-type", f"multipart/form-data; boundary={boundary}".encode()),
        (b"transfer-encoding", b"chunked"),
    ]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers, "server": ("x", 1)}
    fingerprint = Fingerprint(Request(scope))
    bounds = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    for start, end in itertools.pairwise(bounds):
        fingerprint.feed(body[start:end], last=False)
        assert not fingerprint.complete
    fingerprint.feed(b"", last=True)
    assert fingerprint.complete
    return fingerprint.digest()


PARTS = st.lists(
    st.tuples(st.sampled_from(["mixture", "query", "label"]), st.booleans(), st.binary(max_size=40)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(first=PARTS, second=PARTS, cuts=st.lists(st.integers(0, 1000), max_size=4))
def test_fingerprints_are_equal_for_equal_forms_only(
    first: list[tuple[str, bool, bytes]], second: list[tuple[str, bool, bytes]], cuts: list[int]
) -> None:
    one = fingerprint_of(form("a1b2c3", first), "a1b2c3", cuts)
    assert one == fingerprint_of(form("zzzzzzzzz", first), "zzzzzzzzz", [])
    assert (one == fingerprint_of(form("a1b2c3", second), "a1b2c3", [])) == (first == second)
