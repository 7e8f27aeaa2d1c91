"""All stems of a separation as one zip, without compression, made while it is sent."""

import time
import zipfile
from collections.abc import AsyncIterator

from app.records.separations import StemRecord
from app.separations.file_names import file_names
from app.storage import Storage


class _Sink:
    """Buffer for a zip writer; since it cannot seek, the writer puts sizes behind the bytes."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, block: bytes) -> int:
        self._written += block
        return len(block)

    def flush(self) -> None:
        """Do nothing: the buffer is read with `take`."""

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def take(self) -> bytes:
        """Return and clear what was written since the last call."""
        block = bytes(self._written)
        self._written.clear()
        return block


async def stream(
    storage: Storage, stems: list[StemRecord], source: str | None, modified_at: float
) -> AsyncIterator[bytes]:
    """Yield the zip, a block of a stem at a time.

    `source`: the name of the recording's file. `modified_at`, seconds since 1970, is every entry's date in UTC.

    Raises `NotFound` and `StoreUnavailable` if a stem cannot be read.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for stem, name in zip(stems, file_names(stems, source), strict=True):
            entry = zipfile.ZipInfo(name, time.gmtime(modified_at)[:6])
            entry.file_size = stem.bytes  # above 2 GiB the entry needs wider fields (ZIP64) from its first byte
            entry.external_attr = 0o644 << 16
            with archive.open(entry, "w") as file:
                if stem.bytes:
                    async for block in await storage.open_range(stem.key, 0, stem.bytes):
                        file.write(block)
                        yield sink.take()
            yield sink.take()
    yield sink.take()
