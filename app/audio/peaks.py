"""Peaks of a stored recording, or of a section of it: its waveform, reduced to any number of points."""

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from app.audio import waveforms
from app.audio.drawings import Drawable, require_section
from app.audio.schemas import ChannelPeaks, PeaksAnswer
from app.dependencies import Dependencies
from app.http import bodies
from app.media.waveform import Waveform

_DIGITS = 5
_LEAST_BINS = 2  # of a point, if a section is drawn from the whole waveform; with fewer it is decoded for itself


async def peaks(
    request: Request, deps: Dependencies, drawn: Drawable, points: int, start: float, end: float | None
) -> PeaksAnswer:
    """Return the peaks of a section in seconds, by default of the whole recording, in at most `points` points.

    Raises `AudioUndecodable`, `AudioTooLong`, `SpanOutside`, `NotFound`, `StoreUnavailable`, `RateLimited`,
    `Overloaded`, `ClientGone`.
    """
    return await bodies.run_while_connected(request, _peaks(deps, drawn, points, start, end))


async def _peaks(deps: Dependencies, drawn: Drawable, points: int, start: float, end: float | None) -> PeaksAnswer:
    full = await (waveforms.whole if end is None else waveforms.find)(deps, drawn)
    if full is not None and not start and end is None:
        return await run_in_threadpool(_to_answer, full, 0.0, points)
    end = full.seconds if full is not None and end is None else end or 0.0
    require_section(deps, start, end)
    cropped = None if full is None else full.crop(start, end)
    if cropped is None or len(cropped[1].minima[0]) < _LEAST_BINS * points:
        full = await waveforms.section(deps, drawn, start, end)
        cropped = int(start * full.sample_rate) / full.sample_rate, full
    return await run_in_threadpool(_to_answer, cropped[1], cropped[0], points)


def _to_answer(drawn: Waveform, start: float, points: int) -> PeaksAnswer:
    channels = [
        # Validation of numbers that are floats already would take longer than everything else.
        ChannelPeaks.model_construct(
            minimum=[round(level, _DIGITS) for level in minima], maximum=[round(level, _DIGITS) for level in maxima]
        )
        for minima, maxima in drawn.points(points)
    ]
    return PeaksAnswer(
        points=len(channels[0].minimum),
        start=start,
        duration=drawn.seconds,
        sample_rate=drawn.sample_rate,
        channels=channels,
    )
