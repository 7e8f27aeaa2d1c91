"""`Idempotency-Key`: sent again, a request is answered again and not done again."""

import io
import itertools
import threading
import time
from collections import Counter
from typing import Any

import httpx
import pytest
from fastapi import Request
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from app.idempotency.fingerprints import Fingerprint
from app.idempotency.repository import Claim, IdempotencyRepository, StoredResponse
from app.settings import Settings
from tests.app.conftest import Service, eventually, problem, wav


def repeated(service: Service, key: str, path: str = "/v1/separations", **request: Any) -> httpx.Response:
    return service.client.post(path, headers={"Idempotency-Key": key}, **request)


def asking(service: Service, **fields: Any) -> dict[str, Any]:
    return {"mixture": {"audio_id": service.recording()["id"]}, "targets": [{"label": "Dog"}], **fields}


def count(service: Service) -> int:
    return len(service.client.get("/v1/separations").json()["data"])


def test_a_job_is_made_once_and_its_answer_told_again(folder_service: Service) -> None:
    request = asking(folder_service)
    first = repeated(folder_service, "order-17", json=request)
    assert first.status_code == 202 and "idempotent-replayed" not in first.headers
    folder_service.client.post(f"{first.headers['location']}/cancel")
    again = repeated(folder_service, "order-17", json=request)
    assert again.status_code == 202 and again.headers["idempotent-replayed"] == "true"
    assert again.content == first.content  # as it was then
    for name in ("location", "retry-after", "content-type", "content-length"):
        assert again.headers[name] == first.headers[name]
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert count(folder_service) == 1
    assert repeated(folder_service, "order-18", json=request).json()["id"] != first.json()["id"]
    assert folder_service.client.post("/v1/separations", json=request).json()["id"] != first.json()["id"]


def test_answers_are_kept_a_day(folder_service: Service) -> None:
    repeated(folder_service, "k", json=asking(folder_service))
    (kept,) = folder_service.deps.redis.scan_iter("earmark:idempotency:*")
    left: Any = folder_service.deps.redis.ttl(kept)
    assert 86400 - 60 < left <= 86400


@pytest.mark.parametrize("change", ["body", "path", "query", "type"])
def test_another_request_with_the_same_key_is_refused(folder_service: Service, change: str) -> None:
    request = asking(folder_service)
    assert repeated(folder_service, "k", json=request).status_code == 202
    other = request | ({"metadata": {"a": "b"}} if change == "body" else {})
    path = {"path": "/v1/audio", "query": "/v1/separations?a=1"}.get(change, "/v1/separations")
    headers = {"Idempotency-Key": "k"} | ({"Content-Type": "application/x+json"} if change == "type" else {})
    problem(folder_service.client.post(path, headers=headers, json=other), 422, "idempotency_mismatch")
    huge = folder_service.client.post("/v1/separations", headers={"Idempotency-Key": "k"}, content=b"x" * 200_000)
    problem(huge, 422, "idempotency_mismatch")
    assert count(folder_service) == 1


def test_a_form_is_the_same_by_its_fields_and_files(folder_service: Service) -> None:
    """Boundaries and files' names differ from one sending to the next; content decides."""

    def sent(mixture: bytes, query: bytes, label: str, name: str = "street.wav") -> httpx.Response:
        files = [
            ("mixture", (name, io.BytesIO(mixture))),
            ("query", ("dog.wav", io.BytesIO(query))),
            ("label", (None, label.encode())),
        ]
        return repeated(folder_service, "form", files=files)

    mixture, query = wav(0.5), wav(0.3)
    first = sent(mixture, query, "Dog")
    assert first.status_code == 202
    again = sent(mixture, query, "Dog", name="other.wav")
    assert again.headers["idempotent-replayed"] == "true" and again.content == first.content
    for changed in ((query, query, "Dog"), (mixture, mixture, "Dog"), (mixture, query, "Siren")):
        problem(sent(*changed), 422, "idempotency_mismatch")
    assert count(folder_service) == 1 and len(list(folder_service.deps.storage.keys("audio"))) == 2


def test_an_upload_is_stored_once(folder_service: Service) -> None:
    answers = [repeated(folder_service, "u", "/v1/audio", files={"file": ("a.wav", wav())}) for _ in range(3)]
    assert {answer.json()["id"] for answer in answers} == {answers[0].json()["id"]}
    assert len(folder_service.stored_keys()) == 1


