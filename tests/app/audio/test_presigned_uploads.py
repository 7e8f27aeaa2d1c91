"""Uploads that clients bring to the store themselves, against SeaweedFS."""

import hashlib
import threading
import time
from typing import Any

import httpx
import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from app.housekeeping.sweeps import Housekeeping
from app.records.audio import PendingUpload, incoming_key, store_key
from app.records.ids import new_id
from tests.app.conftest import Service, problem, wav


def presigned(service: Service, **sent: Any) -> dict[str, Any]:
    answer = service.client.post("/v1/audio/presign", json={"filename": "street.wav", "bytes": len(wav()), **sent})
    assert answer.status_code == 201, answer.text
    return answer.json()


def bring(given: dict[str, Any], content: bytes) -> None:
    upload = given["upload"]
    assert upload["method"] == "PUT"
    answer = httpx.put(upload["url"], content=content, headers=upload["headers"], trust_env=False)
    assert answer.status_code == 200, answer.text


def complete(service: Service, given: dict[str, Any]) -> httpx.Response:
    return service.client.post(given["audio"]["complete_url"])


def gone(service: Service, given: dict[str, Any]) -> None:
    """Nothing is stored or awaited; the ledger keeps an eye on the address until it has ended."""
    assert service.stored_keys() == []
    assert service.orphans() == [incoming_key(given["audio"]["id"]).encode()]
    assert service.deps.redis.keys(f"earmark:audio:{given['audio']['id']}*") == []


