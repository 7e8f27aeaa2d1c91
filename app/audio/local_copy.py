"""Uploads as files of this machine, for child processes that read them."""

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
    """A path where a child process finds an upload's bytes: the store's own file, or a copy made while they stream by.

    The copy has no name in any folder, so that it is gone with this process, whatever the process dies of.
    """

    def __init__(self, stored: Path | None) -> None:
        self._stored = stored
        self._copy: IO[bytes] | None = None

    def __enter__(self) -> "LocalCopy":
        if self._stored is None:
            self._copy = tempfile.TemporaryFile()
        return self

    def __exit__(self, *_: object) -> None:
        if self._copy is not None:
            self._copy.close()

    @property
    def path(self) -> Path:
        """Where to look, once the stream is at its end."""
        if self._copy is not None:
            return Path(f"/proc/{os.getpid()}/fd/{self._copy.fileno()}")
        assert self._stored is not None  # noqa: S101 (one of the two is there)
        return self._stored

    async def fill(self, key: str, size: int, storage: Storage) -> None:
        """Fetch an object of so many bytes from the store, unless its own file is there."""
        if self._copy is not None:
            async for _ in self.copy_chunks(await storage.open_range(key, 0, size)):
                pass

    async def copy_chunks(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same chunks, copied on the way where there is no file of the store's own."""
        async for chunk in chunks:
            if self._copy is not None:
                await run_in_threadpool(_written, self._copy, chunk)
            yield chunk


def _written(copy: IO[bytes], chunk: bytes) -> None:
    try:
        copy.write(chunk)
        copy.flush()  # the child is another process
    except OSError as error:
        log.error("cannot copy an upload for its child: %s", error)
        raise StoreUnavailable("There is no room for the upload now.") from error
