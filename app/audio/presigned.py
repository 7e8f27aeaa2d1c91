"""Presigned uploads: the client PUTs a file to the store by a signed URL and then completes the upload.

The URL writes to `incoming/ID`, and its holder may overwrite that object until the signature expires. Completion
therefore copies the bytes to the upload's own key, for which there is no signed URL, and it is that copy which is
measured, hashed and probed like any other upload.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.to_thread import run_sync
from redis.exceptions import LockError
from redis.lock import Lock
from starlette.concurrency import run_in_threadpool

from app.audio import service
from app.audio.schemas import PresignSent
from app.dependencies import Dependencies
from app.errors import (
    NotFound,
    PresignUnavailable,
    RequestInvalid,
    StoreUnavailable,
    UploadMissing,
    UploadTooLarge,
)
from app.http.multipart import Part
from app.records.audio import Audio, PendingUpload, incoming_key
from app.records.ids import AUDIO, is_id, new_id
from app.storage import check_size

_POLL_SECONDS = 0.1  # between attempts to acquire the lock while another request completes the upload
_PROBE_SECONDS = 60.0  # for which the lock is held beyond the time for copying


def presign(deps: Dependencies, body: PresignSent) -> tuple[PendingUpload, str, float]:
    """Create a pending upload; return it with the signed URL for its bytes and the time when the URL expires.

    Raises `PresignUnavailable`, `UploadTooLarge`, and `QuotaExceeded` if the caller has too many pending uploads.
    """
    settings = deps.settings
    if not deps.storage.can_sign:
        raise PresignUnavailable("The store is a folder of the server: POST the file to /v1/audio.")
    check_size(body.bytes, settings.upload_bytes)
    now = deps.clock.now()
    url_expires_at = now + settings.signed_url_seconds
    pending = PendingUpload(
        id=new_id(AUDIO, now),
        owner=deps.caller.key_id,
        filename=service.sanitize_filename(body.filename),
        bytes=body.bytes,
        created_at=now,
        expires_at=url_expires_at + settings.upload_timeout,
    )
    deps.audio.create_pending(pending, url_expires_at)
    url = deps.storage.signed_url(incoming_key(pending.id), settings.signed_url_seconds, "PUT")
    return pending, url, url_expires_at


async def complete(deps: Dependencies, audio_id: str) -> Audio:
    """Copy and probe the bytes of a pending upload, create its record and return it; idempotent.

    Raises `NotFound`; `UploadMissing` if the store has no bytes of it; `UploadTooLarge`, `RequestInvalid` for a size
    other than announced, and what the probe raises, after which the bytes and the pending upload are deleted;
    `StoreUnavailable`, after which completion can be retried.
    """
    if (audio := await _find_audio(deps, audio_id)) is not None:
        return audio
    async with _completion_lock(deps, audio_id):
        if (audio := await _find_audio(deps, audio_id)) is not None:
            return audio
        pending = deps.caller.require_owned(await run_in_threadpool(deps.audio.get_pending, audio_id), "audio")
        try:
            audio = await _receive(deps, pending)
        except (RequestInvalid, UploadTooLarge):
            await run_in_threadpool(_delete_incoming, deps, audio_id)
            raise
        await run_in_threadpool(_delete_incoming, deps, audio_id)
        return audio


async def _find_audio(deps: Dependencies, audio_id: str) -> Audio | None:
    if not is_id(audio_id, AUDIO):
        raise NotFound("There is no such audio.")
    try:
        return await service.find_async(deps, audio_id)
    except NotFound:
        return None


async def _receive(deps: Dependencies, pending: PendingUpload) -> Audio:
    key, settings = incoming_key(pending.id), deps.settings
    try:
        size = await run_in_threadpool(deps.storage.size, key)
    except NotFound as error:
        raise UploadMissing("PUT the file to the upload's URL first.") from error
    check_size(size, settings.upload_bytes)
    if size != pending.bytes:
        raise RequestInvalid(f"{pending.bytes} bytes were announced, but the file has {size}.")
    async with service.receive_uploads(deps) as uploads:
        with anyio.move_on_after(settings.fetch_timeout):
            chunks = await deps.storage.open_range(key, 0, size)
            return await uploads.receive(Part("file", pending.filename, chunks), pending.id)
        raise StoreUnavailable("Reading the upload from the store took too long.")


def _delete_incoming(deps: Dependencies, audio_id: str) -> None:
    # The URL can write it again: the key stays in the ledger of orphans until the URL has expired.
    deps.storage.delete(incoming_key(audio_id))
    deps.audio.delete_pending(audio_id, deps.caller.key_id)


def _release(lock: Lock) -> None:
    with suppress(LockError):  # it expired, or was not acquired
        lock.release()


@asynccontextmanager
async def _completion_lock(deps: Dependencies, audio_id: str) -> AsyncIterator[None]:
    """Hold the lock of a pending upload: concurrent completions could mix different bytes into one upload."""
    seconds = deps.settings.fetch_timeout + _PROBE_SECONDS
    lock = deps.audio.completion_lock(audio_id, seconds)
    with anyio.move_on_after(seconds):
        while not await run_in_threadpool(lock.acquire):
            await anyio.sleep(_POLL_SECONDS)
    try:
        if not await run_in_threadpool(lock.owned):
            raise StoreUnavailable("Another request is completing this upload; try again later.")
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(_release, lock)
