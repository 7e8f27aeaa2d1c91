"""`/v1/models`: the models that workers have announced."""

from fastapi import APIRouter
from pydantic import BaseModel

from app.dependencies import InjectedDependencies
from app.http.openapi import problems

router = APIRouter(prefix="/v1/models", tags=["models"])


class ModelAnswer(BaseModel):
    """A model; jobs wait while it has no worker. Sample rate in hertz."""

    name: str
    version: str
    default: bool
    embedding_size: int
    labels: int
    askable_labels: int
    sample_rate: int
    workers: int


class ModelsAnswer(BaseModel):
    """All models that were ever announced."""

    data: list[ModelAnswer]


@router.get("", responses=problems(503))
def models(deps: InjectedDependencies) -> ModelsAnswer:
    """List the models and the number of their workers."""
    return ModelsAnswer(
        data=[
            ModelAnswer(
                **model.model_dump(include=set(ModelAnswer.model_fields)),
                default=model.name == deps.settings.model,
                workers=deps.model_registry.worker_count(model.name),
            )
            for model in deps.model_registry.models()
        ]
    )