def test_an_upload_is_brought_and_completed(s3_service: Service) -> None:
    content = wav(1.5, 22050, 2)
    given = presigned(s3_service, filename="..\\music/street.wav", bytes=len(content), content_type="audio/wav")
    audio_id = given["audio"]["id"]
    assert given["audio"] == {
        "id": audio_id,
        "status": "awaited",
        "filename": "street.wav",
        "bytes": len(content),
        "created_at": given["audio"]["created_at"],
        "expires_at": given["audio"]["expires_at"],
        "complete_url": f"/v1/audio/{audio_id}/complete",
    }
    assert given["upload"]["headers"] == {"Content-Type": "audio/wav"}
    assert given["audio"]["created_at"] < given["upload"]["expires_at"] < given["audio"]["expires_at"]
    problem(complete(s3_service, given), 409, "upload_missing")
    problem(s3_service.client.get(f"/v1/audio/{audio_id}"), 404, "not_found")
    bring(given, content)
    answer = complete(s3_service, given)
    assert answer.status_code == 200, answer.text
    audio = answer.json()
    assert (audio["id"], audio["status"], audio["filename"]) == (audio_id, "ready", "street.wav")
    assert (audio["bytes"], audio["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert (audio["duration"], audio["sample_rate"], audio["channels"]) == (1.5, 22050, 2)
    assert s3_service.client.get(audio["url"]).content == content
    assert s3_service.stored_keys() == [store_key(audio_id)]
    assert complete(s3_service, given).json() == audio
    s3_service.separate(mixture={"audio_id": audio_id})


def test_the_address_does_not_reach_what_was_completed(s3_service: Service) -> None:
    given = presigned(s3_service)
    bring(given, wav())
    audio = complete(s3_service, given).json()
    bring(given, bytes(len(wav())))
    assert s3_service.client.get(audio["url"]).content == wav()
    assert complete(s3_service, given).json() == audio
    # It writes this one key, and reads nothing.
    url = given["upload"]["url"]
    elsewhere = url.replace(incoming_key(audio["id"]), store_key(audio["id"]))
    assert elsewhere != url
    for refused in (httpx.put(elsewhere, content=b"x", trust_env=False), httpx.get(url, trust_env=False)):
        assert refused.status_code == 403
    # What it left is swept when nobody can write there any more.
    deps = s3_service.deps
    housekeeping = Housekeeping(deps.redis, deps.storage, deps.settings)
    housekeeping.remove_expired()
    assert len(s3_service.stored_keys()) == 2
    deps.redis.zadd("earmark:leftovers", {incoming_key(audio["id"]): time.time() - 1})
    housekeeping.remove_expired()
    assert s3_service.stored_keys() == [store_key(audio["id"])] and s3_service.orphans() == []


@pytest.mark.parametrize(
    ("content", "announced", "status", "code"),
    [
        (b"hello, this is text", None, 422, "audio_undecodable"),
        (wav(31.0, 8000), None, 422, "audio_too_long"),
        (wav() + b"more", len(wav()), 422, "request_invalid"),
        (wav()[:-1], len(wav()), 422, "request_invalid"),
        (wav() + bytes(3 << 20), len(wav()), 413, "upload_too_large"),
    ],
)
def test_what_cannot_be_kept_is_deleted(
    s3_service: Service, content: bytes, announced: int | None, status: int, code: str
) -> None:
    given = presigned(s3_service, bytes=announced or len(content))
    bring(given, content)
    problem(complete(s3_service, given), status, code)
    gone(s3_service, given)
    problem(complete(s3_service, given), 404, "not_found")


def test_completing_at_once_makes_one_upload(s3_service: Service) -> None:
    given = presigned(s3_service)
    bring(given, wav())
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(complete(s3_service, given))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 6
    assert len({answer.text for answer in answers}) == 1
    assert s3_service.deps.redis.keys("earmark:audio:*:lock") == []


def test_a_store_that_is_away_takes_nothing_from_the_client(
    s3_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.errors import StoreUnavailable

    given = presigned(s3_service)
    bring(given, wav())

    def away(*_: object) -> None:
        raise StoreUnavailable()

    with monkeypatch.context() as patched:
        patched.setattr(type(s3_service.deps.storage), "open_range", away)
        problem(complete(s3_service, given), 503, "store_unavailable")
    assert complete(s3_service, given).status_code == 200


def test_an_upload_that_was_not_confirmed_is_whole_when_completed_again(
    s3_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, create = s3_service, s3_service.deps.audio.create
    given = presigned(service)
    bring(given, wav())

    def unconfirmed(audio: Any) -> None:
        create(audio)
        raise RedisConnectionError("gone")

    with monkeypatch.context() as outage:
        outage.setattr(service.deps.audio, "create", unconfirmed)
        problem(complete(service, given), 503, "queue_unavailable")
    answer = complete(service, given)
    assert answer.status_code == 200 and service.client.get(answer.json()["url"]).content == wav()


@pytest.mark.parametrize(
    ("sent", "status", "code"),
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
def test_wrong_announcements_are_refused(s3_service: Service, sent: dict[str, Any], status: int, code: str) -> None:
    problem(s3_service.client.post("/v1/audio/presign", json=sent), status, code)
    assert s3_service.orphans() == []


def test_only_so_many_uploads_are_awaited_at_once(
    s3_service: Service, monkeypatch: pytest.MonkeyPatch, redis: Redis
) -> None:
    deps = s3_service.deps
    monkeypatch.setattr(deps.audio, "_settings", deps.settings.model_copy(update={"awaited_uploads": 2}))
    given = [presigned(s3_service) for _ in range(2)]
    answer = s3_service.client.post("/v1/audio/presign", json={"bytes": 9})
    problem(answer, 429, "quota_exceeded")
    wait = deps.settings.signed_url_seconds + deps.settings.upload_timeout
    assert wait - 10 < int(answer.headers["retry-after"]) <= wait
    assert len(s3_service.orphans()) == 2
    # A completed one makes room, a refused one too, and so does time.
    bring(given[0], wav())
    assert complete(s3_service, given[0]).status_code == 200
    given.append(presigned(s3_service))
    problem(s3_service.client.post("/v1/audio/presign", json={"bytes": 9}), 429, "quota_exceeded")
    bring(given[1], b"x")
    problem(complete(s3_service, given[1]), 422, "request_invalid")
    given.append(presigned(s3_service))
    redis.zadd("earmark:awaited:", {given[2]["audio"]["id"]: time.time() - 1})
    presigned(s3_service)
    assert redis.ttl("earmark:awaited:") > 0
    # Each key has its own.
    deps.audio.create_pending(
        PendingUpload(id=new_id("aud"), owner="key_x", filename=None, bytes=9, created_at=0, expires_at=9e9), 0
    )


def test_names_of_direct_uploads_are_only_for_reading(s3_service: Service) -> None:
    for sent, kept in (("../../a\r\nX: y.wav", "aX: y.wav"), ("", None), (None, None), ("ü\x00.wav", "ü.wav")):
        given = presigned(s3_service, filename=sent)
        assert given["audio"]["filename"] == kept
        assert "a%0d" not in given["upload"]["url"].lower() and given["audio"]["id"] in given["upload"]["url"]


def test_a_folder_takes_no_direct_uploads(folder_service: Service) -> None:
    problem(folder_service.client.post("/v1/audio/presign", json={"bytes": 9}), 409, "presign_unavailable")
    assert folder_service.orphans() == []


@pytest.mark.parametrize("audio_id", ["aud_1", "presign", new_id("aud"), new_id("sep"), "..%2f..%2fx"])
def test_only_what_is_awaited_can_be_completed(s3_service: Service, audio_id: str) -> None:
    problem(s3_service.client.post(f"/v1/audio/{audio_id}/complete"), 404, "not_found")
