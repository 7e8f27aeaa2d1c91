"""Recordings fetched from URLs: stored whole and probed, or refused without leaving anything behind."""

import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from app.settings import Settings
from tests.app.audio.test_audio import assert_nothing_left
from tests.app.conftest import LIMITS, Service, empty, eventually, problem, serve, wav
from tests.app.origins import Origin, ok, origin, redirect
from tests.conftest import S3Server


@pytest.fixture(scope="module")
def site() -> Iterator[Origin]:
    with origin() as served:
        yield served


@pytest.fixture(scope="module", params=["folder", "s3"])
def _fetching_service(
    request: pytest.FixtureRequest, site: Origin, valkey: Any, seaweed: S3Server, tmp_path_factory: Any
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("fetching")
    choices: dict[str, Any] = {
        **LIMITS,
        "home": folder,
        "redis_url": valkey.connection_url,
        "outside_ports": str(site.port),
        "outside_networks": f"{site.address}/32",
    }
    s3 = request.param == "s3"
    yield from serve(seaweed.settings("fetching", **choices) if s3 else Settings(**choices), folder)


@pytest.fixture
def fetching_service(_fetching_service: Service, redis: Any) -> Service:
    return empty(_fetching_service)


@pytest.fixture
def hurried_service(fetching_service: Service) -> Iterator[Service]:
    """The same front end on the same store, with short limits for pauses and for the whole fetch."""
    short = {"upload_idle": 0.5, "fetch_timeout": 2.0}
    yield from serve(fetching_service.deps.settings.model_copy(update=short), fetching_service.folder)


def post(service: Service, url: Any) -> Any:
    return service.client.post("/v1/audio", json={"url": url})


def test_a_recording_is_fetched_stored_and_probed(fetching_service: Service, site: Origin) -> None:
    content = wav(1.5, 22050, 2)
    site.answer = ok(content, "Content-Type: image/png", 'Content-Disposition: attachment; filename="../../x"')
    answer = post(fetching_service, f"http://{site.address}:{site.port}/music/my%20street.wav?token=secret")
    assert answer.status_code == 201, answer.text
    audio = answer.json()
    assert answer.headers["location"] == f"/v1/audio/{audio['id']}"
    assert audio["filename"] == "my street.wav" and audio["sha256"] == hashlib.sha256(content).hexdigest()
    assert (audio["content_type"], audio["duration"], audio["channels"]) == ("audio/wav", 1.5, 2)
    assert fetching_service.client.get(audio["url"]).content == content
    assert fetching_service.orphans() == []


def test_the_file_name_is_the_last_part_of_the_path(fetching_service: Service, site: Origin) -> None:
    site.answer = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
    for piece in (wav()[:1000], wav()[1000:]):
        site.answer += [f"{len(piece):x}\r\n".encode() + piece + b"\r\n"]
    site.answer += [b"0\r\n\r\n"]
    for path, name in (("/", None), ("/a%2F..%2Fb%0d%0a.wav", "b.wav"), ("/%C3%A4.wav", "ä.wav"), ("/%ff", "\ufffd")):
        answer = post(fetching_service, f"http://{site.address}:{site.port}{path}")
        assert (answer.status_code, answer.json().get("filename")) == (201, name), answer.text


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (ok(b"hello"), 422, "audio_undecodable"),
        (ok(b""), 422, "audio_undecodable"),
        (ok(wav(31.0, 8000)), 422, "audio_too_long"),
        (ok(wav(1.0) + bytes(5 << 20)), 413, "upload_too_large"),
        ([b"HTTP/1.1 200 OK\r\n\r\n", wav(1.0), bytes(5 << 20)], 413, "upload_too_large"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999\r\n\r\n", wav(1.0)], 413, "upload_too_large"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n", wav(1.0)], 422, "url_refused"),
        (ok(wav(), "Content-Encoding: gzip"), 422, "url_refused"),
        (redirect("http://127.0.0.1/"), 422, "url_refused"),
        ([b"HTTP/1.1 401 No\r\n\r\n"], 422, "url_refused"),
    ],
)
def test_responses_that_are_not_accepted_leave_nothing(
    fetching_service: Service, site: Origin, answer: list[bytes | float], status: int, code: str
) -> None:
    site.answer = answer
    document = problem(post(fetching_service, f"http://{site.address}:{site.port}/?token=secret"), status, code)
    assert "secret" not in str(document) and site.address not in str(document)
    assert_nothing_left(fetching_service)


