"""The object store: a local folder or S3 behind one interface (obstore).

A key is slash-separated words (`audio/ID`, `separations/ID/EXECUTION/0.flac`). Writes are atomic: a put that fails, or
whose source fails, leaves nothing under its key. Media types and file names are in the records, not in the store. The
store's error messages are logged and not sent to clients.
"""

import errno
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, S3Store

from app.errors import DiskFull, NotFound, StoreRefused, StoreUnavailable, UploadTooLarge
from app.metrics import store_seconds
from app.settings import Bucket, Settings

log = logging.getLogger("earmark.storage")

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
# What S3 servers say when their disks, or the quota of a bucket, are used up: HTTP's status, or a code.
_FULL = re.compile(r"status code: 507\b|<Code>(XMinioStorageFull|XMinioAdminBucketQuotaExceeded|QuotaExceeded)</Code>")
# The smallest part that S3 accepts. Unfinished resumable uploads have pieces of this size.
PART_BYTES = 5 * 1024 * 1024
_FOLDER_PART_BYTES = 512 * 1024  # a folder accepts smaller parts
CONCURRENT_PARTS = 4  # that are sent at once; one more fills meanwhile
_CHUNK_BYTES = 256 * 1024  # of a stream that is read or written
_NO_BUCKET = "<Code>NoSuchBucket</Code>"  # in an answer of S3
_PAGE = 1000  # objects of one page of a listing
_CHECK_FOLDER = "readiness"
_READ_ONLY = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# What to look at where S3 refuses a call, by its code.
_ADVICE = {
    "AccessDenied": "the rights of EARMARK_STORE_ACCESS_KEY in the bucket of EARMARK_STORE",
    "InvalidAccessKeyId": "EARMARK_STORE_ACCESS_KEY",
    "RequestTimeTooSkewed": "the clock of this machine",
    "SignatureDoesNotMatch": "EARMARK_STORE_SECRET_KEY",
}
_ADVICE_ELSE = "EARMARK_STORE, EARMARK_STORE_ENDPOINT, EARMARK_STORE_ACCESS_KEY and EARMARK_STORE_SECRET_KEY"


