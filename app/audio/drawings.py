"""What spectrograms and waveforms of stored recordings, uploads and stems alike, have in common."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from app.budgets.budget import Budget
from app.dependencies import Dependencies
from app.errors import SpanOutside
from app.records.audio import Audio, store_key

CACHE_CONTROL = "private, max-age=3600"  # the bytes of uploads and stems never change
LEAST_SECONDS = 0.001  # of a section

Result = TypeVar("Result")


@dataclass(frozen=True)
class Drawable:
    """A recording in the store: its key, which no other bytes will have, and its size in bytes.

    track: that is drawn, by default the first that can be read. upload: whose waveform the store keeps.
    """

    key: str
    bytes: int
    track: int | None = None
    upload: Audio | None = None

    @classmethod
    def of_upload(cls, audio: Audio, track: int | None = None) -> "Drawable":
        """Return an upload, or a track of it that can be read."""
        default = next((one.track for one in audio.tracks if one.readable), None)
        if track in (None, default):
            return cls(store_key(audio.id), audio.bytes, upload=audio)
        return cls(store_key(audio.id), audio.bytes, track)

    def identify(self, *drawing: object) -> str:
        """Return the key in the cache of a drawing of it."""
        return "|".join(map(str, (self.key, self.track, *drawing)))


def require_section(deps: Dependencies, start: float, end: float) -> None:
    """Raise `SpanOutside` for a section, in seconds, that no recording has."""
    longest = deps.settings.recording_seconds
    if end - start < LEAST_SECONDS:
        raise SpanOutside(f"A section ends {LEAST_SECONDS:g} s after its start, or later.")
    if start >= longest or end - start > longest:
        raise SpanOutside(f"Recordings last {longest:g} s at most.")


@asynccontextmanager
async def open_locally(deps: Dependencies, drawn: Drawable) -> AsyncIterator[Path]:
    """Make a recording available at a path. Raises `NotFound`, `StoreUnavailable`, `RateLimited`, `Overloaded`."""
    copied = 0 if deps.storage.local_path(drawn.key) else drawn.bytes
    async with (
        deps.budgets.upload_room.hold(deps.caller.key_id, copied),
        deps.local_copies.open(drawn.key, drawn.bytes) as path,
    ):
        yield path


async def draw_together(deps: Dependencies, key: str, draw: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Draw once for all requests of an API key that wait for the same drawing.

    It is canceled, and its decoder killed, when all of them are. Raises what `draw` raises.
    """
    return await deps.drawings_in_progress.run((deps.caller.key_id, key), draw)


async def draw_once(
    deps: Dependencies, budget: Budget, key: str, draw: Callable[[], Coroutine[Any, Any, bytes]]
) -> bytes:
    """Return a drawing from the cache, or draw it while holding one of a budget.

    Raises `RateLimited`, `Overloaded`, and what `draw` raises.
    """

    async def hold_and_draw() -> bytes:
        async with budget.hold(deps.caller.key_id):
            content = await draw()
        deps.drawing_cache.put(key, content)
        return content

    return deps.drawing_cache.get(key) or await draw_together(deps, key, hold_and_draw)
