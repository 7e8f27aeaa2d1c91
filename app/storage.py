"""The object store: a local folder or S3 behind one interface (obstore).

A key is slash-separated words (`audio/ID`, `separations/ID/EXECUTION/0.flac`). An object appears whole or not at
all: a put that fails, or whose source fails, leaves nothing under its key. Types and file names live in records,
never here. What the store says about a failure is logged and not told to clients.
"""

import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from app.errors import NotFound, StoreUnavailable, UploadTooLarge
from app.metrics import store_seconds
from app.settings import Settings

log = logging.getLogger("earmark.storage")

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
_PART = 5 * 1024 * 1024  # bytes; S3's smallest part
_FOLDER_PART = 512 * 1024  # bytes; a folder's parts may be small
_PARTS_AT_ONCE = 4  # bounds what one upload holds in memory: parts x their size
_READ = 256 * 1024  # bytes handed on at a time when reading


@dataclass(frozen=True)
class StoredObject:
    """What was written: its size in bytes and the SHA-256 of its bytes, in hex."""

    bytes: int
    sha256: str


class Storage:
    """The store of one deployment. Safe to share between threads; holds no connection that needs closing.

    Every method raises `StoreUnavailable` when the store does not answer, and reading ones `NotFound`.
    """

    def __init__(self, store: LocalStore | S3Store, signer: S3Store | None = None, folder: Path | None = None) -> None:
        self._store = store
        self._signer = signer
        self._folder = folder

    @classmethod
    def open(cls, settings: Settings) -> "Storage":
        """The store that the settings name; a folder is made if it is missing."""
        location = settings.store_location
        if not location.startswith("s3://"):
            folder = Path(location)
            try:
                return cls(LocalStore(folder, mkdir=True, automatic_cleanup=True), folder=folder)
            except (BaseError, OSError) as error:
                log.error("cannot open the store's folder: %s", error)
                raise StoreUnavailable("The store's folder cannot be opened.") from error
        store = _s3(settings, settings.store_endpoint)
        public = settings.store_public_endpoint
        return cls(store, signer=_s3(settings, public) if public else store)

    @property
    def can_sign(self) -> bool:
        """Whether clients can be sent to the store itself."""
        return self._signer is not None

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], limit: int) -> StoredObject:
        """Write a stream of bytes, holding a few parts of it in memory.

        Raises `UploadTooLarge` after `limit` bytes, and whatever `chunks` raises; then nothing was stored.
        """
        digest, size = hashlib.sha256(), 0
        failure: BaseException | None = None

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size, failure
            gathered = bytearray()
            try:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > limit:
                        raise UploadTooLarge(limit)
                    digest.update(chunk)
                    gathered += chunk
                    if len(gathered) >= _READ:
                        yield bytes(gathered)
                        gathered.clear()
                if gathered:
                    yield bytes(gathered)
            except BaseException as error:
                failure = error
                raise

        with _observe("upload"):
            try:
                await obstore.put_async(
                    self._store,
                    _check_key(key),
                    counted(),
                    use_multipart=True,
                    chunk_size=_PART if self._folder is None else _FOLDER_PART,
                    max_concurrency=_PARTS_AT_ONCE,
                )
            except Exception as error:
                if failure is not None:  # the store wraps what the source raised; the caller wants the thing itself
                    raise failure from None
                log.error("upload %s: %s", key, error)
                raise StoreUnavailable() from error
        return StoredObject(size, digest.hexdigest())

    def put_file(self, key: str, path: Path) -> StoredObject:
        """Write a local file, block by block."""
        digest, size = hashlib.sha256(), 0

        def blocks() -> Iterator[bytes]:
            nonlocal size
            with path.open("rb") as file:
                while block := file.read(_PART):
                    digest.update(block)
                    size += len(block)
                    yield block

        with _translate_errors("put", key):
            obstore.put(
                self._store,
                _check_key(key),
                blocks(),
                use_multipart=True,
                chunk_size=_PART,
                max_concurrency=_PARTS_AT_ONCE,
            )
        return StoredObject(size, digest.hexdigest())

    def download(self, key: str, path: Path) -> int:
        """Read an object into a local file, block by block; the file is removed on failure. Returns its bytes."""
        size = 0
        try:
            with _translate_errors("get", key), path.open("wb") as file:
                for block in obstore.get(self._store, _check_key(key)).stream(min_chunk_size=_PART):
                    size += file.write(block)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return size

    async def open_range(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes `start` up to, not including, `end` (0 <= start < end <= size), as a stream that is already open."""
        with _translate_errors("open", key):
            found = await obstore.get_async(self._store, _check_key(key), options={"range": (start, end)})
        return _stream(key, found)

    async def read(self, key: str) -> bytes:
        """All bytes of a small object."""
        with _translate_errors("read", key):
            found = await obstore.get_async(self._store, _check_key(key))
            return bytes(await found.bytes_async())

    def size(self, key: str) -> int:
        """Bytes of an object."""
        with _translate_errors("size", key):
            return obstore.head(self._store, _check_key(key))["size"]

    def keys(self, prefix: str) -> list[str]:
        """All keys below a prefix (`separations/ID`), in no order."""
        with _translate_errors("list", prefix):
            return [entry["path"] for page in obstore.list(self._store, _check_key(prefix)) for entry in page]

    def delete(self, key: str) -> None:
        """Delete an object; deleting what is not there is no error."""
        if self._folder is not None and (self._folder / _check_key(key)).is_dir():
            return  # a prefix of other keys, not an object
        try:
            with _translate_errors("delete", key):
                obstore.delete(self._store, _check_key(key))
        except NotFound:
            pass

    def delete_prefix(self, prefix: str) -> int:
        """Delete the object of that key and everything below it; says how many were below."""
        found = self.keys(prefix)
        for key in found:
            self.delete(key)
        self.delete(prefix)
        if self._folder is not None:
            _prune(self._folder / prefix)
        return len(found)

    def signed_url(self, key: str, seconds: float, method: Literal["GET", "PUT"] = "GET") -> str:
        """An address that reads, or writes, the object for so many seconds; only where `signs`."""
        if self._signer is None:
            raise ValueError("a folder cannot sign addresses")
        with _translate_errors("sign", key):
            return obstore.sign(self._signer, method, _check_key(key), expires_in=timedelta(seconds=seconds))

    def local_path(self, key: str) -> Path | None:
        """Where the object lies if the store is a folder of this machine; read only."""
        return self._folder / _check_key(key) if self._folder else None

    def check(self) -> None:
        """Raise `StoreUnavailable` unless the store answers."""
        with _translate_errors("check", "readiness"):
            if self._folder is not None:
                if not self._folder.is_dir():
                    raise StoreUnavailable()
            else:
                for _ in obstore.list(self._store, "readiness", chunk_size=1):
                    pass

    def sweep_unfinished(self, older_than: float) -> int:
        """Delete what writers killed in mid-write left in a folder (`KEY#1`), untouched for so many seconds.

        S3 hides such parts and drops them by a lifecycle rule of the bucket. Returns how many were deleted.
        """
        deleted = 0
        if self._folder is not None:
            for path in self._folder.rglob("*#*"):
                try:
                    if path.is_file() and time.time() - path.stat().st_mtime > older_than:
                        path.unlink()
                        deleted += 1
                except FileNotFoundError:  # finished, or swept by another, meanwhile
                    continue
        return deleted


def _prune(folder: Path) -> None:
    """Remove empty folders, which writers that failed leave behind."""
    for place in [*sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True), folder]:
        with suppress(OSError):  # not empty, or gone
            place.rmdir()


async def _stream(key: str, found: "obstore.GetResult") -> AsyncIterator[bytes]:
    with _translate_errors("read", key):
        async for block in found.stream(min_chunk_size=_READ):
            yield bytes(block)


@contextmanager
def _translate_errors(operation: str, key: str) -> Iterator[None]:
    """Turn the store's errors into ours, and count the call."""
    with _observe(operation):
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound("The object is not in the store.") from error
        except BaseError as error:
            log.error("%s %s: %s", operation, key, error)
            raise StoreUnavailable() from error


@contextmanager
def _observe(operation: str) -> Iterator[None]:
    """A call's seconds and outcome, for Prometheus; one that its caller breaks off is none."""
    begun = time.perf_counter()
    outcome = None
    try:
        yield
        outcome = "ok"
    except NotFound:
        outcome = "missing"
        raise
    except StoreUnavailable:
        outcome = "failed"
        raise
    finally:
        if outcome is not None:
            store_seconds.labels(operation, outcome).observe(time.perf_counter() - begun)


def _check_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a key of the store: {key!r}")
    return key


def _s3(settings: Settings, endpoint: str | None) -> S3Store:
    place = urlsplit(settings.store_location)
    options: dict = {"region": settings.store_region, "prefix": place.path.strip("/") or None}
    if endpoint:
        options["endpoint"] = endpoint
    if settings.store_access_key and settings.store_secret_key:
        options["access_key_id"] = settings.store_access_key.get_secret_value()
        options["secret_access_key"] = settings.store_secret_key.get_secret_value()
    silence = timedelta(seconds=settings.store_timeout)
    return S3Store(
        place.netloc,
        client_options={
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "connect_timeout": timedelta(seconds=5),
            "read_timeout": silence,
            "timeout": timedelta(days=1),  # whole transfers may be long; silence is what counts
        },
        retry_config={"max_retries": 3, "retry_timeout": silence},
        **options,
    )
