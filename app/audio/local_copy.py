"""Local copies of uploads, for child processes that read them."""

import logging
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from starlette.concurrency import run_in_threadpool

from app.errors import StoreUnavailable
from app.storage import Storage

log = logging.getLogger("earmark.audio")


class LocalCopy:
    """A path at which a child process can read an upload: the store's own file, or a temporary copy of it.

    The copy is an unnamed file, which the system deletes when this process ends, however it ends.

    store_path: the object as a file of this machine, if the store is a folder (`Storage.local_path`).
    """

    def __init__(self, store_path: Path | None) -> None:
        self._store_path = store_path
        self._copy: IO[bytes] | None = None

    def __enter__(self) -> "LocalCopy":
        if self._store_path is None:
            self._copy = tempfile.TemporaryFile()
        return self

    def __exit__(self, *_: object) -> None:
        if self._copy is not None:
            self._copy.close()

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


def _write(copy: IO[bytes], chunk: bytes) -> None:
    try:
        copy.write(chunk)
        copy.flush()  # a child process reads it
    except OSError as error:
        log.error("cannot write the local copy of an upload: %s", error)
        raise StoreUnavailable("The server has no disk space for the upload at the moment.") from error
