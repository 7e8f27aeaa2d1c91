"""`/v1/limits`: the limits of requests, and what the caller has left of them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from app.dependencies import Dependencies, InjectedDependencies
from app.http.openapi import problems
from app.keys.callers import Caller
from app.records.sizes import charge_rule
from app.settings import Settings

router = APIRouter(prefix="/v1/limits", tags=["limits"])

_OF_KEYS = ("excerpt_bytes", "kept_jobs", "kept_uploads")  # without a key they do not apply


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
    excerpt_bytes: int | None
    kept_jobs: int | None
    kept_uploads: int | None
    awaited_uploads: int
    requests_per_minute: int | None
    audio_seconds_per_day: int | None
    charge: str

    @classmethod
    def of(cls, settings: Settings, caller: Caller) -> "Limits":
        """Return the settings' limits with a caller's rate limit and quotas."""
        shared = {name: getattr(settings, name) for name in cls.model_fields if name in Settings.model_fields}
        allowance = caller.allowance
        own: dict[str, Any] = ({} if caller.key_id else dict.fromkeys(_OF_KEYS)) | {
            "requests_per_minute": (allowance.rate or None) if allowance else None,
            "audio_seconds_per_day": (allowance.quota or None) if allowance else None,
        }
        return cls(**shared | own, charge=charge_rule(settings))


class Left(BaseModel):
    """What the caller has left: requests in this minute, audio seconds today, bytes that its saved queries may keep of
    their examples, jobs and saved queries, uploads, and presigned and resumable uploads that are not complete; null: no
    limit."""

    requests: int | None
    audio_seconds_today: int | None
    excerpt_bytes: int | None
    kept_jobs: int | None
    kept_uploads: int | None
    awaited_uploads: int


class LimitsAnswer(BaseModel):
    """Limits, what is left of them, and when the daily quota is reset."""

    limits: Limits
    left: Left
    resets_at: datetime


@router.get("", name="get", responses=problems(503))
async def limits(deps: InjectedDependencies) -> LimitsAnswer:
    """Get the limits on uploads and jobs, the rate limit and the quotas, and what is left of these."""
    now = datetime.fromtimestamp(await run_in_threadpool(deps.clock.now), UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    left = await run_in_threadpool(_left, deps)
    return LimitsAnswer(limits=Limits.of(deps.settings, deps.caller), left=left, resets_at=midnight)


def _left(deps: Dependencies) -> Left:
    owner, allowance = deps.caller.key_id, deps.caller.allowance
    used = {"awaited_uploads": deps.audio.awaited_count(owner)}
    if owner:
        used["excerpt_bytes"] = deps.jobs.excerpt_bytes.total(owner)
        used["kept_jobs"] = deps.jobs.kept_count(owner)
        used["kept_uploads"] = deps.audio.kept_count(owner)
    left: dict[str, Any] = dict.fromkeys(_OF_KEYS)
    left |= {name: max(0, getattr(deps.settings, name) - amount) for name, amount in used.items()}
    return Left(
        requests=allowance.requests_left if allowance and allowance.rate else None,
        audio_seconds_today=allowance.audio_seconds_left if allowance and allowance.quota else None,
        **left,
    )