def test_fetches_that_stall_or_drip_leave_nothing(hurried_service: Service, site: Origin) -> None:
    drip = [part for _ in range(999) for part in (0.2, b"x")]
    for answer in (
        [b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n", wav(1.0), 300.0],
        [b"HTTP/1.1 200 OK\r\n\r\n", *drip],
    ):
        site.answer = answer
        problem(post(hurried_service, f"http://{site.address}:{site.port}/"), 422, "url_refused")
        assert_nothing_left(hurried_service)


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://localhost/", "file:///etc/passwd", "http://[::1]/", ""])
def test_internal_addresses_are_refused(fetching_service: Service, url: str) -> None:
    problem(post(fetching_service, url), 422, "url_refused")
    assert_nothing_left(fetching_service)


@pytest.mark.parametrize("body", [{}, [], 0, {"url": 1}, {"url": "http://a/", "x": 1}, {"url": "a" * 2049}])
def test_invalid_documents_are_refused(fetching_service: Service, body: Any) -> None:
    problem(fetching_service.client.post("/v1/audio", json=body), 422, "request_invalid")


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_fetch_ends_when_its_client_disconnects(fetching_service: Service, site: Origin, has_begun: bool) -> None:
    """And its `Idempotency-Key` is free again, since no response was sent."""
    content, redis = wav(), fetching_service.deps.redis
    drip = [part for _ in range(3000) for part in (content[:9], 0.1)]
    site.answer = [b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", *drip] if has_begun else [300.0]
    site.requests.clear()
    document = {"url": f"http://{site.address}:{site.port}/"}
    body = json.dumps(document).encode()
    head = "POST /v1/audio HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nIdempotency-Key: again\r\n"
    with socket.create_connection(fetching_service.address, timeout=60) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        eventually(lambda: site.requests and (fetching_service.deps.budgets.upload_room.used or not has_begun))
    # Otherwise the response of a fetch that timed out would be kept for the key.
    eventually(lambda: not redis.keys("earmark:idempotency:*"))
    assert_nothing_left(fetching_service)
    site.answer = ok(content)
    again = fetching_service.client.post("/v1/audio", json=document, headers={"Idempotency-Key": "again"})
    assert again.status_code == 201 and "idempotent-replayed" not in again.headers


def test_slow_sites_delay_only_the_key_that_named_them(
    valkey: Any, redis: Any, site: Origin, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However many slow sites a key names, the fetches of other keys are not delayed."""
    folder = tmp_path_factory.mktemp("keyed-fetching")
    choices: dict[str, Any] = {"outside_ports": str(site.port), "outside_networks": "127.0.0.0/8"}
    settings = Settings(home=folder, redis_url=valkey.connection_url, **{**LIMITS, "auth": "on", **choices})
    share = settings.fetch_slots * settings.key_share
    site.answer = ok(wav())
    body = json.dumps({"url": f"http://127.0.0.3:{site.port}/"}).encode()
    with origin("127.0.0.3", site.port) as slow:
        slow.answer = [300.0]
        for service in serve(settings, folder):
            slow_service, other = service.with_key(), service.with_key()
            key = slow_service.client.headers["authorization"]
            head = f"POST /v1/audio HTTP/1.1\r\nAuthorization: {key}\r\nContent-Type: application/json\r\n"
            with ExitStack() as clients:
                for _ in range(18):
                    client = clients.enter_context(socket.create_connection(service.address, timeout=60))
                    client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                eventually(lambda: len(slow.requests) >= share)
                assert post(other, f"http://{site.address}:{site.port}/").status_code == 201
                assert len(slow.requests) == share, "none of which has been answered"
