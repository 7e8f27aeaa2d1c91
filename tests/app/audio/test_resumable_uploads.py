"""Resumable uploads by tus 1.0, with the protocol's own client and with requests as it defines them."""

import hashlib
import io
import socket
import time
from base64 import b64encode
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest
from redis import Redis
from tusclient.client import TusClient
from tusclient.exceptions import TusUploadFailed
from tusclient.uploader.uploader import Uploader

from app.housekeeping.sweeps import Housekeeping
from app.records.audio import incoming_key, store_key
from app.records.ids import new_id
from app.settings import Settings
from app.storage import PART_BYTES
from tests.app.conftest import LIMITS, Service, empty, eventually, problem, serve, wav
from tests.conftest import S3Server

VERSION = {"Tus-Resumable": "1.0.0"}
LARGE = wav(200.0, 44100)  # 17.6 MB: three pieces and a bit
CHOICES: dict[str, Any] = LIMITS | {"upload_bytes": 2 * len(LARGE), "recording_seconds": 300.0}
CHOICES |= {"awaited_uploads": 2}


@pytest.fixture(scope="module")
def _services(valkey: Any, seaweed: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Service]]:
    folder = tmp_path_factory.mktemp("resumable")
    on_folder = serve(Settings(home=folder, redis_url=valkey.connection_url, **CHOICES), folder)
    on_s3 = serve(seaweed.settings("resumable", home=folder, redis_url=valkey.connection_url, **CHOICES), folder)
    yield {"folder": next(on_folder), "s3": next(on_s3)}
    for served in (on_folder, on_s3):
        next(served, None)


@pytest.fixture(params=["folder", "s3"])
def service(request: pytest.FixtureRequest, _services: dict[str, Service], redis: Redis) -> Service:
    """A front end for large files, on each kind of store, that allows two pending uploads."""
    return empty(_services[request.param])


def uploader(service: Service, content: bytes, **options: Any) -> Uploader:
    """Return the protocol's own client for a file; `url`: of an upload to continue."""
    client = TusClient(f"{service.client.base_url}/v1/audio")
    client.set_headers({name: text for name, text in service.client.headers.items() if name == "authorization"})
    return client.uploader(file_stream=io.BytesIO(content), metadata={"filename": "..\\street ü.wav"}, **options)


def create_upload(service: Service, size: int | None = None, headers: dict[str, str] | None = None) -> str:
    """Create an upload; return its URL."""
    sent = VERSION | {"Upload-Length": str(len(wav()) if size is None else size)} | (headers or {})
    response = service.client.post("/v1/audio", headers=sent)
    assert response.status_code == 201, response.text
    return response.headers["location"]


