"""Resumable uploads: a file that arrives in any number of requests, each of which any front-end process may receive.

The bytes wait in the store, in pieces of `PART_BYTES`. A piece counts from the moment at which the record lists it, so
that a process may die at any time and the client goes on after the last one; and a request can add a piece only where
the record still ends at the offset from which it continued, so that concurrent requests cannot mix their bytes.

The last piece is not listed: the request that brings it completes the upload, like a presigned one. Until that has
succeeded the client is told to send the piece again.
"""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from starlette.concurrency import run_in_threadpool

from app.audio import completion, service
from app.dependencies import Dependencies
from app.errors import NotFound, OffsetMismatch, StoreUnavailable
from app.http import access_log
from app.records.audio import Audio, PendingUpload, piece_key
from app.records.ids import AUDIO, new_id
from app.storage import PART_BYTES, check_size

_OVERTAKEN = "Another request has continued this upload."


def create(deps: Dependencies, size: int, filename: str | None, metadata: str) -> PendingUpload:
    """Create a resumable upload of `size` bytes; return it.

    Raises `UploadTooLarge`, and `QuotaExceeded` if the caller has too many pending uploads.
    """
    check_size(size, deps.settings.upload_bytes)
    now = deps.clock.now()
    pending = PendingUpload(
        id=new_id(AUDIO, now),
        owner=deps.caller.key_id,
        filename=service.sanitize_filename(filename),
        bytes=size,
        created_at=now,
        expires_at=now + deps.settings.upload_retention,
        offset=0,
        metadata=metadata,
    )
    with deps.budgets.count_refusal("awaited_uploads"):
        deps.audio.create_pending(pending, now)
    access_log.note_made(pending.id)
    return pending


def find(deps: Dependencies, audio_id: str) -> tuple[int, PendingUpload | Audio]:
    """Return how many bytes of an upload have arrived, and its record, which is an `Audio` if all have.

    Raises `NotFound`, also for uploads of others and for presigned ones that are pending.
    """
    with suppress(NotFound):
        audio = service.find(deps, audio_id)
        return audio.bytes, audio
    pending = completion.find_pending(deps, audio_id)
    if pending.offset is None:
        raise NotFound("There is no such audio.")
    return pending.offset, pending


async def append(
    deps: Dependencies, audio_id: str, offset: int, receive_chunks: Callable[[int], AsyncIterator[bytes]]
) -> int:
    """Add bytes to an upload at an offset, and complete it with the last; return the offset that follows.

    receive_chunks: returns the bytes, with a limit of their number. What has arrived counts even if they end with an
    error. Raises `NotFound`, `OffsetMismatch`, what the chunks, the budgets and the store raise, and what completion
    raises.
    """
    arrived, pending = await run_in_threadpool(find, deps, audio_id)
    if offset != arrived:
        raise OffsetMismatch(f"The upload goes on at {arrived}.")
    if isinstance(pending, Audio):
        return arrived
    writer = _PieceWriter(deps, pending)
    async with service.occupy(deps, receive_chunks(pending.bytes - offset)) as chunks:
        await writer.load_last_piece()
        try:
            async for chunk in chunks:
                await writer.add(chunk)
        finally:
            await writer.flush()
    if writer.upload.offset == pending.bytes:

        async def receive(recorded: PendingUpload) -> Audio:
            if recorded.offset != writer.recorded_offset:
                raise OffsetMismatch(_OVERTAKEN)
            return await completion.receive_stored(deps, recorded, _read(deps, writer.upload))

        await completion.complete(deps, audio_id, receive)
    return writer.upload.offset or 0


class _PieceWriter:
    """Writes bytes that follow the offset of an upload; `upload` is its record with all pieces that are written."""

    def __init__(self, deps: Dependencies, upload: PendingUpload) -> None:
        self._deps = deps
        self._buffer = bytearray()  # from the start of the piece that is being filled
        self.upload = upload
        self.recorded_offset = upload.offset or 0

    async def load_last_piece(self) -> None:
        """Continue the last piece if it is not full, so that their number depends on the size of the file alone.

        Raises `OffsetMismatch` and `StoreUnavailable`.
        """
        if size := self.recorded_offset % PART_BYTES:
            key = piece_key(self.upload.id, self.upload.pieces[-1])
            try:
                async for chunk in await self._deps.storage.open_range(key, 0, size):
                    self._buffer += chunk
            except NotFound as error:
                raise OffsetMismatch(_OVERTAKEN) from error

    async def add(self, chunk: bytes) -> None:
        """Add bytes; write each piece that is full."""
        self._buffer += chunk
        while len(self._buffer) >= PART_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Write what has arrived of one piece, and list it in the record, unless it is the last.

        Raises `OffsetMismatch`, `NotFound` and `StoreUnavailable`; then nothing more can be added.
        """
        content = bytes(self._buffer[:PART_BYTES])
        del self._buffer[:PART_BYTES]
        full = (self.upload.offset or 0) // PART_BYTES
        offset = full * PART_BYTES + len(content)
        if offset == self.upload.offset:
            return
        replaced = self.upload.pieces[full:]
        piece = f"{full}-{secrets.token_hex(4)}"  # other requests must not overwrite it
        upload = self.upload.model_copy(update={"offset": offset, "pieces": [*self.upload.pieces[:full], piece]})
        try:
            await self._deps.storage.write(piece_key(upload.id, piece), content)
            if offset < upload.bytes:
                await run_in_threadpool(self._deps.audio.advance_pending, self.recorded_offset, upload)
                self.recorded_offset = offset
        except BaseException as error:
            self._buffer.clear()  # it must not take the place of what is missing
            if isinstance(error, NotFound | OffsetMismatch):  # after other errors the record may list it
                await self._delete(upload.id, [piece])
            raise
        self.upload = upload
        if offset == self.recorded_offset:
            await self._delete(upload.id, replaced)

    async def _delete(self, audio_id: str, pieces: list[str]) -> None:
        for piece in pieces:
            with suppress(StoreUnavailable):  # the ledger of orphans has all pieces
                await run_in_threadpool(self._deps.storage.delete, piece_key(audio_id, piece))


async def _read(deps: Dependencies, upload: PendingUpload) -> AsyncIterator[bytes]:
    for number, piece in enumerate(upload.pieces):
        size = min(PART_BYTES, upload.bytes - number * PART_BYTES)
        async for chunk in await deps.storage.open_range(piece_key(upload.id, piece), 0, size):
            yield chunk
