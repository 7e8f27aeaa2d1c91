"""Presigned uploads, against SeaweedFS."""

import hashlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from app.housekeeping.sweeps import Housekeeping
from app.records.audio import PendingUpload, incoming_key, store_key
from app.records.ids import new_id
from tests.app.conftest import LIMITS, Service, problem, serve, wav
from tests.conftest import S3Server


def presign(service: Service, **body: Any) -> dict[str, Any]:
    answer = service.client.post("/v1/audio/presign", json={"filename": "street.wav", "bytes": len(wav()), **body})
    assert answer.status_code == 201, answer.text
    return answer.json()


def put_file(presigned: dict[str, Any], content: bytes) -> None:
    upload = presigned["upload"]
    assert upload["method"] == "PUT"
    answer = httpx.put(upload["url"], content=content, headers=upload["headers"], trust_env=False)
    assert answer.status_code == 200, answer.text


def complete(service: Service, presigned: dict[str, Any]) -> httpx.Response:
    return service.client.post(presigned["audio"]["complete_url"])


def assert_deleted(service: Service, presigned: dict[str, Any]) -> None:
    """Assert that nothing is stored or pending; the ledger holds the key until its URL has expired."""
    assert service.stored_keys() == []
    assert service.orphans() == [incoming_key(presigned["audio"]["id"]).encode()]
    assert service.deps.redis.keys(f"earmark:audio:{presigned['audio']['id']}*") == []


def test_a_presigned_upload_is_completed(s3_service: Service) -> None:
    content = wav(1.5, 22050, 2)
    presigned = presign(s3_service, filename="..\\music/street.wav", bytes=len(content), content_type="audio/wav")
    audio_id = presigned["audio"]["id"]
    assert presigned["audio"] == {
        "id": audio_id,
        "status": "awaited",
        "filename": "street.wav",
        "bytes": len(content),
        "created_at": presigned["audio"]["created_at"],
        "expires_at": presigned["audio"]["expires_at"],
        "complete_url": f"/v1/audio/{audio_id}/complete",
    }
    assert presigned["upload"]["headers"] == {"Content-Type": "audio/wav"}
    assert presigned["audio"]["created_at"] < presigned["upload"]["expires_at"] < presigned["audio"]["expires_at"]
    problem(complete(s3_service, presigned), 409, "upload_missing")
    problem(s3_service.client.get(f"/v1/audio/{audio_id}"), 404, "not_found")
    put_file(presigned, content)
    answer = complete(s3_service, presigned)
    assert answer.status_code == 200, answer.text
    audio = answer.json()
    assert (audio["id"], audio["status"], audio["filename"]) == (audio_id, "ready", "street.wav")
    assert (audio["bytes"], audio["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert (audio["duration"], audio["sample_rate"], audio["channels"]) == (1.5, 22050, 2)
    assert s3_service.client.get(audio["url"]).content == content
    assert s3_service.stored_keys() == [store_key(audio_id)]
    assert complete(s3_service, presigned).json() == audio
    s3_service.separate(mixture={"audio_id": audio_id})


def test_the_signed_url_cannot_change_a_completed_upload(s3_service: Service) -> None:
    presigned = presign(s3_service)
    put_file(presigned, wav())
    audio = complete(s3_service, presigned).json()
    put_file(presigned, bytes(len(wav())))
    assert s3_service.client.get(audio["url"]).content == wav()
    assert complete(s3_service, presigned).json() == audio
    # The URL is for writing one key.
    url = presigned["upload"]["url"]
    elsewhere = url.replace(incoming_key(audio["id"]), store_key(audio["id"]))
    assert elsewhere != url
    for refused in (httpx.put(elsewhere, content=b"x", trust_env=False), httpx.get(url, trust_env=False)):
        assert refused.status_code == 403
    # What was written later is deleted when the URL has expired.
    deps = s3_service.deps
    housekeeping = Housekeeping(deps.redis, deps.storage, deps.settings)
    housekeeping.remove_expired()
    assert len(s3_service.stored_keys()) == 2
    deps.redis.zadd("earmark:leftovers", {incoming_key(audio["id"]): time.time() - 1})
    housekeeping.remove_expired()
    assert s3_service.stored_keys() == [store_key(audio["id"])] and s3_service.orphans() == []


@pytest.mark.parametrize(
    ("content", "size", "status", "code"),
    [
        (b"hello, this is text", None, 422, "audio_undecodable"),
        (wav(31.0, 8000), None, 422, "audio_too_long"),
        (wav() + b"more", len(wav()), 422, "request_invalid"),
        (wav()[:-1], len(wav()), 422, "request_invalid"),
        (wav() + bytes(3 << 20), len(wav()), 413, "upload_too_large"),
    ],
)
def test_files_that_are_not_accepted_are_deleted(
    s3_service: Service, content: bytes, size: int | None, status: int, code: str
) -> None:
    presigned = presign(s3_service, bytes=size or len(content))
    put_file(presigned, content)
    problem(complete(s3_service, presigned), status, code)
    assert_deleted(s3_service, presigned)
    problem(complete(s3_service, presigned), 404, "not_found")


def test_concurrent_completions_make_one_upload(s3_service: Service) -> None:
    presigned = presign(s3_service)
    put_file(presigned, wav())
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(complete(s3_service, presigned))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 6
    assert len({answer.text for answer in answers}) == 1
    assert s3_service.deps.redis.keys("earmark:audio:*:lock") == []


def test_completion_can_be_retried_when_the_store_was_unavailable(
    s3_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.errors import StoreUnavailable

    presigned = presign(s3_service)
    put_file(presigned, wav())

    def fail(*_: object) -> None:
        raise StoreUnavailable()

    with monkeypatch.context() as patched:
        patched.setattr(type(s3_service.deps.storage), "open_range", fail)
        problem(complete(s3_service, presigned), 503, "store_unavailable")
    assert complete(s3_service, presigned).status_code == 200


def test_completion_can_be_retried_when_its_record_was_not_confirmed(
    s3_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, create = s3_service, s3_service.deps.audio.create
    presigned = presign(service)
    put_file(presigned, wav())

    def unconfirmed(audio: Any) -> None:
        create(audio)
        raise RedisConnectionError("connection lost")

    with monkeypatch.context() as outage:
        outage.setattr(service.deps.audio, "create", unconfirmed)
        problem(complete(service, presigned), 503, "queue_unavailable")
    answer = complete(service, presigned)
    assert answer.status_code == 200 and service.client.get(answer.json()["url"]).content == wav()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"bytes": 2 * 1024 * 1024 + 1}, 413, "upload_too_large"),
        ({"bytes": 0}, 422, "request_invalid"),
        ({"bytes": "9"}, 422, "request_invalid"),
        ({"bytes": True}, 422, "request_invalid"),
        ({"bytes": 10**400}, 413, "upload_too_large"),
        ({}, 422, "request_invalid"),
        ({"bytes": 9, "filename": "x" * 1025}, 422, "request_invalid"),
        ({"bytes": 9, "content_type": "audio/wav\r\nX: y"}, 422, "request_invalid"),
        ({"bytes": 9, "content_type": "audio"}, 422, "request_invalid"),
        ({"bytes": 9, "key": "../x"}, 422, "request_invalid"),
    ],
)
def test_invalid_requests_are_refused(s3_service: Service, body: dict[str, Any], status: int, code: str) -> None:
    problem(s3_service.client.post("/v1/audio/presign", json=body), status, code)
    assert s3_service.orphans() == []


