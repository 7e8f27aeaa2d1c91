"""Peaks of uploads: a waveform is computed once, kept in the store, and reduced to any number of points.

Only the waveform of the track that is read by default is kept.
"""

import logging
from collections.abc import AsyncIterator

import anyio
from starlette.concurrency import run_in_threadpool

from app.audio import service
from app.audio.local_copy import LocalCopy
from app.audio.schemas import ChannelPeaks, PeaksAnswer
from app.dependencies import Dependencies
from app.errors import NotFound, StoreUnavailable
from app.media import waveform
from app.media.waveform import Waveform
from app.records.audio import Audio, store_key, waveform_key

log = logging.getLogger("earmark.audio")

_DIGITS = 5


async def peaks(deps: Dependencies, audio: Audio, points: int, track: int | None = None) -> PeaksAnswer:
    """Return the peaks of an upload, or of a track of it that can be read, in at most `points` points.

    Raises `AudioUndecodable`, `AudioTooLong`, `NotFound`, `RateLimited`, `Overloaded`, and `StoreUnavailable`, also if
    reading the upload takes too long.
    """
    if track == next((one.track for one in audio.tracks if one.readable), None):
        track = None
    full = await _load(deps, audio) if track is None else None
    if full is None:
        async with deps.budgets.waveforms.hold(deps.caller.key_id):
            if track is not None:
                full = await _decode(deps, audio, track)
            else:
                # Another request may have computed it while this one waited.
                full = await _load(deps, audio) or await _compute(deps, audio)
    channels = await run_in_threadpool(_reduce, full, points)
    return PeaksAnswer(
        points=len(channels[0].minimum),
        duration=full.samples / full.sample_rate,
        sample_rate=full.sample_rate,
        channels=channels,
    )


def _reduce(full: Waveform, points: int) -> list[ChannelPeaks]:
    return [
        # Validation of numbers that are floats already would take longer than everything else.
        ChannelPeaks.model_construct(
            minimum=[round(level, _DIGITS) for level in minima], maximum=[round(level, _DIGITS) for level in maxima]
        )
        for minima, maxima in full.points(points)
    ]


async def _load(deps: Dependencies, audio: Audio) -> Waveform | None:
    try:
        return Waveform.from_bytes(await deps.storage.read(waveform_key(audio.id)))
    except NotFound:
        return None
    except ValueError:
        log.error("the stored waveform of %s is damaged and is computed again", audio.id)
        return None


async def _decode(deps: Dependencies, audio: Audio, track: int | None = None) -> Waveform:
    path = deps.storage.local_path(store_key(audio.id))
    async with deps.budgets.upload_room.hold(deps.caller.key_id, 0 if path else audio.bytes):
        with LocalCopy(path) as copy:
            with anyio.move_on_after(deps.settings.fetch_timeout) as copying:
                await copy.fill(store_key(audio.id), audio.bytes, deps.storage)
            if copying.cancelled_caught:
                raise StoreUnavailable("Reading the upload from the store took too long.")
            return await waveform.compute(copy.path, deps.settings, track=track)


async def _compute(deps: Dependencies, audio: Audio) -> Waveform:
    full = await _decode(deps, audio)
    content = full.to_bytes()
    await run_in_threadpool(deps.audio.register_waveform_write, audio)
    await deps.storage.put_stream(waveform_key(audio.id), _single_chunk(content), len(content))
    try:
        await service.find_async(deps, audio.id)
    except NotFound:  # deleted meanwhile: nothing else would delete the waveform that was just stored
        await run_in_threadpool(service.delete_bytes, deps, audio.id)
        raise
    return full


async def _single_chunk(content: bytes) -> AsyncIterator[bytes]:
    yield content
