"""All stems of a separation as one zip, stored and not compressed, made while it is sent."""

import time
import zipfile
from collections.abc import AsyncIterator

from app.records.separations import StemRecord, file_name
from app.storage import Storage


class _Sink:
    """Takes what a zip writer writes; having no position, it makes the writer put sizes behind the bytes."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, block: bytes) -> int:
        self._written += block
        return len(block)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is open."""

    def take(self) -> bytes:
        """What was written since the last call."""
        taken = bytes(self._written)
        self._written.clear()
        return taken


async def stream(storage: Storage, stems: list[StemRecord], made_at: float) -> AsyncIterator[bytes]:
    """The zip's bytes, a block of a stem at a time; `made_at`, seconds since 1970, is every entry's date in UTC.

    Raises `NotFound` and `StoreUnavailable` where a stem cannot be read.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for stem in stems:
            entry = zipfile.ZipInfo(file_name(stem), time.gmtime(made_at)[:6])
            entry.file_size = stem.bytes  # beyond 2 GiB the entry needs wider fields, from its first byte
            entry.external_attr = 0o644 << 16
            with archive.open(entry, "w") as file:
                if stem.bytes:
                    async for block in await storage.open_range(stem.key, 0, stem.bytes):
                        file.write(block)
                        yield sink.take()
            yield sink.take()
    yield sink.take()
