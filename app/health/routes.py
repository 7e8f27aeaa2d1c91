"""`/livez`, `/readyz`, `/metrics`: for whoever runs this."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from app.dependencies import InjectedDependencies
from app.errors import NotFound
from app.http.openapi import problems
from app.metrics import CONTENT_TYPE

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """The queue and the store answer. Workers are counted a model; none is no reason to refuse jobs."""

    status: Literal["ready"] = "ready"
    queue: Literal["ok"] = "ok"
    store: Literal["ok"] = "ok"
    workers: dict[str, int]


@router.get("/livez")
async def alive() -> Alive:
    """Whether the process answers at all."""
    return Alive()


@router.get("/readyz", responses=problems(503))
def ready(deps: InjectedDependencies) -> Ready:
    """Whether jobs can be taken: the queue's server and the store answer."""
    deps.redis.ping()
    deps.storage.check()
    return Ready(
        workers={model.name: deps.model_registry.worker_count(model.name) for model in deps.model_registry.models()}
    )


@router.get("/metrics", response_class=Response, responses=problems(404))
def metrics(deps: InjectedDependencies) -> Response:
    """Figures for Prometheus; 404 where they have a port of their own, and where keys are on: not for clients' eyes."""
    if deps.settings.metrics_port or deps.settings.auth == "on":
        raise NotFound("Metrics are served on a port of their own.")
    return Response(deps.metrics.expose(), media_type=CONTENT_TYPE)