@pytest.fixture
def limited_service(
    valkey: Any, redis: Redis, seaweed: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A front end on S3 that allows two pending uploads."""
    folder = tmp_path_factory.mktemp("limited")
    choices: dict[str, Any] = LIMITS | {"awaited_uploads": 2}
    yield from serve(seaweed.settings("limited", home=folder, redis_url=valkey.connection_url, **choices), folder)


def assert_too_many_pending(service: Service) -> httpx.Response:
    response = service.client.post("/v1/audio/presign", json={"bytes": 9})
    problem(response, 429, "quota_exceeded")
    return response


def test_too_many_pending_uploads_are_refused(limited_service: Service) -> None:
    for _ in range(2):
        presign(limited_service)
    response = assert_too_many_pending(limited_service)
    settings = limited_service.deps.settings
    wait = settings.signed_url_seconds + settings.upload_timeout
    assert wait - 10 < int(response.headers["retry-after"]) <= wait
    assert len(limited_service.orphans()) == 2
    sample = 'earmark_budget_refused_total{budget="awaited_uploads",scope="key"} '
    assert float(limited_service.deps.metrics.expose().decode().partition(sample)[2].split()[0]) >= 1


def test_completed_refused_and_expired_uploads_are_not_pending(limited_service: Service, redis: Redis) -> None:
    first, second = presign(limited_service), presign(limited_service)
    put_file(first, wav())
    assert complete(limited_service, first).status_code == 200
    third = presign(limited_service)
    assert_too_many_pending(limited_service)
    put_file(second, b"x")
    problem(complete(limited_service, second), 422, "request_invalid")
    presign(limited_service)
    assert_too_many_pending(limited_service)
    redis.zadd("earmark:awaited:", {third["audio"]["id"]: time.time() - 1})
    presign(limited_service)
    assert redis.ttl("earmark:awaited:") > 0


def test_a_brief_pending_upload_does_not_end_the_count_of_longer_ones(limited_service: Service, redis: Redis) -> None:
    """Presigned uploads last for hours, resumable ones for a day."""
    now = time.time()
    for seconds in (86_400, 3600):
        pending = PendingUpload(id=new_id("aud"), filename=None, bytes=9, created_at=now, expires_at=now + seconds)
        limited_service.deps.audio.create_pending(pending, now)
    assert redis.ttl("earmark:awaited:") > 86_000
    assert_too_many_pending(limited_service)


def test_pending_uploads_are_counted_by_owner(limited_service: Service) -> None:
    for _ in range(2):
        presign(limited_service)
    other = PendingUpload(id=new_id("aud"), owner="key_x", filename=None, bytes=9, created_at=0, expires_at=9e9)
    limited_service.deps.audio.create_pending(other, 0)
    assert_too_many_pending(limited_service)


def test_file_names_are_sanitized(s3_service: Service) -> None:
    for filename, sanitized in (("../../a\r\nX: y.wav", "aX: y.wav"), ("", None), (None, None), ("ü\x00.wav", "ü.wav")):
        presigned = presign(s3_service, filename=filename)
        assert presigned["audio"]["filename"] == sanitized
        url = presigned["upload"]["url"]
        assert "a%0d" not in url.lower() and presigned["audio"]["id"] in url


def test_a_folder_has_no_presigned_uploads(folder_service: Service) -> None:
    problem(folder_service.client.post("/v1/audio/presign", json={"bytes": 9}), 409, "presign_unavailable")
    assert folder_service.orphans() == []


@pytest.mark.parametrize("audio_id", ["aud_1", "presign", new_id("aud"), new_id("sep"), "..%2f..%2fx"])
def test_only_pending_uploads_can_be_completed(s3_service: Service, audio_id: str) -> None:
    problem(s3_service.client.post(f"/v1/audio/{audio_id}/complete"), 404, "not_found")
