"""Local copies of uploads, for child processes that read them."""

import errno
import logging
import os
import tempfile
from collections.abc import AsyncIterator
from io import RawIOBase
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from app.errors import DiskFull, Overloaded
from app.storage import Storage

log = logging.getLogger("earmark.audio")

# Errors of the system that pass: open files, processes, memory.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


class LocalCopy:
    """A path at which a child process can read an upload: the store's own file, or a temporary copy of it.

    The copy is an unnamed file in the folder for temporary files (TMPDIR), which the system deletes when this process
    ends, however it ends. That folder belongs on a disk: a tmpfs is charged to the memory of the container.

    store_path: the object as a file of this machine, if the store is a folder (`Storage.local_path`).

    Raises `DiskFull` if disk space runs out while it is open, `Overloaded` if processes or open files do.
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

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._copy is not None:
            self._copy.close()
        if isinstance(error, OSError) and error.errno in {*DiskFull.errnos, *_SHORTAGES}:
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


def _write(copy: RawIOBase, chunk: bytes) -> None:
    remaining = memoryview(chunk)
    while remaining:
        remaining = remaining[copy.write(remaining) or 0 :]


def _translate(error: OSError) -> DiskFull | Overloaded:
    log.error("cannot keep the local copy of an upload, or cannot read it: %s", error)
    if error.errno in DiskFull.errnos:
        return DiskFull("The server's disk for uploads in flight is full.")
    return Overloaded("The server has no room for the upload at the moment.")
