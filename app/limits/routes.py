"""`/v1/limits`: the limits of requests, and what the caller has left of them."""

from datetime import UTC, datetime, timedelta

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from app.dependencies import InjectedDependencies
from app.http.openapi import problems
from app.records.sizes import charge_rule
from app.settings import Settings

router = APIRouter(prefix="/v1/limits", tags=["limits"])


class Limits(BaseModel):
    """Limits in bytes, seconds, hertz and counts; null: no limit. `charge`: how audio seconds are counted."""

    upload_bytes: int
    body_bytes: int
    recording_seconds: float
    example_seconds: float
    recording_samples: float
    channels: int
    lowest_rate: int
    highest_rate: int
    targets: int
    scratch_bytes: int
    stored_bytes: int
    examples: int
    requests_per_minute: int | None
    audio_seconds_per_day: int | None
    charge: str

    @classmethod
    def of(cls, settings: Settings, rate: int, quota: int) -> "Limits":
        """Return the settings' limits with a caller's rate limit and quota."""
        shared = {name: getattr(settings, name) for name in cls.model_fields if name in Settings.model_fields}
        return cls(
            **shared,
            requests_per_minute=rate or None,
            audio_seconds_per_day=quota or None,
            charge=charge_rule(settings),
        )


class Left(BaseModel):
    """What the caller has left: requests in this minute, audio seconds today; null: no limit."""

    requests: int | None
    audio_seconds_today: int | None


class LimitsAnswer(BaseModel):
    """Limits, what is left of them, and when the daily quota is reset."""

    limits: Limits
    left: Left
    resets_at: datetime


@router.get("", responses=problems(503))
async def limits(deps: InjectedDependencies) -> LimitsAnswer:
    """Get the limits on uploads and jobs, the rate limit and the quota, and what is left of both."""
    now = datetime.fromtimestamp(await run_in_threadpool(deps.clock.now), UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    allowance = deps.caller.allowance
    if allowance is None:
        unlimited = Left(requests=None, audio_seconds_today=None)
        return LimitsAnswer(limits=Limits.of(deps.settings, 0, 0), left=unlimited, resets_at=midnight)
    left = Left(
        requests=allowance.requests_left if allowance.rate else None,
        audio_seconds_today=allowance.audio_seconds_left if allowance.quota else None,
    )
    limits = Limits.of(deps.settings, allowance.rate, allowance.quota)
    return LimitsAnswer(limits=limits, left=left, resets_at=midnight)