@dataclass(frozen=True)
class StoredObject:
    """A written object: its size in bytes and the SHA-256 of its content, in hex."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class StoredEntry:
    """An object in a listing: its key and its size in bytes."""

    key: str
    bytes: int


def check_size(size: int, limit: int) -> None:
    """Raise `UploadTooLarge` if a file of `size` bytes exceeds the limit."""
    if size > limit:
        raise UploadTooLarge(limit)


class Storage:
    """The object store of one deployment. May be shared between threads; needs no closing.

    Every method raises `StoreUnavailable` if the store does not respond, and `StoreRefused` if it refuses this server;
    methods that read raise `NotFound`.
    """

    def __init__(self, store: LocalStore | S3Store, signer: S3Store | None = None, folder: Path | None = None) -> None:
        self._store = store
        self._signer = signer
        self._folder = folder
        self._has_bucket = folder is not None  # S3 only: whether the bucket was seen

    @classmethod
    def open(cls, settings: Settings) -> "Storage":
        """Open the store that the settings name; create its folder if it does not exist."""
        bucket = settings.bucket
        if bucket is None:
            folder = Path(settings.store_location)
            try:
                return cls(LocalStore(folder, mkdir=True, automatic_cleanup=True), folder=folder)
            except (BaseError, OSError) as error:
                log.error("cannot open the store's folder: %s", error)
                raise _translate(error, "The store's folder cannot be opened.") from error
        store = _s3(settings, bucket, settings.store_endpoint)
        public = settings.store_public_endpoint
        return cls(store, signer=_s3(settings, bucket, public) if public else store)

    @property
    def can_sign(self) -> bool:
        """Whether the store has signed URLs, for clients to read from it and write to it directly."""
        return self._signer is not None

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], limit: int) -> StoredObject:
        """Write a stream of bytes, with a few parts of it in memory at a time.

        Raises `UploadTooLarge` after `limit` bytes, and what `chunks` raises; then nothing is stored.
        """
        digest, size = hashlib.sha256(), 0
        failure: BaseException | None = None

        async def regroup() -> AsyncIterator[bytes]:
            nonlocal size, failure
            buffer = bytearray()
            try:
                async for chunk in chunks:
                    size += len(chunk)
                    check_size(size, limit)
                    digest.update(chunk)
                    buffer += chunk
                    if len(buffer) >= _CHUNK_BYTES:
                        yield bytes(buffer)
                        buffer.clear()
                if buffer:
                    yield bytes(buffer)
            except GeneratorExit:  # the store has failed, and reads no more
                raise
            except BaseException as error:
                failure = error
                raise

        with _observe("upload"):
            try:
                await self._put(key, regroup(), limit)
            except Exception as error:
                if failure is not None:  # obstore wraps the source's error: raise the original
                    raise failure from None
                log.error("upload %s: %s", key, _in_short(error))
                raise _translate(error) from error
        return StoredObject(size, digest.hexdigest())

    async def put_local(self, key: str, path: Path) -> None:
        """Write a local file, which the store's client reads itself, with a few parts of it in memory at a time."""
        with _observe("upload"):
            try:
                await self._put(key, path, path.stat().st_size)
            except Exception as error:
                log.error("upload %s: %s", key, _in_short(error))
                raise _translate(error) from error

    async def _put(self, key: str, source: AsyncIterator[bytes] | Path, size: int) -> None:
        """Write an object of at most `size` bytes: in parts, or in one request instead of three if it is one part."""
        part = PART_BYTES if self._folder is None else _FOLDER_PART_BYTES
        await obstore.put_async(
            self._store,
            _check_key(key),
            source,
            use_multipart=size > part,
            chunk_size=part,
            max_concurrency=CONCURRENT_PARTS,
        )

    def put_file(self, key: str, path: Path) -> StoredObject:
        """Write a local file, block by block."""
        digest, size = hashlib.sha256(), 0

        def blocks() -> Iterator[bytes]:
            nonlocal size
            with path.open("rb") as file:
                while block := file.read(PART_BYTES):
                    digest.update(block)
                    size += len(block)
                    yield block

        with _translate_errors("put", key):
            obstore.put(
                self._store,
                _check_key(key),
                blocks(),
                use_multipart=path.stat().st_size > PART_BYTES,
                chunk_size=PART_BYTES,
                max_concurrency=CONCURRENT_PARTS,
            )
        return StoredObject(size, digest.hexdigest())

    def put(self, key: str, content: bytes) -> None:
        """Write a small object."""
        with _translate_errors("put", key):
            obstore.put(self._store, _check_key(key), content)

    def get(self, key: str) -> bytes:
        """Return the content of a small object, for callers outside of an event loop; see `read`."""
        with _translate_errors("get", key):
            return bytes(obstore.get(self._store, _check_key(key)).bytes())

    def download(self, key: str, path: Path) -> int:
        """Read an object into a local file, block by block; return its size. The file is deleted on failure.

        Raises OSError if the file cannot be written, on a full disk for example, which is not the store's.
        """
        size = 0
        try:
            with path.open("wb") as file, closing(self._blocks(key)) as blocks:
                for block in blocks:
                    size += file.write(block)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return size

    def _blocks(self, key: str) -> Generator[bytes | obstore.Bytes]:
        with _translate_errors("get", key):
            result = obstore.get(self._store, _check_key(key))
            if result.meta["size"] <= PART_BYTES:
                yield result.bytes()  # a stream gathers its blocks from small ones, which takes five times as long
            else:
                yield from result.stream(min_chunk_size=PART_BYTES)

    async def open_range(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Open a stream of the bytes from `start` up to, not including, `end` (0 <= start < end <= size)."""
        with _translate_errors("open", key):
            result = await obstore.get_async(self._store, _check_key(key), options={"range": (start, end)})
        return _stream(key, result)

    async def write(self, key: str, content: bytes) -> None:
        """Write an object of at most `PART_BYTES`, in one request."""
        with _translate_errors("write", key):
            await obstore.put_async(self._store, _check_key(key), content)

    async def read(self, key: str) -> bytes:
        """Return the content of a small object."""
        with _translate_errors("read", key):
            result = await obstore.get_async(self._store, _check_key(key))
            return bytes(await result.bytes_async())

    def size(self, key: str) -> int:
        """Return the size of an object in bytes."""
        with _translate_errors("size", key):
            return obstore.head(self._store, _check_key(key))["size"]

    def keys(self, prefix: str) -> list[str]:
        """Return all keys below a prefix (`separations/ID`), in no particular order."""
        with _translate_errors("list", prefix):
            return [entry["path"] for page in obstore.list(self._store, _check_key(prefix)) for entry in page]

    def pages(self, prefix: str) -> Iterator[list[StoredEntry]]:
        """Return all objects below a prefix, page by page, in no particular order; each page is a call of its own."""
        listing = obstore.list(self._store, _check_key(prefix), chunk_size=_PAGE)
        while True:
            with _translate_errors("list", prefix):
                page = next(listing, None)
            if page is None:
                return
            yield [StoredEntry(entry["path"], entry["size"]) for entry in page]

    def delete(self, key: str) -> None:
        """Delete an object; a missing one is not an error."""
        if self._folder is not None and (self._folder / _check_key(key)).is_dir():
            return  # a prefix of other keys, not an object
        try:
            with _translate_errors("delete", key):
                obstore.delete(self._store, _check_key(key))
        except NotFound:
            pass

    def delete_prefix(self, prefix: str) -> int:
        """Delete the object with this key and all objects below it; return how many were below."""
        keys = self.keys(prefix)
        for key in keys:
            self.delete(key)
        self.delete(prefix)
        if self._folder is not None:
            _prune(self._folder / prefix)
        return len(keys)

    def signed_url(self, key: str, seconds: float, method: Literal["GET", "PUT"] = "GET") -> str:
        """Return a URL that reads or writes the object for `seconds`. Raises ValueError unless `can_sign`."""
        if self._signer is None:
            raise ValueError("a folder cannot sign URLs")
        with _translate_errors("sign", key):
            return obstore.sign(self._signer, method, _check_key(key), expires_in=timedelta(seconds=seconds))

    def local_path(self, key: str) -> Path | None:
        """Return the object's path, for reading only, if the store is a folder of this machine; None otherwise."""
        return self._folder / _check_key(key) if self._folder else None

    def check(self, writes: bool = True) -> None:
        """Raise `StoreUnavailable` unless the store responds, lets itself be listed and, if asked, written.

        A full one does: then the errors of uploads and jobs say so.
        """
        with suppress(DiskFull), _translate_errors("check", _CHECK_FOLDER):
            if self._folder is not None:
                if not self._folder.is_dir():
                    raise StoreUnavailable()
            else:
                for _ in obstore.list(self._store, _CHECK_FOLDER, chunk_size=1):
                    pass
            if writes:
                key = f"{_CHECK_FOLDER}/written"
                obstore.put(self._store, key, b"1")
                with suppress(BaseError, FileNotFoundError):  # another process has deleted it, or this one may not
                    obstore.delete(self._store, key)

    async def require_bucket(self) -> None:
        """Raise `StoreUnavailable` if the store's bucket does not exist; asks until it has been seen once.

        Some servers create a bucket with its first object, so that a misspelled one would fill unnoticed.
        """
        if not self._has_bucket:
            with _translate_errors("check", "bucket"):
                async for _ in obstore.list(self._store, _CHECK_FOLDER, chunk_size=1):
                    break
            self._has_bucket = True

    def sweep_unfinished(self, older_than: float) -> int:
        """Delete partial files (`KEY#1`) of killed writers, not modified for `older_than` seconds; return how many.

        Only a folder has them: S3 hides unfinished uploads, and a lifecycle rule of the bucket deletes them.
        """
        deleted = 0
        if self._folder is not None:
            for path in self._folder.rglob("*#*"):
                try:
                    if path.is_file() and time.time() - path.stat().st_mtime > older_than:
                        path.unlink()
                        deleted += 1
                except FileNotFoundError:  # finished, or deleted by another process
                    continue
        return deleted


def _prune(folder: Path) -> None:
    """Delete empty folders, which failed writers leave behind."""
    for path in [*sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True), folder]:
        with suppress(OSError):  # not empty, or missing
            path.rmdir()


