"""Uploads' peaks: the outline is drawn once, kept in the store, and every number of points is made from it."""

import logging
from collections.abc import AsyncIterator

import anyio
from starlette.concurrency import run_in_threadpool

from app.audio import service
from app.audio.local_copy import LocalCopy
from app.audio.schemas import ChannelPeaks, PeaksAnswer
from app.dependencies import Dependencies
from app.errors import NotFound
from app.media import waveform
from app.media.waveform import Waveform
from app.records.audio import Audio, store_key, waveform_key

log = logging.getLogger("earmark.audio")

_DRAWN_AT_ONCE = anyio.CapacityLimiter(2)  # each decodes a whole recording in a process of its own
_DIGITS = 5


async def peaks(deps: Dependencies, audio: Audio, points: int) -> PeaksAnswer:
    """The recording's peaks, in at most so many points. Raises `AudioUndecodable`, `AudioTooLong`, `NotFound`."""
    drawn = await _kept(deps, audio)
    if drawn is None:
        async with _DRAWN_AT_ONCE:
            # Drawn meanwhile, perhaps, for somebody else.
            drawn = await _kept(deps, audio) or await _draw(deps, audio)
    channels = await run_in_threadpool(_channels, drawn, points)
    return PeaksAnswer(
        points=len(channels[0].minimum),
        duration=drawn.samples / drawn.sample_rate,
        sample_rate=drawn.sample_rate,
        channels=channels,
    )


def _channels(drawn: Waveform, points: int) -> list[ChannelPeaks]:
    return [
        # Made from floats just now: nothing to check one by one.
        ChannelPeaks.model_construct(
            minimum=[round(level, _DIGITS) for level in least], maximum=[round(level, _DIGITS) for level in greatest]
        )
        for least, greatest in drawn.points(points)
    ]


async def _kept(deps: Dependencies, audio: Audio) -> Waveform | None:
    try:
        return Waveform.from_bytes(await deps.storage.read(waveform_key(audio.id)))
    except NotFound:
        return None
    except ValueError:
        log.error("the outline of %s is damaged and is drawn anew", audio.id)
        return None


async def _draw(deps: Dependencies, audio: Audio) -> Waveform:
    with LocalCopy(deps.storage.local_path(store_key(audio.id))) as copy:
        await copy.fill(store_key(audio.id), audio.bytes, deps.storage)
        drawn = await waveform.compute(copy.path, deps.settings)
    kept = drawn.to_bytes()
    await run_in_threadpool(deps.audio.register_waveform_write, audio)
    await deps.storage.put_stream(waveform_key(audio.id), _once(kept), len(kept))
    try:
        await service.find_async(deps, audio.id)
    except NotFound:  # deleted meanwhile, and what was just stored with nobody to delete it
        await run_in_threadpool(service.delete_bytes, deps, audio.id)
        raise
    return drawn


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