def test_a_call_without_a_body_is_answered_again(folder_service: Service) -> None:
    url = folder_service.separate()["url"]
    first = repeated(folder_service, "c", f"{url}/cancel")
    assert first.status_code == 202 and first.json()["status"] == "canceled"
    problem(folder_service.client.post(f"{url}/cancel"), 409, "already_over")
    assert repeated(folder_service, "c", f"{url}/cancel").content == first.content
    problem(repeated(folder_service, "d", f"{url}/cancel", json={"of": "no use"}), 409, "already_over")


def test_refusals_are_told_again_too(folder_service: Service) -> None:
    request = asking(folder_service, targets=[{"label": "Nothing"}])
    first = problem(repeated(folder_service, "r", json=request), 422, "label_unknown")
    again = repeated(folder_service, "r", json=request)
    assert again.headers["idempotent-replayed"] == "true" and again.json() == first
    assert again.headers["content-type"] == "application/problem+json"


def test_what_may_be_tried_again_is_not_kept(keyed_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = keyed_service.with_key(audio_seconds=1)
    request = asking(mine)
    mine.separate()
    problem(repeated(mine, "q", json=request), 429, "quota_exceeded")
    mine.deps.redis.delete(f"earmark:quota:{mine.deps.caller.key_id}")
    assert repeated(mine, "q", json=request).status_code == 202

    with monkeypatch.context() as patched:  # a defect of ours, and a server that is away
        patched.setattr(keyed_service.deps.model_registry, "model", lambda name: 1 / 0)
        assert repeated(mine, "d", json=request).status_code == 500
    mine.deps.redis.delete(f"earmark:quota:{mine.deps.caller.key_id}")
    assert repeated(mine, "d", json=request).status_code == 202


def test_refusals_before_the_whole_body_are_made_anew(folder_service: Service) -> None:
    files = {"other": ("a.wav", wav(3.0)), "file": ("b.wav", wav(30.0))}
    for _ in range(2):
        answer = repeated(folder_service, "early", "/v1/audio", files=files)
        problem(answer, 422, "request_invalid")
        assert "idempotent-replayed" not in answer.headers
    assert not list(folder_service.deps.redis.scan_iter("earmark:idempotency:*"))


def test_one_of_many_at_once_does_it(folder_service: Service) -> None:
    request = asking(folder_service)
    statuses: Counter[int] = Counter()

    def ask() -> None:
        statuses.update([repeated(folder_service, "once", json=request).status_code])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {202, 409} and statuses[202] >= 1
    assert count(folder_service) == 1


def test_while_the_first_runs_others_are_told_so(folder_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    request = asking(folder_service)
    begun, go_on = threading.Event(), threading.Event()
    create = folder_service.deps.jobs.create

    def slowly(job: Any) -> Any:
        begun.set()
        assert go_on.wait(20)
        return create(job)

    monkeypatch.setattr(folder_service.deps.jobs, "create", slowly)
    first: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: first.append(repeated(folder_service, "slow", json=request)))
    thread.start()
    assert begun.wait(20)
    problem(repeated(folder_service, "slow", json=request), 409, "idempotency_in_progress")
    go_on.set()
    thread.join()
    assert repeated(folder_service, "slow", json=request).content == first[0].content
    assert count(folder_service) == 1


def test_keys_do_not_see_each_others_answers(keyed_service: Service) -> None:
    mine, yours = keyed_service.with_key(), keyed_service.with_key()
    first = repeated(mine, "k", json=asking(mine))
    second = repeated(yours, "k", json=asking(yours))
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] != second.json()["id"]


def test_a_repetition_signs_nothing_that_a_client_wrote(keyed_service: Service) -> None:
    """Metadata may come from a client's own clients, and be shown to them."""
    mine = keyed_service.with_key()
    other = mine.recording()["id"]
    address, forged = f"/v1/audio/{other}/content", "0" * 26 + ".ffffffff." + "A" * 43
    elsewhere = keyed_service.with_key().deps
    wanted = {
        "plain": f"{address}?token=x",
        "forged": f"{address}?token={forged}",
        "another key's": elsewhere.url_signer.sign(address, elsewhere.caller.key_id),
        "another thing's": mine.deps.url_signer.sign("/v1/audio/x", mine.deps.caller.key_id).replace(
            "/v1/audio/x", address
        ),
    }
    request = asking(mine, metadata=wanted)
    first = repeated(mine, "m", json=request)
    assert first.status_code == 202
    again = repeated(mine, "m", json=request)
    assert again.headers["idempotent-replayed"] == "true" and again.json()["metadata"] == wanted


