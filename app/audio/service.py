"""Uploads: receive, probe and store a file, then create its record; a failure leaves nothing."""

import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PureWindowsPath

import anyio
from anyio.to_thread import run_sync
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from app.audio.schemas import AudioAnswer
from app.budgets.budget import Hold
from app.dependencies import Dependencies
from app.errors import AudioInUse, NotFound, RecordUnreadable, StoreUnavailable
from app.http import access_log
from app.http.bodies import ArrivalRate
from app.http.multipart import Part
from app.local_copies import LocalCopy
from app.media import probe
from app.records.audio import Audio, TrackRecord, store_key, waveform_key
from app.records.ids import AUDIO, is_id, new_id
from app.storage import StoredObject, check_size

log = logging.getLogger("earmark.audio")

_MAX_FILENAME = 255  # characters


class Uploads:
    """The uploads of one request; `receive_uploads` discards them if the request fails."""

    def __init__(self, deps: Dependencies) -> None:
        self._deps = deps
        self.created: list[Audio] = []

    async def fetch(self, url: str) -> Audio:
        """Fetch a URL and receive the response. Raises `UrlRefused` and what `receive` raises."""
        deps, settings = self._deps, self._deps.settings
        async with (
            deps.budgets.fetches.hold(deps.caller.key_id),
            deps.outbound.fetch(url, settings.fetch_timeout) as response,
        ):
            check_size(response.length or 0, settings.upload_bytes)
            return await self.receive(Part("url", response.url.path, response.chunks))

    async def receive(self, part: Part, audio_id: str | None = None, size: int = 0) -> Audio:
        """Receive one file, probe it, store it and create its record, with a new id unless one is given.

        size: bytes for which room is held from the start, of a file that is known to have so many.
        Raises `QuotaExceeded`, `UploadTooLarge`, `StoreUnavailable`, `RateLimited`, `Overloaded`, and what the probe
        and the part's chunks raise; then the store holds nothing of the file.
        """
        async with occupy(self._deps, part.chunks, size) as chunks:
            return await self._receive(replace(part, chunks=chunks), audio_id)

    async def _receive(self, part: Part, audio_id: str | None) -> Audio:
        deps, settings, owner = self._deps, self._deps.settings, self._deps.caller.key_id
        await deps.storage.require_bucket()
        with deps.budgets.count_refusal("kept_uploads"):
            await run_in_threadpool(deps.audio.require_room, owner)
        with LocalCopy() as copy:
            received = await copy.write(part.chunks, settings.upload_bytes)
            # First, so that what is no audio costs the store nothing.
            async with deps.budgets.probes.hold(owner):
                info = await probe.probe(copy.path, settings)
            async with deps.budgets.store_writes.hold(owner):
                audio = await self._store(copy.path, received, info, audio_id, part.filename)
        self.created.append(audio)
        access_log.note_made(audio.id)
        deps.metrics.uploaded.inc(audio.bytes)
        return audio

    async def _store(
        self, path: Path, received: StoredObject, info: probe.MediaInfo, audio_id: str | None, filename: str | None
    ) -> Audio:
        """Write a probed file to the store, and its record."""
        deps, settings = self._deps, self._deps.settings
        audio_id = await run_in_threadpool(_register_write, deps, audio_id)
        try:
            await deps.storage.put_local(store_key(audio_id), path)
            now = deps.clock.now()
            audio = Audio(
                id=audio_id,
                owner=deps.caller.key_id,
                filename=sanitize_filename(filename),
                bytes=received.bytes,
                sha256=received.sha256,
                content_type=info.content_type,
                container=info.container,
                codec=info.codec,
                duration=info.duration,
                sample_rate=info.sample_rate,
                channels=info.channels,
                tracks=[TrackRecord.model_validate(track) for track in info.tracks],
                created_at=now,
                expires_at=now + settings.upload_retention,
            )
            await run_in_threadpool(deps.audio.create, audio)
        except BaseException:
            with anyio.CancelScope(shield=True), _log_errors():
                await run_sync(_discard, deps, audio_id)
            raise
        return audio

    def discard(self) -> None:
        """Delete the uploads of this request, except those that a job needs."""
        for audio in self.created:
            _discard(self._deps, audio.id)


def _register_write(deps: Dependencies, audio_id: str | None) -> str:
    """Register the write of an upload, with a new id unless one is given; return the id."""
    audio_id = audio_id or new_id(AUDIO, deps.clock.now())
    deps.audio.register_write(audio_id)
    return audio_id