def send_bytes(service: Service, url: str, offset: int, content: bytes, **headers: str) -> httpx.Response:
    sent = VERSION | {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"} | headers
    return service.client.patch(url, content=content, headers=sent)


def offset(service: Service, url: str) -> int:
    """Return where an upload goes on, as HEAD tells it."""
    response = service.client.head(url, headers=VERSION)
    assert response.status_code == 200 and response.headers["cache-control"] == "no-store"
    return int(response.headers["upload-offset"])


def assert_uploaded(service: Service, url: str, content: bytes) -> None:
    """Assert that an upload is complete, like any other, and that nothing else of it is left."""
    response = service.client.get(httpx.URL(url).path)
    assert response.status_code == 200, response.text
    audio = response.json()
    assert (audio["status"], audio["bytes"], audio["container"]) == ("ready", len(content), "wav")
    assert audio["sha256"] == hashlib.sha256(content).hexdigest()
    assert hashlib.sha256(service.client.get(audio["url"]).content).hexdigest() == audio["sha256"]
    assert service.stored_keys() == [store_key(audio["id"])]
    assert service.deps.redis.keys(f"earmark:audio:{audio['id']}:*") == []
    assert service.deps.budgets.uploads.used == service.deps.budgets.upload_room.used == 0


def test_the_protocols_client_uploads_in_one_request_and_in_many(service: Service) -> None:
    for chunk_size in (len(LARGE), 2_000_001):
        client = uploader(service, LARGE, chunk_size=chunk_size)
        client.upload()
        assert client.url is not None
        assert service.client.get(client.url).json()["filename"] == "street ü.wav"
        assert_uploaded(service, client.url, LARGE)
        assert offset(service, client.url) == len(LARGE)
        assert service.client.delete(client.url).status_code == 204


def test_an_interrupted_request_counts_as_far_as_it_came(service: Service) -> None:
    url, came = create_upload(service, len(LARGE)), PART_BYTES + 70_000
    head = f"PATCH {url} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
    head += f"Content-Type: application/offset+octet-stream\r\nContent-Length: {len(LARGE)}\r\n\r\n"
    with socket.create_connection(service.address, timeout=60) as connection:
        connection.sendall(head.encode() + LARGE[:came])
        eventually(lambda: offset(service, url) == PART_BYTES)  # a whole piece counts while the request lasts
    eventually(lambda: offset(service, url) == came)
    eventually(lambda: service.deps.budgets.uploads.used == 0)
    client = uploader(service, LARGE, url=str(service.client.base_url.join(url)))
    assert client.offset == came
    client.upload()
    assert_uploaded(service, url, LARGE)


def test_small_requests_make_no_more_pieces_than_large_ones(service: Service) -> None:
    url = create_upload(service)
    for start in range(0, 30_000, 1000):
        assert send_bytes(service, url, start, wav()[start : start + 1000]).headers["upload-offset"] == str(
            start + 1000
        )
        assert len(service.stored_keys()) == 1
    assert send_bytes(service, url, 30_000, b"").headers["upload-offset"] == "30000"
    assert send_bytes(service, url, 30_000, wav()[30_000:]).status_code == 204
    assert_uploaded(service, url, wav())


def test_a_request_that_comes_too_late_changes_nothing(service: Service) -> None:
    """Two requests continue from one offset: a client gave up the first, which the server still reads."""
    deps, url = service.deps, create_upload(service, len(LARGE))
    audio_id = url.rpartition("/")[2]
    head = f"PATCH {url} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
    head += "Content-Type: application/offset+octet-stream\r\nContent-Length: 9000\r\n\r\n"
    with socket.create_connection(service.address, timeout=60) as connection:
        connection.sendall(head.encode() + bytes(8999))
        eventually(lambda: deps.budgets.upload_room.used == 8999)
        assert send_bytes(service, url, 0, LARGE[: PART_BYTES + 5]).status_code == 204
        connection.sendall(b"\0")
        assert connection.recv(65536).startswith(b"HTTP/1.1 409 ")
    assert offset(service, url) == PART_BYTES + 5 and len(deps.storage.keys(incoming_key(audio_id))) == 2
    problem(send_bytes(service, url, 5, LARGE[5:]), 409, "offset_mismatch")
    assert send_bytes(service, url, PART_BYTES + 5, LARGE[PART_BYTES + 5 :]).status_code == 204
    assert_uploaded(service, url, LARGE)


def test_the_last_bytes_are_sent_again_while_the_upload_cannot_be_completed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = create_upload(service)
    assert send_bytes(service, url, 0, wav()[:9000]).status_code == 204
    with monkeypatch.context() as outage:
        outage.setattr(service.deps.budgets.probes, "total", 0)
        outage.setattr(service.deps.budgets.probes, "patience", 0)
        problem(send_bytes(service, url, 9000, wav()[9000:]), 503, "overloaded")
    assert offset(service, url) == 9000
    assert send_bytes(service, url, 9000, wav()[9000:]).headers["upload-offset"] == str(len(wav()))
    assert_uploaded(service, url, wav())
    problem(send_bytes(service, url, 9000, wav()[9000:]), 409, "offset_mismatch")
    assert send_bytes(service, url, len(wav()), b"").status_code == 204


def test_a_file_that_is_no_audio_is_refused_and_deleted(service: Service) -> None:
    client = uploader(service, b"hello, this is text" * 999, chunk_size=9000)
    with pytest.raises(TusUploadFailed) as failure:
        client.upload()
    assert failure.value.status_code == 422 and b"audio_undecodable" in (failure.value.response_content or b"")
    assert client.url is not None
    assert service.client.head(client.url, headers=VERSION).status_code == 404
    assert service.stored_keys() == []


def test_an_upload_is_given_up_or_expires(service: Service) -> None:
    deps = service.deps
    given_up, expired = create_upload(service), create_upload(service)
    for url in (given_up, expired):
        assert send_bytes(service, url, 0, wav()[:9000]).status_code == 204
    problem(service.client.post("/v1/audio", headers=VERSION | {"Upload-Length": "9"}), 429, "quota_exceeded")
    assert service.client.delete(given_up, headers=VERSION).status_code == 204
    for response in (send_bytes(service, given_up, 9000, wav()[9000:]), service.client.delete(given_up)):
        problem(response, 404, "not_found")
    assert len(service.stored_keys()) == 1
    # The other one expires: Redis drops its record, and housekeeping what it has stored.
    audio_id = expired.rpartition("/")[2]
    left = deps.settings.upload_retention
    assert left - 60 < deps.redis.ttl(f"earmark:audio:{audio_id}:awaited") <= left + 1
    deps.redis.delete(f"earmark:audio:{audio_id}:awaited")
    deps.redis.zadd("earmark:awaited:", {audio_id: time.time() - 1})
    deps.redis.zadd("earmark:leftovers", {incoming_key(audio_id): time.time() - 1})
    Housekeeping(deps.redis, deps.storage, deps.settings).remove_expired()
    assert service.stored_keys() == []
    problem(send_bytes(service, expired, 9000, wav()[9000:]), 404, "not_found")
    for _ in range(2):
        create_upload(service)


def test_what_the_server_says_of_an_upload(folder_service: Service) -> None:
    service, metadata = folder_service, f"filename {b64encode(b'a.wav').decode()},is_confidential"
    response = service.client.options("/v1/audio")
    assert response.status_code == 204
    assert {name: text for name, text in response.headers.items() if name.startswith("tus-")} == {
        "tus-resumable": "1.0.0",
        "tus-version": "1.0.0",
        "tus-extension": "creation,expiration,termination",
        "tus-max-size": str(service.deps.settings.upload_bytes),
    }
    url = create_upload(service, headers={"Upload-Metadata": metadata})
    response = service.client.head(url, headers=VERSION)
    assert response.headers["tus-resumable"] == "1.0.0" and response.headers["upload-metadata"] == metadata
    assert response.headers["upload-length"] == str(len(wav()))
    expiry = parsedate_to_datetime(response.headers["upload-expires"]).timestamp()
    assert expiry == pytest.approx(time.time() + service.deps.settings.upload_retention, abs=60)
    assert service.client.get(url).status_code == 404  # the audio exists when all bytes have arrived


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Upload-Length": str(LIMITS["upload_bytes"] + 1)}, 413, "upload_too_large"),
        ({"Upload-Length": "0"}, 422, "request_invalid"),
        ({"Upload-Length": "-1"}, 422, "request_invalid"),
        ({"Upload-Length": "9" * 5000}, 422, "request_invalid"),
        ({"Upload-Defer-Length": "1"}, 422, "request_invalid"),
        ({"Upload-Length": "9", "Tus-Resumable": "0.2.2"}, 412, "tus_version_unsupported"),
        ({"Upload-Length": "9", "Upload-Metadata": "filename !"}, 422, "request_invalid"),
        ({"Upload-Length": "9", "Upload-Metadata": "filename " + "A" * 5000}, 422, "request_invalid"),
    ],
)
def test_uploads_that_cannot_be_created(
    folder_service: Service, headers: dict[str, str], status: int, code: str
) -> None:
    response = folder_service.client.post("/v1/audio", headers=VERSION | headers)
    problem(response, status, code)
    assert response.headers["tus-resumable"] == "1.0.0"
    assert response.headers.get("tus-version") == ("1.0.0" if status == 412 else None)
    assert folder_service.orphans() == []