def test_addresses_in_a_repeated_answer_still_open(keyed_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = keyed_service.with_key()
    request = asking(mine)
    now = time.time()
    with monkeypatch.context() as patched:
        patched.setattr("app.keys.signed_urls.time.time", lambda: now - 20 * 3600)
        first = repeated(mine, "k", json=request).json()
    problem(keyed_service.client.get(first["url"]), 401, "unauthorized")
    again = repeated(mine, "k", json=request).json()
    assert again["id"] == first["id"] and keyed_service.client.get(again["url"]).json()["id"] == first["id"]


@pytest.mark.parametrize("key", ["", "x" * 256, b"\xc3\xa9", "a\tb"])
def test_keys_that_cannot_be(folder_service: Service, key: str | bytes) -> None:
    sent = key if isinstance(key, bytes) else key.encode()
    answer = folder_service.client.post("/v1/separations", headers=[(b"Idempotency-Key", sent)], json={})
    problem(answer, 422, "request_invalid")
    assert "Idempotency-Key" in answer.json()["detail"]


# Claims


def answer(body: str = "{}") -> StoredResponse:
    return StoredResponse(fingerprint="f", bytes=2, status=202, headers=[], body=body)


def test_a_claim_of_a_dead_process_runs_out(redis: Redis) -> None:
    answers = IdempotencyRepository(redis, Settings(idempotency_lease=0.2))
    dead = answers.claim("", "k")
    assert isinstance(dead, Claim) and answers.claim("", "k") is None
    eventually(lambda: isinstance(answers.claim("", "k"), Claim), 5)
    dead.store(answer("late"))  # it lives after all, and comes too late
    dead.release()
    assert answers.claim("", "k") is None


def test_a_claim_that_is_renewed_stays(redis: Redis) -> None:
    answers = IdempotencyRepository(redis, Settings(idempotency_lease=0.5))
    claim = answers.claim("", "k")
    assert isinstance(claim, Claim)
    for _ in range(8):
        time.sleep(0.1)
        claim.renew()
        assert answers.claim("", "k") is None
    claim.store(answer())
    assert answers.claim("", "k") == answer()
    claim.renew()
    assert answers.claim("", "k") == answer()


def test_a_slow_upload_keeps_its_claim(folder_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed: list[float] = []
    monkeypatch.setattr(Claim, "renew", lambda self: renewed.append(time.monotonic()))
    monkeypatch.setattr("app.idempotency.middleware._renewals", lambda settings: 0.05)

    def slowly() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for piece in range(4):
            time.sleep(0.1)
            yield wav(0.4)[piece * 4000 :][:4000]
        yield b"\r\n--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x", "Idempotency-Key": "slow"}
    assert folder_service.client.post("/v1/audio", headers=headers, content=slowly()).status_code in (201, 422)
    assert len(renewed) >= 3


# Fingerprints


def form(boundary: str, parts: list[tuple[str, bool, bytes]]) -> bytes:
    body = b""
    for name, is_file, content in parts:
        filename = '; filename="x"' if is_file else ""
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


def taken(body: bytes, boundary: str, cuts: list[int]) -> str:
    headers = [
        (b"content-type", f"multipart/form-data; boundary={boundary}".encode()),
        (b"transfer-encoding", b"chunked"),
    ]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers, "server": ("x", 1)}
    fingerprint = Fingerprint(Request(scope))
    places = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    for start, end in itertools.pairwise(places):
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
def test_fingerprints_are_equal_where_forms_are(
    first: list[tuple[str, bool, bytes]], second: list[tuple[str, bool, bytes]], cuts: list[int]
) -> None:
    one = taken(form("a1b2c3", first), "a1b2c3", cuts)
    assert one == taken(form("zzzzzzzzz", first), "zzzzzzzzz", [])
    assert (one == taken(form("a1b2c3", second), "a1b2c3", [])) == (first == second)