@asynccontextmanager
async def occupy(
    deps: Dependencies, chunks: AsyncIterator[bytes], size: int = 0
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Hold a slot of the uploads in flight, and room for the chunks, which are passed through.

    size: bytes for which room is held at once, so that no chunk of so many is refused.
    Raises `RateLimited` and `Overloaded`, the chunks too.
    """
    budgets, key_id = deps.budgets, deps.caller.key_id
    async with budgets.uploads.hold(key_id), budgets.upload_room.hold(key_id, size) as room:
        yield _occupy(deps, room, chunks)


async def _occupy(deps: Dependencies, room: Hold, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass chunks through, and hold room for them; give it back if they arrive slowly while room is scarce."""
    settings, budgets, key_id = deps.settings, deps.budgets, deps.caller.key_id
    arrival = ArrivalRate(settings.upload_idle)
    start, arrived = time.monotonic(), 0
    async for chunk in chunks:
        if arrival.add(len(chunk), time.monotonic() - start) < settings.busy_upload_rate:
            for budget in (budgets.uploads, budgets.upload_room):
                if budget.is_scarce(key_id):
                    raise budget.take_back()
        arrived += len(chunk)
        if arrived > room.amount:
            room.grow(arrived - room.amount)
        yield chunk
        start = time.monotonic()


@asynccontextmanager
async def receive_uploads(deps: Dependencies) -> AsyncIterator[Uploads]:
    """Collect the uploads of one request that creates records; discard them if the block raises.

    Raises `Overloaded` if Redis has no room for records.
    """
    await deps.budgets.redis_memory.require_room()
    uploads = Uploads(deps)
    try:
        yield uploads
    except BaseException:
        with anyio.CancelScope(shield=True), _log_errors():
            await run_sync(uploads.discard)
        raise


def find(deps: Dependencies, audio_id: str) -> Audio:
    """Return the record of the caller's upload.

    Raises `NotFound`, also for malformed ids and uploads of others; `RecordUnreadable`, `RecordTooNew`.
    """
    if not is_id(audio_id, AUDIO):
        raise NotFound("There is no such audio.")
    try:
        return deps.caller.require_owned(deps.audio.get(audio_id), "audio")
    except RecordUnreadable as error:
        if deps.audio.owns(deps.caller.key_id, audio_id):
            raise
        raise NotFound("There is no such audio.") from error


def to_answer(deps: Dependencies, audio: Audio) -> AudioAnswer:
    """Return the representation of an upload."""
    return AudioAnswer.from_record(audio, deps.url_signer.signer_for(audio.owner))


async def find_async(deps: Dependencies, audio_id: str) -> Audio:
    """Call `find` from the event loop."""
    return await run_in_threadpool(find, deps, audio_id)


def delete(deps: Dependencies, audio_id: str) -> None:
    """Delete an upload's record and bytes. Raises `NotFound`, and `AudioInUse` if an unfinished job needs it."""
    with suppress(RecordUnreadable):
        find(deps, audio_id)
    deps.audio.delete(audio_id, deps.caller.key_id)
    delete_bytes(deps, audio_id)


def _discard(deps: Dependencies, audio_id: str) -> None:
    """Delete an upload of a failed request, unless a job needs it.

    Upload or job may exist although the request failed: Redis can apply a change whose confirmation is lost.
    """
    with suppress(AudioInUse):
        with suppress(NotFound):
            deps.audio.delete(audio_id, deps.caller.key_id)
        delete_bytes(deps, audio_id)


def delete_bytes(deps: Dependencies, audio_id: str) -> None:
    """Delete the bytes and the waveform of an upload that has no record."""
    deps.storage.delete(store_key(audio_id))
    deps.storage.delete(waveform_key(audio_id))
    deps.audio.unregister_write(audio_id)


@contextmanager
def _log_errors() -> Iterator[None]:
    """Log errors of a clean-up, so that they do not hide the error which caused it.

    Housekeeping deletes the bytes later: their key is in the ledger of orphans or in the index of expiry.
    """
    try:
        yield
    except (StoreUnavailable, RedisError) as error:
        log.error("cannot delete the bytes of a failed upload, housekeeping will: %s", error)


def sanitize_filename(filename: str | None) -> str | None:
    """Return the printable last component of a client's file name. It is for display only; no path is made of it."""
    name = PureWindowsPath(filename or "").name  # both kinds of slash are separators
    name = "".join(character for character in name if character.isprintable())
    return name[:_MAX_FILENAME] or None
