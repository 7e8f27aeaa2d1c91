"""Uploads' peaks: the outline is drawn once, kept in the store, and every number of points is made from it."""

import logging
from collections.abc import AsyncIterator

import anyio
from starlette.concurrency import run_in_threadpool

from app.audio import service
from app.audio.local_copy import LocalCopy
from app.audio.schemas import ChannelPeaks, PeaksAnswer
from app.dependencies import Parts
from app.errors import NotFound
from app.media import waveform
from app.media.waveform import Outline
from app.records.audio import Audio, outline_key, store_key

log = logging.getLogger("earmark.audio")

_DRAWN_AT_ONCE = anyio.CapacityLimiter(2)  # each decodes a whole recording in a process of its own
_DIGITS = 5


async def peaks(parts: Parts, audio: Audio, points: int) -> PeaksAnswer:
    """The recording's peaks, in at most so many points. Raises `AudioUndecodable`, `AudioTooLong`, `NotFound`."""
    drawn = await _kept(parts, audio)
    if drawn is None:
        async with _DRAWN_AT_ONCE:
            # Drawn meanwhile, perhaps, for somebody else.
            drawn = await _kept(parts, audio) or await _draw(parts, audio)
    channels = await run_in_threadpool(_channels, drawn, points)
    return PeaksAnswer(
        points=len(channels[0].minimum),
        duration=drawn.samples / drawn.sample_rate,
        sample_rate=drawn.sample_rate,
        channels=channels,
    )


def _channels(drawn: Outline, points: int) -> list[ChannelPeaks]:
    return [
        # Made from floats just now: nothing to check one by one.
        ChannelPeaks.model_construct(
            minimum=[round(level, _DIGITS) for level in least], maximum=[round(level, _DIGITS) for level in greatest]
        )
        for least, greatest in drawn.points(points)
    ]


async def _kept(parts: Parts, audio: Audio) -> Outline | None:
    try:
        return Outline.from_bytes(await parts.storage.read(outline_key(audio.id)))
    except NotFound:
        return None
    except ValueError:
        log.error("the outline of %s is damaged and is drawn anew", audio.id)
        return None


async def _draw(parts: Parts, audio: Audio) -> Outline:
    with LocalCopy(parts.storage.local_path(store_key(audio.id))) as copy:
        await copy.fill(store_key(audio.id), audio.bytes, parts.storage)
        drawn = await waveform.draw(copy.path, parts.settings)
    kept = drawn.to_bytes()
    await run_in_threadpool(parts.audio.outline_begins, audio)
    await parts.storage.put_stream(outline_key(audio.id), _once(kept), len(kept))
    try:
        await service.find_async(parts, audio.id)
    except NotFound:  # deleted meanwhile, and what was just stored with nobody to delete it
        await run_in_threadpool(service.forget_bytes, parts, audio.id)
        raise
    return drawn


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