async def _stream(key: str, result: "obstore.GetResult") -> AsyncIterator[bytes]:
    with _translate_errors("read", key):
        async for chunk in result.stream(min_chunk_size=_CHUNK_BYTES):
            yield bytes(chunk)


@contextmanager
def _translate_errors(operation: str, key: str) -> Iterator[None]:
    """Translate obstore's errors into ours, and observe the call."""
    with _observe(operation):
        try:
            yield
        except FileNotFoundError as error:
            if _NO_BUCKET in str(error):
                raise _translate(error) from error
            raise NotFound("The object is not in the store.") from error
        except BaseError as error:
            log.error("%s %s: %s", operation, key, _in_short(error))
            raise _translate(error) from error


def _in_short(error: Exception) -> str:
    """Return the text of an error without the structures of obstore at its end: thirty lines about one address."""
    return str(error).partition("\n\nDebug source:")[0]


def _translate(error: Exception, detail: str = "") -> StoreUnavailable:
    """Return our error for one of obstore's, which has the system's number of an error, or S3's code, in its text."""
    text = str(error)
    found = re.search(r"\(os error (\d+)\)", text)
    number = int(found[1]) if found else None
    if number in DiskFull.errnos or _FULL.search(text):
        return DiskFull("The store's disk is full.")
    if number in _READ_ONLY:
        return StoreRefused("The store's folder may not be used.", "Look at the owner and the mode of EARMARK_STORE.")
    if _NO_BUCKET in text:
        advice = "NoSuchBucket: look at EARMARK_STORE and EARMARK_STORE_ENDPOINT."
        return StoreRefused("The bucket of the object store does not exist.", advice)
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or re.search(r"status code: 40[13]\b", text):
        code = re.search(r"<Code>(\w+)</Code>", text)
        reason = code[1] if code else "it does not say why"
        advice = f"{reason}: look at {_ADVICE.get(reason, _ADVICE_ELSE)}."
        return StoreRefused("The object store refuses this server's account.", advice)
    return StoreUnavailable(detail)


@contextmanager
def _observe(operation: str) -> Iterator[None]:
    """Observe a call's duration and outcome for Prometheus, unless its caller cancels it."""
    start = time.perf_counter()
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
            store_seconds.labels(operation, outcome).observe(time.perf_counter() - start)


def _check_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a key of the store: {key!r}")
    return key


def _s3(settings: Settings, bucket: Bucket, endpoint: str | None) -> S3Store:
    options: dict = {"region": settings.store_region, "prefix": bucket.prefix or None}
    if endpoint:
        options["endpoint"] = endpoint
    if settings.store_access_key and settings.store_secret_key:
        options["access_key_id"] = settings.store_access_key.get_secret_value()
        options["secret_access_key"] = settings.store_secret_key.get_secret_value()
    timeout = timedelta(seconds=settings.store_timeout)
    return S3Store(
        bucket.name,
        client_options={
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "connect_timeout": timedelta(seconds=5),
            "read_timeout": timeout,
            "timeout": timedelta(days=1),  # of a whole transfer, which may be long; `read_timeout` ends a stalled one
        },
        retry_config={"max_retries": 3, "retry_timeout": timeout},
        **options,
    )
