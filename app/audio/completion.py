"""Completion of pending uploads, presigned and resumable ones: once, and by one request at a time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.to_thread import run_sync
from redis.exceptions import LockError, RedisError
from redis.lock import Lock
from starlette.concurrency import run_in_threadpool

from app.audio import service
from app.dependencies import Dependencies
from app.errors import NotFound, RequestInvalid, StoreUnavailable, UploadTooLarge
from app.http.multipart import Part
from app.records.audio import Audio, PendingUpload, incoming_key
from app.records.ids import AUDIO, is_id

# Between attempts to acquire the lock while another request completes the upload: the first ones, and later ones. Each
# takes a thread and a call of Redis, and a client may let any number of requests wait.
_POLL_SECONDS, _LATER_POLL_SECONDS = 0.1, 2.0
_LEASE_SECONDS = 30.0  # for which the lock of a dead process blocks others
_PROBE_SECONDS = 60.0  # that a request waits for another one beyond the time for copying


async def complete(deps: Dependencies, audio_id: str, receive: Callable[[PendingUpload], Awaitable[Audio]]) -> Audio:
    """Make a pending upload an upload, by `receive` unless that was done before; return its record.

    Raises `NotFound` and what `receive` raises. After `RequestInvalid` and `UploadTooLarge` the bytes and the pending
    upload are deleted; after other errors completion can be retried.
    """
    if (audio := await _find_audio(deps, audio_id)) is not None:
        return audio
    async with _completion_lock(deps, audio_id):
        if (audio := await _find_audio(deps, audio_id)) is not None:
            return audio
        pending = await run_in_threadpool(find_pending, deps, audio_id)
        try:
            audio = await receive(pending)
        except (RequestInvalid, UploadTooLarge):
            await run_in_threadpool(_delete, deps, pending)
            raise
        await run_in_threadpool(_delete, deps, pending)
        return audio


async def receive_stored(deps: Dependencies, pending: PendingUpload, chunks: AsyncIterator[bytes]) -> Audio:
    """Receive the bytes of a pending upload from the store, like those of any other upload whose size is known.

    Raises what `Uploads.receive` raises, and `StoreUnavailable` if reading takes too long.
    """
    async with service.receive_uploads(deps) as uploads:
        with anyio.move_on_after(deps.settings.fetch_timeout):
            return await uploads.receive(Part("file", pending.filename, chunks), pending.id, pending.bytes)
        raise StoreUnavailable("Reading the upload from the store took too long.")


def find_pending(deps: Dependencies, audio_id: str) -> PendingUpload:
    """Return the caller's pending upload. Raises `NotFound`, also for malformed ids and uploads of others."""
    if not is_id(audio_id, AUDIO):
        raise NotFound("There is no such audio.")
    return deps.caller.require_owned(deps.audio.get_pending(audio_id), "audio")


def give_up(deps: Dependencies, audio_id: str) -> None:
    """Delete the caller's pending upload and its bytes. Raises `NotFound`."""
    _delete(deps, find_pending(deps, audio_id))


async def _find_audio(deps: Dependencies, audio_id: str) -> Audio | None:
    try:
        return await service.find_async(deps, audio_id)
    except NotFound:
        return None


def _delete(deps: Dependencies, pending: PendingUpload) -> None:
    # A signed URL, or a request that continues, can write again: the key stays in the ledger of orphans.
    deps.storage.delete_prefix(incoming_key(pending.id))
    deps.audio.delete_pending(pending.id, pending.owner)


@asynccontextmanager
async def _completion_lock(deps: Dependencies, audio_id: str) -> AsyncIterator[None]:
    """Hold the lock of a pending upload: concurrent completions could mix different bytes into one upload."""
    lock = deps.audio.completion_lock(audio_id, _LEASE_SECONDS)
    pause = _POLL_SECONDS
    with anyio.move_on_after(deps.settings.fetch_timeout + _PROBE_SECONDS):
        while not await run_in_threadpool(lock.acquire):
            await anyio.sleep(pause)
            pause = min(1.5 * pause, _LATER_POLL_SECONDS)
    renewal = asyncio.create_task(_renew_periodically(lock))
    try:
        if not await run_in_threadpool(lock.owned):
            raise StoreUnavailable("Another request is completing this upload; try again later.")
        yield
    finally:
        renewal.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([renewal])
            await run_sync(_release, lock)


async def _renew_periodically(lock: Lock) -> None:
    while True:
        await asyncio.sleep(_LEASE_SECONDS / 3)
        with suppress(LockError, RedisError):  # the next renewal may succeed before the lease ends
            await run_sync(lock.reacquire)


def _release(lock: Lock) -> None:
    with suppress(LockError):  # it expired, or was not acquired
        lock.release()
