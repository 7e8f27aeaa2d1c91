"""`/v1/usage`: requests, audio seconds and stored bytes of the caller, by day."""

from datetime import date
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from app.dependencies import InjectedDependencies
from app.http.openapi import problems
from app.http.validation import require_known_parameters
from app.records.usage import DayOfUsage

router = APIRouter(prefix="/v1/usage", tags=["limits"])


class Used(BaseModel):
    """Requests (null: API keys are off), audio seconds as they were charged, bytes of uploads and results stored."""

    requests: int | None
    audio_seconds: float
    stored_bytes: int


class UsedOnDay(Used):
    """Usage of a day, UTC."""

    day: date

    @classmethod
    def of(cls, used: DayOfUsage, counts_requests: bool) -> "UsedOnDay":
        """Return the representation of a day's usage."""
        requests = used.requests if counts_requests else None
        return cls(day=used.day, requests=requests, audio_seconds=used.audio_seconds, stored_bytes=used.stored_bytes)


class UsageAnswer(BaseModel):
    """The usage from one day to another, both included; days without any are left out."""

    first: date = Field(alias="from")
    last: date = Field(alias="to")
    data: list[UsedOnDay]
    total: Used


@router.get("", dependencies=[Depends(require_known_parameters)], responses=problems(422, 503))
def usage(
    deps: InjectedDependencies,
    first: Annotated[date | None, Query(alias="from", description="first day; default: 29 days before `to`")] = None,
    last: Annotated[date | None, Query(alias="to", description="last day (UTC); default: today")] = None,
) -> UsageAnswer:
    """Get the requests, audio seconds and stored bytes of this key, by day.

    What was deleted still counts on the day on which it was stored. Days are kept for EARMARK_USAGE_RETENTION.
    """
    first, last = deps.usage.period(first, last)
    has_keys = deps.settings.auth == "on"
    days = [UsedOnDay.of(day, has_keys) for day in deps.usage.read(deps.caller.key_id, first, last)]
    total = Used(
        requests=sum(day.requests or 0 for day in days) if has_keys else None,
        audio_seconds=round(sum(day.audio_seconds for day in days), 3),
        stored_bytes=sum(day.stored_bytes for day in days),
    )
    return UsageAnswer.model_validate({"from": first, "to": last, "data": days, "total": total})
