"""Responses with the spectrogram of a stored recording, or of a section of it."""

import hashlib

from fastapi import Request, Response

from app.audio import waveforms
from app.audio.drawings import CACHE_CONTROL, Drawable, draw_once, open_locally, require_section
from app.dependencies import Dependencies
from app.http import bodies
from app.http.conditional import matches_etag
from app.media import spectrogram
from app.media.spectrogram import Tile


async def respond(
    request: Request, deps: Dependencies, drawn: Drawable, start: float, end: float | None, width: int, height: int
) -> Response:
    """Return the response with the PNG of a section in seconds, by default of the whole recording; or 304.

    Raises `AudioUndecodable`, `AudioTooLong`, `SpanOutside`, `NotFound`, `StoreUnavailable`, `RateLimited`,
    `Overloaded`, `ClientGone`.
    """
    if end is None:
        end = (await bodies.run_while_connected(request, waveforms.whole(deps, drawn))).seconds
    require_section(deps, start, end)
    tile = Tile(start, end, width, height)
    key = drawn.identify("spectrogram", spectrogram.VERSION, tile)
    etag = f'"{hashlib.sha256(key.encode()).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": CACHE_CONTROL}
    if matches_etag(request, etag):
        return Response(status_code=304, headers=headers)

    async def draw() -> bytes:
        async with open_locally(deps, drawn) as path:
            return await spectrogram.draw(path, tile, drawn.track)

    # A page that is scrolled asks for tiles that it does not want any more.
    image = await bodies.run_while_connected(request, draw_once(deps, deps.budgets.sections, key, draw))
    return Response(image, media_type="image/png", headers=headers)
