"""`/livez`, `/readyz`, `/metrics`: liveness, readiness and metrics, for the operator."""

from typing import Literal

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Response
from pydantic import BaseModel

from app.dependencies import Dependencies, InjectedDependencies
from app.errors import NotFound
from app.http.openapi import problems
from app.metrics import CONTENT_TYPE
from app.redis_client import check_writes

router = APIRouter(tags=["health"])

_CHECKS = CapacityLimiter(4)  # threads of their own: those of requests may all wait for a slow store


class Alive(BaseModel):
    """The process is alive."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """Queue and store respond. `workers`: live workers by model; jobs are accepted without any, too."""

    status: Literal["ready"] = "ready"
    queue: Literal["ok"] = "ok"
    store: Literal["ok"] = "ok"
    workers: dict[str, int]


@router.head("/livez", include_in_schema=False)  # monitors often send HEAD
@router.get("/livez")
async def alive() -> Alive:
    """Check that the process responds."""
    return Alive()


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses=problems(503))
async def ready(deps: InjectedDependencies) -> Ready:
    """Check that jobs can be accepted: Redis takes writes, and the last check of the store did not fail.

    The store is listed, and written to once a minute.

    A slow store delays the response by 1.5 s at most, and makes nothing unready.
    """
    answer = await run_sync(_check, deps, limiter=_CHECKS)
    await deps.storage_probe.check()
    return answer


def _check(deps: Dependencies) -> Ready:
    check_writes(deps.redis)
    return Ready(workers=deps.model_registry.workers_by_name())


@router.get("/metrics", response_class=Response, responses=problems(404))
def metrics(deps: InjectedDependencies) -> Response:
    """Get metrics for Prometheus; 404 if they have their own port or authentication is on: they are not for clients."""
    if deps.settings.metrics_port or deps.settings.auth == "on":
        raise NotFound("Metrics are served on a port of their own.")
    return Response(deps.metrics.expose(), media_type=CONTENT_TYPE)
