"""Uploads in flight and their bytes: each key has a share, and an upload that is slow gives way to one that waits."""

import asyncio
import errno
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from app.audio.service import occupy
from app.settings import Settings
from tests.app.audio.test_audio import FORM, assert_nothing_left, form_ends
from tests.app.audio.test_presigned_uploads import complete, presign, put_file
from tests.app.audio.test_resumable_uploads import create_upload, send_bytes
from tests.app.conftest import LIMITS, Service, empty, eventually, problem, serve, wav
from tests.app.origins import Origin, ok, origin
from tests.conftest import S3Server
from tests.full_disk import small_disk

MIB = 1 << 20
LARGE = wav(33.0, 16000)  # 1 MiB; a key's share of the room is 2


@pytest.fixture(scope="module")
def site() -> Iterator[Origin]:
    with origin() as served:
        served.answer = ok(wav())
        yield served


@pytest.fixture(scope="module")
def _small_service(
    valkey: Any, seaweed: S3Server, site: Origin, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("small")
    choices: dict[str, Any] = {
        **LIMITS,
        "auth": "on",
        "recording_seconds": 60.0,
        "upload_slots": 4,
        "upload_room": 4 * MIB,
        "budget_patience": 0.0,
        "outside_ports": str(site.port),
        "outside_networks": f"{site.address}/32",
    }
    yield from serve(seaweed.settings("small", home=folder, redis_url=valkey.connection_url, **choices), folder)


@pytest.fixture
def small_service(_small_service: Service, redis: Redis) -> Service:
    """The front end on S3, with keys, for 4 uploads and 4 MiB; nothing waits."""
    return empty(_small_service)


@pytest.fixture(scope="module")
def _patient_service(valkey: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("patient")
    choices: dict[str, Any] = {**LIMITS, "auth": "on", "upload_idle": 1.2, "upload_slots": 2, "budget_patience": 60.0}
    yield from serve(Settings(home=folder, redis_url=valkey.connection_url, **choices), folder)


@pytest.fixture
def patient_service(_patient_service: Service, redis: Redis) -> Service:
    """The front end with keys, for 2 uploads; others wait for a minute. A window of the rate lasts 1.2 s."""
    return empty(_patient_service)


@contextmanager
def unfinished_upload(service: Service, start: bytes = b"RIFF") -> Iterator[socket.socket]:
    """Begin an upload with `start`; yield the connection."""
    head = f"POST /v1/audio HTTP/1.1\r\nHost: x\r\nAuthorization: {service.client.headers['authorization']}\r\n"
    head += f"Content-Type: {FORM['Content-Type']}\r\nContent-Length: {2 * MIB}\r\n\r\n"
    before = service.deps.budgets.uploads.used, service.deps.budgets.upload_room.used
    with socket.create_connection(service.address, timeout=60) as connection:
        connection.sendall(head.encode() + form_ends("a.wav")[0] + start)
        eventually(lambda: service.deps.budgets.uploads.used == before[0] + 1)
        eventually(lambda: service.deps.budgets.upload_room.used == before[1] + len(start))
        yield connection


@contextmanager
def drip(connection: socket.socket, piece: bytes) -> Iterator[None]:
    """Send `piece` ten times a second while the block runs."""
    stop = threading.Event()

    def send() -> None:
        try:
            while not stop.wait(0.1):
                connection.sendall(piece)
        except OSError:
            pass  # the server has responded and closed the connection

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        stop.set()
        sender.join()


def upload(service: Service, content: bytes) -> httpx.Response:
    return service.client.post("/v1/audio", files={"file": ("a.wav", content)})


def fetch(service: Service, site: Origin) -> httpx.Response:
    return service.client.post("/v1/audio", json={"url": f"http://{site.address}:{site.port}/"})


def send_form(service: Service, path: str, field: str, **fields: str) -> httpx.Response:
    return service.client.post(path, files={field: ("a.wav", wav())}, data=fields)


def ways_to_upload(service: Service, site: Origin) -> dict[str, Callable[[], httpx.Response]]:
    presigned = presign(service)
    put_file(presigned, wav())
    return {
        "form": partial(upload, service, wav()),
        "url": partial(fetch, service, site),
        "presigned": partial(complete, service, presigned),
        "resumable": partial(send_bytes, service, create_upload(service), 0, wav()),
        "separation": partial(send_form, service, "/v1/separations", "mixture", label="Dog"),
        "detection": partial(send_form, service, "/v1/detections", "file"),
        "query": partial(send_form, service, "/v1/queries", "examples", name="mine"),
    }


def test_every_way_to_upload_leaves_other_keys_their_share(small_service: Service, site: Origin) -> None:
    greedy, other = small_service.with_key(), small_service.with_key()
    refused, accepted = ways_to_upload(greedy, site), ways_to_upload(other, site)
    with unfinished_upload(greedy), unfinished_upload(greedy):
        for send in refused.values():
            assert "uploads in flight is 2 at once" in problem(send(), 429, "rate_limited")["detail"]
        for send in accepted.values():
            assert send().is_success
        with unfinished_upload(other), unfinished_upload(other):
            problem(upload(small_service.with_key(), wav()), 503, "overloaded")
    eventually(lambda: small_service.deps.budgets.uploads.used == 0)
    for send in refused.values():
        assert send().is_success
    assert small_service.deps.budgets.upload_room.used == 0


def test_a_key_may_have_its_share_of_the_bytes_in_flight(small_service: Service) -> None:
    greedy, other = small_service.with_key(), small_service.with_key()
    audio = upload(greedy, LARGE).json()
    with unfinished_upload(greedy, bytes(3 * MIB // 2)):
        assert "bytes of uploads" in problem(upload(greedy, LARGE), 429, "rate_limited")["detail"]
        problem(greedy.client.get(f"/v1/audio/{audio['id']}/peaks"), 429, "rate_limited")
        assert upload(other, LARGE).status_code == 201
        with unfinished_upload(other, bytes(2 * MIB - 100)):
            problem(upload(small_service.with_key(), LARGE), 503, "overloaded")
            assert upload(small_service.with_key(), wav()).status_code == 201
    eventually(lambda: small_service.deps.budgets.upload_room.used == 0)
    assert greedy.client.get(f"/v1/audio/{audio['id']}/peaks").status_code == 200


def test_room_for_a_file_of_known_size_is_held_before_its_first_byte(small_service: Service) -> None:
    key, room = small_service.with_key(), small_service.deps.budgets.upload_room

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(1, 4):
            yield bytes(1000)
            assert room.used == max(2000, 1000 * number), "it grows if the file is larger than was said"

    async def receive() -> None:
        async with occupy(key.deps, chunks(), 2000) as passed:
            assert room.used == 2000
            assert [len(chunk) async for chunk in passed] == [1000] * 3

    asyncio.run(receive())
    assert room.used == 0
    presigned = presign(key, bytes=len(LARGE))
    put_file(presigned, LARGE)
    with unfinished_upload(key, bytes(3 * MIB // 2)):
        problem(complete(key, presigned), 429, "rate_limited")
    eventually(lambda: room.used == 0)
    assert complete(key, presigned).status_code == 200 and room.used == 0


def test_a_slow_upload_goes_on_until_another_of_its_key_waits(patient_service: Service) -> None:
    key, other = patient_service.with_key(), patient_service.with_key()
    # 14 KB/s are less than `busy_upload_rate`; one piece in a window suffices for `upload_rate`, on a busy machine too.
    with unfinished_upload(key) as connection, drip(connection, bytes(1400)):
        time.sleep(2.5)  # two windows
        assert upload(other, wav()).status_code == 201
        assert patient_service.deps.budgets.uploads.used == 1
        assert upload(key, wav()).status_code == 201
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 503 ") and b"overloaded" in answer and b"retry-after" in answer.lower()
    assert patient_service.deps.budgets.uploads.refused["slow"] == 1


def test_a_fast_start_excuses_no_stall(patient_service: Service) -> None:
    with (
        unfinished_upload(patient_service.with_key(), bytes(MIB)) as connection,
        drip(connection, b"x"),
    ):
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"upload_timeout" in answer
    assert_nothing_left(patient_service)


def no_more_files(**_: Any) -> FileIO:
    raise OSError(errno.EMFILE, "too many open files")


def test_a_full_disk_is_a_temporary_failure_that_is_told(
    s3_service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system for uploads in flight holds half of the file."""
    content = wav(20.0, 16000)
    audio = s3_service.upload(content)
    with small_disk(tmp_path / "small", f"size={len(content) // 2}"), monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "small"))
        problem(upload(s3_service, content), 503, "disk_full")
        problem(s3_service.client.get(f"/v1/audio/{audio['id']}/peaks"), 503, "disk_full")
        assert list((tmp_path / "small").iterdir()) == []
    assert s3_service.client.get(f"/v1/audio/{audio['id']}/peaks").status_code == 200
    assert s3_service.client.delete(f"/v1/audio/{audio['id']}").status_code == 204
    assert_nothing_left(s3_service)


def test_a_shortage_of_open_files_is_a_temporary_failure(s3_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", no_more_files)
        problem(upload(s3_service, wav()), 503, "overloaded")
    assert_nothing_left(s3_service)
    assert upload(s3_service, wav()).status_code == 201


def test_room_that_holds_no_file_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold an upload"):
        Settings(upload_bytes=3 * MIB, upload_room=4 * MIB)
    assert Settings(upload_bytes=3 * MIB, upload_room=4 * MIB, key_share=1).upload_room == 4 * MIB
