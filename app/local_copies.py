"""Local copies of stored recordings, for child processes that read them."""

import asyncio
import errno
import logging
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import RawIOBase
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from app.errors import NotFound, StoreUnavailable
from app.storage import Storage

log = logging.getLogger("earmark.audio")

_KEPT_SECONDS = 60.0  # after its last use

# Errors of the system that pass: disk space, quota, open files, processes, memory.
_SHORTAGES = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


class LocalCopy:
    """A path at which a child process can read an upload: the store's own file, or a temporary copy of it.

    The copy is an unnamed file in the folder for temporary files (TMPDIR), which the system deletes when this process
    ends, however it ends. That folder belongs on a disk: a tmpfs is charged to the memory of the container.

    store_path: the object as a file of this machine, if the store is a folder (`Storage.local_path`).

    Raises `StoreUnavailable` if disk space, processes or open files run out while it is open.
    """

    def __init__(self, store_path: Path | None) -> None:
        self._store_path = store_path
        self._copy: RawIOBase | None = None

    def __enter__(self) -> "LocalCopy":
        if self._store_path is None:
            try:
                self._copy = tempfile.TemporaryFile(buffering=0)  # a child process reads it
            except OSError as error:
                raise _translate(error) from error
        return self

    def close(self) -> None:
        """Delete the copy."""
        if self._copy is not None:
            self._copy.close()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.close()
        if isinstance(error, OSError) and error.errno in _SHORTAGES:
            raise _translate(error) from error

    @property
    def path(self) -> Path:
        """Path of the file, complete once the stream has ended."""
        if self._copy is not None:
            return Path(f"/proc/{os.getpid()}/fd/{self._copy.fileno()}")
        assert self._store_path is not None  # noqa: S101 (one of the two is set)
        return self._store_path

    async def fill(self, key: str, size: int, storage: Storage) -> None:
        """Copy an object of `size` bytes from the store, unless the store has it as a file."""
        if self._copy is not None:
            async for _ in self.copy_chunks(await storage.open_range(key, 0, size)):
                pass

    async def copy_chunks(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Pass chunks through and copy them, unless the store has the object as a file."""
        async for chunk in chunks:
            if self._copy is not None:
                await run_in_threadpool(_write, self._copy, chunk)
            yield chunk


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

    def __init__(self, storage: Storage, max_bytes: int) -> None:
        self._storage = storage
        self._max_bytes = max_bytes
        self._kept: dict[str, _Kept] = {}  # by the object's key, the least recently used first

    @asynccontextmanager
    async def open(self, key: str, size: int) -> AsyncIterator[Path]:
        """Make an object of `size` bytes, which never changes, available at a path.

        Raises `NotFound` and `StoreUnavailable`.
        """
        path = self._storage.local_path(key)
        if path is not None:
            if not await run_in_threadpool(path.exists):
                raise NotFound("There is no such recording any more.")
            with LocalCopy(path):
                yield path
            return
        kept = self._kept.pop(key, None) or self._fetch(key, size)
        self._kept[key] = kept
        kept.users += 1
        if kept.expiry is not None:
            kept.expiry.cancel()
        try:
            await asyncio.shield(kept.filled)
            yield kept.copy.path
        except OSError as error:
            if error.errno in _SHORTAGES:
                raise _translate(error) from error
            raise
        finally:
            kept.users -= 1
            if not kept.users:
                self._release(key, kept)

    def close(self) -> None:
        """Drop all copies."""
        for key in list(self._kept):
            self._drop(key)

    def _fetch(self, key: str, size: int) -> _Kept:
        copy = LocalCopy(None).__enter__()
        filled = asyncio.create_task(copy.fill(key, size, self._storage))
        filled.add_done_callback(lambda done: done.cancelled() or done.exception())  # its users may have left
        return _Kept(copy, size, filled)

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


def _write(copy: RawIOBase, chunk: bytes) -> None:
    remaining = memoryview(chunk)
    while remaining:
        remaining = remaining[copy.write(remaining) or 0 :]


def _translate(error: OSError) -> StoreUnavailable:
    log.error("cannot keep the local copy of an upload, or cannot read it: %s", error)
    return StoreUnavailable("The server has no room for the upload at the moment.")
