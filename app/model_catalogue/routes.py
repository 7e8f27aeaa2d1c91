"""`/v1/models`: what workers have loaded."""

from fastapi import APIRouter
from pydantic import BaseModel

from app.dependencies import UsesParts
from app.http.openapi import problems

router = APIRouter(prefix="/v1/models", tags=["models"])


class ModelAnswer(BaseModel):
    """A model; jobs wait when it has no worker. Sample rate in hertz."""

    name: str
    version: str
    default: bool
    embedding_size: int
    labels: int
    askable_labels: int
    sample_rate: int
    workers: int


class ModelsAnswer(BaseModel):
    """Every model that was ever announced."""

    data: list[ModelAnswer]


@router.get("", responses=problems(503))
def models(parts: UsesParts) -> ModelsAnswer:
    """The models, with their workers."""
    return ModelsAnswer(
        data=[
            ModelAnswer(
                **model.model_dump(include=set(ModelAnswer.model_fields)),
                default=model.name == parts.settings.model,
                workers=parts.registry.workers(model.name),
            )
            for model in parts.registry.models()
        ]
    )