def test_requests_that_cannot_continue_an_upload(folder_service: Service) -> None:
    service, url = folder_service, create_upload(folder_service)
    problem(send_bytes(service, url, 0, wav() + b"more"), 413, "upload_too_large")
    problem(send_bytes(service, url, 0, b"x", **{"Content-Type": "audio/wav"}), 415, "media_type_unsupported")
    problem(send_bytes(service, url, 0, b"x", **{"Upload-Offset": "x"}), 422, "request_invalid")
    problem(send_bytes(service, url, 0, b"x", **{"Tus-Resumable": "2"}), 412, "tus_version_unsupported")
    problem(service.client.post(f"{url}/complete"), 409, "upload_missing")
    assert service.client.head(url).status_code == 412
    for other in (new_id("aud"), new_id("sep"), "presign", "..%2fx"):
        problem(send_bytes(service, f"/v1/audio/{other}", 0, b"x"), 404, "not_found")
    assert offset(service, url) == 0 and service.stored_keys() == []


def test_a_presigned_upload_cannot_be_continued(s3_service: Service) -> None:
    audio = s3_service.client.post("/v1/audio/presign", json={"bytes": 9}).json()["audio"]
    url = f"/v1/audio/{audio['id']}"
    problem(send_bytes(s3_service, url, 0, b"x"), 404, "not_found")
    assert s3_service.client.head(url, headers=VERSION).status_code == 404
    assert s3_service.client.delete(url).status_code == 204
    problem(s3_service.client.post(audio["complete_url"]), 404, "not_found")


def test_keys_cannot_see_each_others_uploads(keyed_service: Service) -> None:
    service, other = keyed_service.with_key(), keyed_service.with_key()
    client = uploader(service, wav(), chunk_size=20_000)
    client.upload(stop_at=20_000)
    assert client.url is not None
    url = httpx.URL(client.url).path
    problem(send_bytes(other, url, 20_000, wav()[20_000:]), 404, "not_found")
    problem(other.client.delete(url), 404, "not_found")
    assert other.client.head(url, headers=VERSION).status_code == 404
    assert keyed_service.client.head(url, headers=VERSION).status_code == 401
    problem(send_bytes(keyed_service, url, 20_000, wav()[20_000:]), 401, "unauthorized")
    client.upload()
    assert_uploaded(service, url, wav())


def test_an_idempotency_key_creates_one_upload(folder_service: Service) -> None:
    service, headers = folder_service, VERSION | {"Upload-Length": "9", "Idempotency-Key": "mine"}
    first, second = (service.client.post("/v1/audio", headers=headers) for _ in range(2))
    assert first.status_code == second.status_code == 201
    assert first.headers["location"] == second.headers["location"]
    other = service.client.post("/v1/audio", headers=headers | {"Upload-Length": "10"})
    problem(other, 422, "idempotency_mismatch")
