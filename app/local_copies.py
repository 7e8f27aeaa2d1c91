"""Local copies of uploads and of stored recordings, for child processes that read them."""

import asyncio
import errno
import hashlib
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from io import RawIOBase
from pathlib import Path

import anyio
from starlette.concurrency import run_in_threadpool

from app.errors import DiskFull, NotFound, Overloaded, StoreUnavailable
from app.storage import Storage, StoredObject, check_size

log = logging.getLogger("earmark.audio")

_KEPT_SECONDS = 60.0  # after its last use

# Of an upload, written together: for each write a thread wakes, and then the event loop, and what clients send arrives
# in smaller pieces.
_BYTES_AT_ONCE, _PIECES_AT_ONCE = 1 << 18, 16

# Errors of the system that pass: disk space and quota; open files, processes, memory.
_SHORTAGES = {*DiskFull.errnos, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}


class LocalCopy:
    """A temporary copy of an upload, at a path at which a child process can read it.

    The copy is an unnamed file in the folder for temporary files (TMPDIR), which the system deletes when this process
    ends, however it ends. That folder belongs on a disk: a tmpfs is charged to the memory of the container.

    Raises `DiskFull` if disk space runs out while it is open, `Overloaded` if processes or open files do.
    """

    def __enter__(self) -> "LocalCopy":
        try:
            self._copy: RawIOBase = tempfile.TemporaryFile(buffering=0)  # a child process reads it
        except OSError as error:
            raise _translate(error) from error
        return self

    def close(self) -> None:
        """Delete the copy."""
        self._copy.close()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.close()
        if isinstance(error, OSError) and error.errno in _SHORTAGES:
            raise _translate(error) from error

    @property
    def path(self) -> Path:
        """Path of the copy, complete once it is written."""
        return Path(f"/proc/{os.getpid()}/fd/{self._copy.fileno()}")

    async def write(self, chunks: AsyncIterator[bytes], limit: int) -> StoredObject:
        """Write a stream of bytes. Raises `UploadTooLarge` after `limit` bytes, and what `chunks` raises."""
        digest, size, written = hashlib.sha256(), 0, 0
        waiting: list[bytes] = []
        async for chunk in chunks:
            size += len(chunk)
            check_size(size, limit)
            waiting.append(chunk)
            if size - written >= _BYTES_AT_ONCE or len(waiting) == _PIECES_AT_ONCE:
                await run_in_threadpool(_write, self._copy, waiting, digest)
                waiting, written = [], size
        if waiting:
            await run_in_threadpool(_write, self._copy, waiting, digest)
        return StoredObject(size, digest.hexdigest())


class _Kept:
    """A copy that requests share, and the task that fills it."""

    def __init__(self, copy: LocalCopy, size: int, filled: asyncio.Task[None]) -> None:
        self.copy = copy
        self.size = size
        self.filled = filled
        self.users = 0
        self.expiry: asyncio.TimerHandle | None = None  # set while nobody uses it


class LocalCopies:
    """Copies that requests share: a page asks for many parts of one recording, at once and one after the other.

    A copy is kept for a minute after its last use, while those that nobody uses have at most `max_bytes`. Objects that
    are files of this machine are not copied. For the event loop of the server only.
    """

    def __init__(self, storage: Storage, max_bytes: int, timeout: float) -> None:
        self._storage = storage
        self._max_bytes = max_bytes
        self._timeout = timeout  # s in which a copy is made
        self._kept: dict[str, _Kept] = {}  # by the object's key, the least recently used first

    @asynccontextmanager
    async def open(self, key: str, size: int) -> AsyncIterator[Path]:
        """Make an object of `size` bytes, which never changes, available at a path.

        Raises `NotFound`, `DiskFull`, `Overloaded`, and `StoreUnavailable`, also if copying takes too long.
        """
        path = self._storage.local_path(key)
        if path is not None:
            if not await run_in_threadpool(path.exists):
                raise NotFound("There is no such recording any more.")
            with _translate_shortages():
                yield path
            return
        kept = self._kept.pop(key, None) or self._fetch(key, size)
        self._kept[key] = kept
        kept.users += 1
        if kept.expiry is not None:
            kept.expiry.cancel()
        try:
            with _translate_shortages():
                with anyio.move_on_after(self._timeout) as copying:
                    await asyncio.shield(kept.filled)
                if copying.cancelled_caught:
                    raise StoreUnavailable("Reading the recording from the store took too long.")
                yield kept.copy.path
        finally:
            kept.users -= 1
            if not kept.users:
                self._release(key, kept)

    def close(self) -> None:
        """Drop all copies."""
        for key in list(self._kept):
            self._drop(key)

    def _fetch(self, key: str, size: int) -> _Kept:
        copy = LocalCopy().__enter__()
        filled = asyncio.create_task(self._fill(copy, key, size))
        filled.add_done_callback(lambda done: done.cancelled() or done.exception())  # its users may have left
        return _Kept(copy, size, filled)

    async def _fill(self, copy: LocalCopy, key: str, size: int) -> None:
        await copy.write(await self._storage.open_range(key, 0, size), size)

    def _release(self, key: str, kept: _Kept) -> None:
        """Keep a copy that nobody uses for a while, unless it is incomplete."""
        if not kept.filled.done() or kept.filled.cancelled() or kept.filled.exception() is not None:
            self._drop(key)
            return
        kept.expiry = asyncio.get_running_loop().call_later(_KEPT_SECONDS, self._drop, key)
        unused = {other: each for other, each in self._kept.items() if not each.users}
        excess = sum(each.size for each in unused.values()) - self._max_bytes
        for other, each in unused.items():
            if excess <= 0:
                return
            self._drop(other)
            excess -= each.size

    def _drop(self, key: str) -> None:
        kept = self._kept.pop(key)
        if kept.expiry is not None:
            kept.expiry.cancel()
        if kept.filled.done():
            kept.copy.close()
        else:
            kept.filled.add_done_callback(lambda _: kept.copy.close())
            kept.filled.cancel()


def _write(copy: RawIOBase, chunks: Iterable[bytes], digest: "hashlib._Hash") -> None:
    for chunk in chunks:
        digest.update(chunk)
        remaining = memoryview(chunk)
        while remaining:
            remaining = remaining[copy.write(remaining) or 0 :]


@contextmanager
def _translate_shortages() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _SHORTAGES:
            raise _translate(error) from error
        raise


def _translate(error: OSError) -> DiskFull | Overloaded:
    log.error("cannot keep the local copy of an upload, or cannot read it: %s", error)
    if error.errno in DiskFull.errnos:
        return DiskFull("The server's disk for uploads in flight is full.")
    return Overloaded("The server has no room for the upload at the moment.")
