"""`/livez`, `/readyz`, `/metrics`: for whoever runs this."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from app.dependencies import UsesParts
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
def ready(parts: UsesParts) -> Ready:
    """Whether jobs can be taken: the queue's server and the store answer."""
    parts.redis.ping()
    parts.storage.check()
    return Ready(workers={model.name: parts.registry.workers(model.name) for model in parts.registry.models()})


@router.get("/metrics", response_class=Response, responses=problems(404))
def metrics(parts: UsesParts) -> Response:
    """Figures for Prometheus; 404 where they have a port of their own, and where keys are on: not for clients' eyes."""
    if parts.settings.metrics_port or parts.settings.auth == "on":
        raise NotFound("Metrics are served on a port of their own.")
    return Response(parts.metrics.expose(), media_type=CONTENT_TYPE)
