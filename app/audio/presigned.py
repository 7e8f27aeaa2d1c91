"""Presigned uploads: the client PUTs a file to the store by a signed URL and then completes the upload.

The URL writes to `incoming/ID`, and its holder may overwrite that object until the signature expires. Completion
therefore copies the bytes to the upload's own key, for which there is no signed URL, and it is that copy which is
measured, hashed and probed like any other upload.
"""

from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool

from app.audio import completion, service
from app.audio.schemas import PresignSent
from app.dependencies import Dependencies
from app.errors import NotFound, PresignUnavailable, RequestInvalid, UploadMissing
from app.http import access_log
from app.records.audio import Audio, PendingUpload, incoming_key
from app.records.ids import AUDIO, new_id
from app.storage import check_size


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
    url = deps.storage.signed_url(incoming_key(pending.id), settings.signed_url_seconds, "PUT")
    with deps.budgets.count_refusal("awaited_uploads"):
        deps.audio.create_pending(pending, url_expires_at)
    access_log.note_made(pending.id)
    return pending, url, url_expires_at


async def complete(deps: Dependencies, audio_id: str) -> Audio:
    """Copy and probe the bytes of a pending upload, create its record and return it; idempotent.

    Raises `NotFound`; `UploadMissing` if the store has no bytes of it; `UploadTooLarge`, `RequestInvalid` for a size
    other than announced, and what the probe raises, after which the bytes and the pending upload are deleted;
    `StoreUnavailable`, after which completion can be retried.
    """

    async def receive(pending: PendingUpload) -> Audio:
        if pending.offset is not None:
            raise UploadMissing("Send the rest of the file by tus.")
        key, settings = incoming_key(pending.id), deps.settings
        try:
            size = await run_in_threadpool(deps.storage.size, key)
        except NotFound as error:
            raise UploadMissing("PUT the file to the upload's URL first.") from error
        check_size(size, settings.upload_bytes)
        if size != pending.bytes:
            raise RequestInvalid(f"{pending.bytes} bytes were announced, but the file has {size}.")
        return await completion.receive_stored(deps, pending, _read(deps, key, size))

    return await completion.complete(deps, audio_id, receive)


async def _read(deps: Dependencies, key: str, size: int) -> AsyncIterator[bytes]:
    async for chunk in await deps.storage.open_range(key, 0, size):  # opened within the time for reading
        yield chunk
