"""Waveforms of stored recordings: computed once, and kept in the store for uploads, else in memory."""

import logging
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool

from app.audio import service
from app.audio.drawings import Drawable, draw_once, draw_together, open_locally
from app.dependencies import Dependencies
from app.errors import NotFound
from app.media import waveform
from app.media.single_flight import finish
from app.media.waveform import Waveform
from app.records.audio import Audio, waveform_key

log = logging.getLogger("earmark.audio")


async def find(deps: Dependencies, drawn: Drawable) -> Waveform | None:
    """Return the waveform of a whole recording if it is kept."""
    if drawn.upload is not None:
        return await _load(deps, drawn.upload)
    content = deps.drawing_cache.get(drawn.identify("waveform"))
    return None if content is None else Waveform.from_bytes(content)


async def whole(deps: Dependencies, drawn: Drawable) -> Waveform:
    """Return the waveform of a whole recording.

    Raises `AudioUndecodable`, `AudioTooLong`, `NotFound`, `StoreUnavailable`, `RateLimited`, `Overloaded`.
    """
    key, budget, upload = drawn.identify("waveform"), deps.budgets.waveforms, drawn.upload
    if upload is None:
        return Waveform.from_bytes(await draw_once(deps, budget, key, lambda: _decode(deps, drawn)))

    async def compute() -> Waveform:
        async with budget.hold(deps.caller.key_id) as hold:
            # Another process may have computed it while this one waited.
            kept = await _load(deps, upload) if hold.has_waited else None
            if kept is not None:
                return kept
            content = await _decode(deps, drawn)
            await finish(_store(deps, upload, content))  # or what it has stored of a deleted upload would stay
            return Waveform.from_bytes(content)

    return await _load(deps, upload) or await draw_together(deps, key, compute)


async def section(deps: Dependencies, drawn: Drawable, start: float, end: float) -> Waveform:
    """Return the waveform of a section in seconds, decoded for it alone.

    Raises what `whole` raises, and `SpanOutside` if the recording ends before it.
    """
    key = drawn.identify("waveform", start, end)
    content = await draw_once(deps, deps.budgets.sections, key, lambda: _decode(deps, drawn, (start, end)))
    return Waveform.from_bytes(content)


async def _load(deps: Dependencies, audio: Audio) -> Waveform | None:
    try:
        return Waveform.from_bytes(await deps.storage.read(waveform_key(audio.id)))
    except NotFound:
        return None
    except ValueError:
        log.error("the stored waveform of %s is damaged and is computed again", audio.id)
        return None


async def _decode(deps: Dependencies, drawn: Drawable, section: tuple[float, float] | None = None) -> bytes:
    async with open_locally(deps, drawn) as path:
        return (await waveform.compute(path, deps.settings, track=drawn.track, section=section)).to_bytes()


async def _store(deps: Dependencies, audio: Audio, content: bytes) -> None:
    await run_in_threadpool(deps.audio.register_waveform_write, audio)
    await deps.storage.put_stream(waveform_key(audio.id), _single_chunk(content), len(content))
    try:
        await service.find_async(deps, audio.id)
    except NotFound:  # deleted meanwhile: nothing else would delete the waveform that was just stored
        await run_in_threadpool(service.delete_bytes, deps, audio.id)
        raise


async def _single_chunk(content: bytes) -> AsyncIterator[bytes]:
    yield content
