"""`/v1/limits`: what is allowed, and what is left of it."""

from datetime import UTC, datetime, timedelta

from fastapi import APIRouter
from pydantic import BaseModel

from app.dependencies import InjectedDependencies
from app.http.openapi import problems
from app.settings import Settings

router = APIRouter(prefix="/v1/limits", tags=["limits"])


class Limits(BaseModel):
    """What is allowed; null: no limit. Bytes, seconds, hertz, and counts."""

    upload_bytes: int
    body_bytes: int
    recording_seconds: float
    example_seconds: float
    recording_samples: float
    channels: int
    lowest_rate: int
    highest_rate: int
    targets: int
    examples: int
    requests_per_minute: int | None
    audio_seconds_per_day: int | None

    @classmethod
    def of(cls, settings: Settings, rate: int, quota: int) -> "Limits":
        """What the settings allow everybody, with one caller's rate and quota."""
        everybody = {name: getattr(settings, name) for name in cls.model_fields if name in Settings.model_fields}
        return cls(**everybody, requests_per_minute=rate or None, audio_seconds_per_day=quota or None)


class Left(BaseModel):
    """What this caller has left: requests of this minute, audio seconds of this day; null: no limit."""

    requests: int | None
    audio_seconds_today: int | None


class LimitsAnswer(BaseModel):
    """Limits, what is left of them, and when the day's quota begins anew."""

    limits: Limits
    left: Left
    resets_at: datetime


@router.get("", responses=problems(503))
async def limits(deps: InjectedDependencies) -> LimitsAnswer:
    """What may be sent, how often one may ask, and what is left of it."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    mine = deps.caller.allowance
    if mine is None:
        nothing = Left(requests=None, audio_seconds_today=None)
        return LimitsAnswer(limits=Limits.of(deps.settings, 0, 0), left=nothing, resets_at=midnight)
    left = Left(
        requests=mine.requests_left if mine.rate else None,
        audio_seconds_today=mine.audio_seconds_left if mine.quota else None,
    )
    return LimitsAnswer(limits=Limits.of(deps.settings, mine.rate, mine.quota), left=left, resets_at=midnight)
