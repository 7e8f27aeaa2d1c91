"""Uploads: from a form's part to the store, probed, known; or gone without a trace."""

import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import PureWindowsPath
from weakref import WeakValueDictionary

import anyio
from anyio.to_thread import run_sync
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from app.audio.local_copy import LocalCopy
from app.audio.schemas import AudioAnswer
from app.dependencies import Dependencies
from app.errors import AudioInUse, NotFound, StoreUnavailable, UploadTooLarge
from app.http.multipart import Part
from app.keys.callers import Caller
from app.media import probe
from app.records.audio import Audio, store_key, waveform_key
from app.records.ids import AUDIO, is_id, new_id

log = logging.getLogger("earmark.audio")

_NAME_LENGTH = 255  # characters of a client's file name that are kept
_PROBES_AT_ONCE = anyio.CapacityLimiter(4)  # each is a process of its own
_FETCHES_AT_ONCE = anyio.CapacityLimiter(16)  # so that slow sites hold up nothing but each other
_FETCHES_A_KEY = 4  # and mostly those who named them
_fetches_of: WeakValueDictionary[str, anyio.CapacityLimiter] = WeakValueDictionary()  # by key


class Uploads:
    """What one request has uploaded; `received` forgets all of it if the request fails."""

    def __init__(self, deps: Dependencies) -> None:
        self._deps = deps
        self.kept: list[Audio] = []

    async def fetch(self, url: str) -> Audio:
        """Keep what a URL leads to, as `receive` does. Raises `UrlRefused` too."""
        settings = self._deps.settings
        own = _fetches(self._deps.caller)
        async with own, _FETCHES_AT_ONCE, self._deps.outbound.fetch(url, settings.fetch_timeout) as fetched:
            if (fetched.length or 0) > settings.upload_bytes:
                raise UploadTooLarge(settings.upload_bytes)
            return await self.receive(Part("url", fetched.url.path, fetched.chunks))

    async def receive(self, part: Part, audio_id: str | None = None) -> Audio:
        """Stream one file to the store, probe it and make it known, under a new id unless one is given.

        Raises `UploadTooLarge`, `StoreUnavailable`, what the probe raises and what the body raises; then the store
        holds nothing of it.
        """
        audio_id, settings = audio_id or new_id(AUDIO), self._deps.settings
        key = store_key(audio_id)
        await run_in_threadpool(self._deps.audio.register_write, audio_id)
        try:
            with LocalCopy(self._deps.storage.local_path(key)) as copy:
                copied = copy.copy_chunks(part.chunks)
                stored = await self._deps.storage.put_stream(key, copied, settings.upload_bytes)
                async with _PROBES_AT_ONCE:
                    found = await probe.probe(copy.path, settings)
            now = time.time()
            audio = Audio(
                id=audio_id,
                owner=self._deps.caller.key_id,
                filename=sanitize_filename(part.filename),
                bytes=stored.bytes,
                sha256=stored.sha256,
                content_type=found.content_type,
                container=found.container,
                codec=found.codec,
                duration=found.duration,
                sample_rate=found.sample_rate,
                channels=found.channels,
                created_at=now,
                expires_at=now + settings.upload_retention,
            )
            await run_in_threadpool(self._deps.audio.create, audio)
        except BaseException:
            with anyio.CancelScope(shield=True), _in_the_ledger():
                await run_sync(_forget, self._deps, audio_id)
            raise
        self.kept.append(audio)
        self._deps.metrics.uploaded.inc(stored.bytes)
        return audio

    def discard(self) -> None:
        """Delete what this request uploaded."""
        for audio in self.kept:
            _forget(self._deps, audio.id)


@asynccontextmanager
async def receive_uploads(deps: Dependencies) -> AsyncIterator[Uploads]:
    """Uploads of one request, forgotten when its block raises."""
    uploads = Uploads(deps)
    try:
        yield uploads
    except BaseException:
        with anyio.CancelScope(shield=True), _in_the_ledger():
            await run_sync(uploads.discard)
        raise


def find(deps: Dependencies, audio_id: str) -> Audio:
    """The record of the caller's upload; raises `NotFound` for what is no id and what is another's, too."""
    if not is_id(audio_id, AUDIO):
        raise NotFound("There is no such audio.")
    return deps.caller.require_owned(deps.audio.get(audio_id), "audio")


def _fetches(caller: Caller) -> anyio.CapacityLimiter:
    """What a key's fetches wait for before they wait with others'; with keys switched off there are no others."""
    most = _FETCHES_A_KEY if caller.key_id else _FETCHES_AT_ONCE.total_tokens
    return _fetches_of.setdefault(caller.key_id, anyio.CapacityLimiter(most))


def to_answer(deps: Dependencies, audio: Audio) -> AudioAnswer:
    """The upload as clients see it."""
    return AudioAnswer.from_record(audio, deps.url_signer.signer_for(audio.owner))


async def find_async(deps: Dependencies, audio_id: str) -> Audio:
    """`find` for code on the event loop."""
    return await run_in_threadpool(find, deps, audio_id)


def delete(deps: Dependencies, audio_id: str) -> None:
    """Delete an upload, record and bytes. Raises `NotFound`, and `AudioInUse` while a job needs it."""
    find(deps, audio_id)
    deps.audio.delete(audio_id)
    delete_bytes(deps, audio_id)


def _forget(deps: Dependencies, audio_id: str) -> None:
    """Delete an upload of a request that failed, but not what a job needs: making either may have been all but
    confirmed."""
    with suppress(AudioInUse):
        with suppress(NotFound):
            deps.audio.delete(audio_id)
        delete_bytes(deps, audio_id)


def delete_bytes(deps: Dependencies, audio_id: str) -> None:
    """Delete the bytes and the outline of an upload that has no record."""
    deps.storage.delete(store_key(audio_id))
    deps.storage.delete(waveform_key(audio_id))
    deps.audio.unregister_write(audio_id)


@contextmanager
def _in_the_ledger() -> Iterator[None]:
    """Cleaning up that fails must not hide why it was needed: housekeeping has the bytes in its ledger or its index."""
    try:
        yield
    except (StoreUnavailable, RedisError) as error:
        log.error("bytes of a failed upload are left to housekeeping: %s", error)


def sanitize_filename(sent: str | None) -> str | None:
    """The last part of what a client calls its file, for people to read; it names nothing here."""
    name = PureWindowsPath(sent or "").name  # takes both kinds of slash for one
    name = "".join(character for character in name if character.isprintable())
    return name[:_NAME_LENGTH] or None
