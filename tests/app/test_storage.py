"""The object store, as a folder and as S3: objects are read back as they were written, whole or not at all."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pytest

from app.errors import DiskFull, NotFound, StoreRefused, StoreUnavailable, UploadTooLarge
from app.settings import Settings
from app.storage import Storage
from tests.app.origins import ok, origin
from tests.conftest import S3Server
from tests.full_disk import full_disk, small_disk

MIB = 1024 * 1024


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return Storage.open(Settings(home=tmp_path))
    seaweed: S3Server = request.getfixturevalue("seaweed")
    return Storage.open(seaweed.settings(f"test-{time.time_ns()}"))


async def stream(content: bytes, size: int = 65536, error: BaseException | None = None) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]
    if error is not None:
        raise error


async def read(storage: Storage, key: str, start: int, end: int) -> bytes:
    return b"".join([block async for block in await storage.open_range(key, start, end)])


@pytest.mark.parametrize("size", [0, 1, 65536, 5 * MIB, 5 * MIB + 1, 11 * MIB])
def test_a_stored_stream_is_read_back(storage: Storage, size: int) -> None:
    content = os.urandom(size)
    stored = asyncio.run(storage.put_stream("audio/a", stream(content), 100 * MIB))
    assert stored.bytes == size == storage.size("audio/a")
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    if size:
        assert asyncio.run(read(storage, "audio/a", 0, size)) == content


def test_a_stored_file_is_downloaded(storage: Storage, tmp_path: Path) -> None:
    content = os.urandom(7 * MIB)
    (tmp_path / "in").write_bytes(content)
    stored = storage.put_file("separations/x/y/0.flac", tmp_path / "in")
    assert (stored.bytes, stored.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert storage.download("separations/x/y/0.flac", tmp_path / "out") == len(content)
    assert (tmp_path / "out").read_bytes() == content


def test_a_folder_on_a_full_disk_reports_it_and_keeps_nothing(tmp_path: Path) -> None:
    storage = Storage.open(Settings(home=tmp_path))
    (tmp_path / "in").write_bytes(os.urandom(2 * MIB))
    with full_disk():
        with pytest.raises(DiskFull):
            asyncio.run(storage.put_stream("audio/a", stream(os.urandom(2 * MIB)), 100 * MIB))
        with pytest.raises(DiskFull):
            storage.put_file("audio/b", tmp_path / "in")
    assert storage.keys("audio") == []


def test_a_folder_that_cannot_be_made_on_a_full_disk_reports_it(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "nr_inodes=1"), pytest.raises(DiskFull):
        Storage.open(Settings(home=tmp_path / "small"))


def test_a_download_to_a_full_disk_is_no_error_of_the_store(storage: Storage, tmp_path: Path) -> None:
    storage.put("audio/a", os.urandom(MIB))
    with full_disk(), pytest.raises(OSError) as raised:
        storage.download("audio/a", tmp_path / "out")
    assert raised.value.errno in DiskFull.errnos and not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError):
        storage.download("audio/a", tmp_path / "missing" / "out")
    with pytest.raises(NotFound):
        storage.download("audio/b", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("status", "code", "is_full"),
    [
        ("507 Insufficient Storage", "XMinioStorageFull", True),
        ("400 Bad Request", "XMinioAdminBucketQuotaExceeded", True),
        ("403 Forbidden", "QuotaExceeded", True),
        ("403 Forbidden", "AccessDenied", False),
        ("500 Internal Server Error", "InternalError", False),
    ],
)
def test_a_full_s3_server_reports_it(status: str, code: str, is_full: bool) -> None:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>507</Message></Error>".encode()
    with origin() as server:
        server.answer = [f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body]
        storage = Storage.open(S3Server(f"http://{server.address}:{server.port}").settings("full", store_timeout=60))
        with pytest.raises(StoreUnavailable) as raised:
            storage.put("audio/a", b"1")
    assert isinstance(raised.value, DiskFull) == is_full


def test_a_small_object_takes_one_request_to_s3(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"sound")
    with origin() as server:
        server.answer = ok(b"", 'ETag: "1"', "Connection: close")
        storage = Storage.open(S3Server(f"http://{server.address}:{server.port}").settings("few", store_timeout=60))
        asyncio.run(storage.put_local("audio/a", tmp_path / "in"))
        asyncio.run(storage.put_stream("audio/b", stream(b"sound"), 5))
        storage.put_file("audio/c", tmp_path / "in")
        storage.put("audio/d", b"sound")
    assert [request.split()[0] for request in server.requests] == [b"PUT"] * 4
    assert all(request.endswith(b"\r\n\r\nsound") for request in server.requests)


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 10), (3, 4), (9, 10), (5, 10)])
def test_ranges_are_exact(storage: Storage, start: int, end: int) -> None:
    asyncio.run(storage.put_stream("audio/a", stream(b"0123456789"), 100))
    assert asyncio.run(read(storage, "audio/a", start, end)) == b"0123456789"[start:end]


def test_a_stream_that_is_too_large_leaves_nothing(storage: Storage) -> None:
    with pytest.raises(UploadTooLarge):
        asyncio.run(storage.put_stream("audio/a", stream(bytes(12 * MIB)), 12 * MIB - 1))
    assert storage.keys("audio") == []


@pytest.mark.parametrize("error", [ValueError("the client disconnected"), asyncio.CancelledError()])
def test_a_failing_source_leaves_nothing(storage: Storage, error: BaseException) -> None:
    with pytest.raises(type(error)):
        asyncio.run(storage.put_stream("audio/a", stream(bytes(12 * MIB), error=error), 100 * MIB))
    assert storage.keys("audio") == []


def test_an_object_is_not_visible_before_it_is_complete(storage: Storage) -> None:
    async def watch_keys() -> AsyncIterator[bytes]:
        for _ in range(12):
            yield bytes(MIB)
            await asyncio.sleep(0.005)
            assert await asyncio.to_thread(storage.keys, "audio") == []

    asyncio.run(storage.put_stream("audio/a", watch_keys(), 100 * MIB))
    assert storage.keys("audio") == ["audio/a"]


def test_a_canceled_write_leaves_nothing(storage: Storage, tmp_path: Path) -> None:
    async def slow() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield bytes(MIB)
            await asyncio.sleep(0.02)

    async def canceled() -> None:
        writing = asyncio.ensure_future(storage.put_stream("audio/a", slow(), 10_000 * MIB))
        await asyncio.sleep(0.3)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await asyncio.sleep(0.3)

    asyncio.run(canceled())
    assert storage.keys("audio") == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_deletion_is_complete_and_idempotent(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x")
    for key in ("separations/a/1/0.flac", "separations/a/2/0.flac", "separations/ab/1/0.flac", "audio/a"):
        storage.put_file(key, tmp_path / "in")
    assert storage.delete_prefix("separations/a") == 2
    assert storage.delete_prefix("separations/a") == 0
    assert storage.keys("separations") == ["separations/ab/1/0.flac"]
    assert storage.delete_prefix("audio/a") == 0
    storage.delete("audio/a")
    assert storage.keys("audio") == []


def test_empty_folders_of_failed_writers_are_not_objects(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cut"):
        asyncio.run(storage.put_stream("separations/a/1/0.flac", stream(b"x", error=ValueError("cut")), 100))
    storage.delete("separations/a")
    assert storage.delete_prefix("separations/a") == 0
    assert not (tmp_path / "store" / "separations" / "a").exists()


def test_a_missing_object_is_not_found(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        storage.size("audio/a")
    with pytest.raises(NotFound):
        storage.download("audio/a", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(NotFound):
        asyncio.run(read(storage, "audio/a", 0, 1))


@pytest.mark.parametrize("key", ["", "/a", "a/", "../a", "a/../b", "a//b", "a b", "a#1", ".a", "a/.b", "a\n"])
def test_invalid_keys_are_refused(storage: Storage, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        storage.size(key)


def test_only_s3_has_signed_urls(storage: Storage) -> None:
    asyncio.run(storage.put_stream("audio/a", stream(b"signed"), 100))
    if not storage.can_sign:
        with pytest.raises(ValueError, match="cannot sign"):
            storage.signed_url("audio/a", 60)
        return
    url = storage.signed_url("audio/a", 60)
    assert httpx.get(url).content == b"signed"
    assert httpx.get(url[:-4] + "0000").status_code == 403
    assert httpx.get(url.partition("?")[0]).status_code == 403


def test_signed_urls_name_the_public_endpoint(seaweed: S3Server) -> None:
    settings = seaweed.settings("p", store_public_endpoint="http://store.example:1234")
    assert Storage.open(settings).signed_url("audio/a", 60).startswith("http://store.example:1234/earmark/p/audio/a?")


def test_a_store_that_responds_is_ready_and_nothing_is_left(storage: Storage) -> None:
    storage.check()
    storage.check(writes=False)
    assert storage.keys("readiness") == []


def test_a_store_that_is_full_is_ready(tmp_path: Path) -> None:
    """Jobs can be deleted there, which makes room."""
    storage = Storage.open(Settings(home=tmp_path))
    with full_disk(size=0):
        with pytest.raises(DiskFull):
            storage.put("audio/a", b"1")
        storage.check()


def test_a_folder_that_may_not_be_written_refuses(tmp_path: Path) -> None:
    with small_disk(tmp_path / "read-only", "ro"):
        storage = Storage.open(Settings(home=tmp_path, store=str(tmp_path / "read-only")))
        storage.check(writes=False)
        with pytest.raises(StoreRefused) as refused:
            storage.check()
        assert "EARMARK_STORE" in refused.value.advice and str(tmp_path) not in refused.value.detail
        with pytest.raises(StoreRefused):
            storage.put("audio/a", b"1")


def test_a_missing_folder_is_unavailable(tmp_path: Path) -> None:
    storage = Storage.open(Settings(home=tmp_path))
    (tmp_path / "store").rmdir()
    with pytest.raises(StoreUnavailable):
        storage.check()


def list_nothing(storage: Storage) -> None:
    storage.check(writes=False)


def put_two_parts(storage: Storage) -> None:
    asyncio.run(storage.put_stream("audio/a", stream(bytes(6 * MIB)), 100 * MIB))


@pytest.mark.parametrize("call", [list_nothing, put_two_parts])
def test_a_server_that_is_not_there_is_unavailable(call: Callable[[Storage], None]) -> None:
    with pytest.raises(StoreUnavailable):
        call(Storage.open(S3Server("http://127.0.0.1:9").settings("p", store_timeout=1)))


@pytest.mark.parametrize("call", [list_nothing, put_two_parts])
@pytest.mark.parametrize("answer", [[], [600.0]], ids=["closes", "is silent"])
def test_a_server_that_does_not_respond_is_unavailable_after_a_few_tries(
    answer: list[bytes | float], call: Callable[[Storage], None]
) -> None:
    with origin() as server:
        server.answer = answer  # it is silent for longer than a test may take
        with pytest.raises(StoreUnavailable):
            call(Storage.open(S3Server(f"http://{server.address}:{server.port}").settings("p", store_timeout=1)))
        assert 1 <= len(server.requests) <= 4


@pytest.mark.parametrize(
    ("wrong", "code"),
    [({"secret_key": "another"}, "SignatureDoesNotMatch"), ({"access_key": "another"}, "InvalidAccessKeyId")],
)
def test_wrong_credentials_are_refused_and_not_shown(
    seaweed: S3Server, wrong: dict[str, str], code: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage.open(replace(seaweed, **wrong).settings("p"))
    (name,) = wrong
    for call in (storage.check, partial(storage.put, "audio/a", b"1"), partial(storage.get, "audio/a")):
        with pytest.raises(StoreRefused) as refused:
            call()
        assert refused.value.advice == f"{code}: look at EARMARK_STORE_{name.upper()}."
        assert "another" not in refused.value.detail and seaweed.access_key not in refused.value.detail
    assert code in caplog.text and "another" not in caplog.text
    assert "Debug source" not in caplog.text, "the answer of the store is what helps, not obstore's structures"


def test_a_missing_bucket_is_refused_and_not_made(seaweed: S3Server) -> None:
    storage = Storage.open(seaweed.settings("p").model_copy(update={"store": "s3://no-such-bucket/p"}))
    for _ in range(2):
        with pytest.raises(StoreRefused, match="bucket of the object store does not exist") as refused:
            storage.check()
        assert "EARMARK_STORE" in refused.value.advice


def test_partial_files_of_killed_writers_are_deleted(tmp_path: Path) -> None:
    storage = Storage.open(Settings(home=tmp_path))
    partial = tmp_path / "store" / "audio" / "a#1"
    partial.parent.mkdir()
    partial.write_bytes(b"half")
    assert storage.sweep_unfinished(3600) == 0
    os.utime(partial, (0, 0))
    assert storage.sweep_unfinished(3600) == 1
    assert not partial.exists()
