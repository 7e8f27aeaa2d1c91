"""`/v1/models`: the models that take jobs, each version of its own."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.dependencies import InjectedDependencies
from app.http.openapi import problems
from app.model_registry.registry import choose

router = APIRouter(prefix="/v1/models", tags=["models"])


class ModelAnswer(BaseModel):
    """A model; jobs wait while it has no worker. Sample rate in hertz."""

    name: str
    version: str
    default: bool
    embedding_size: int
    labels: Annotated[int, Field(description="classes that detections find")]
    askable_labels: Annotated[
        int,
        Field(
            description="classes that targets can name, `GET /v1/labels?askable=true`; among them may be some that "
            "detections do not find, of which the model has heard clips"
        ),
    ]
    sample_rate: int
    workers: int


class ModelsAnswer(BaseModel):
    """The versions that living workers have, and those that the server is configured for."""

    data: list[ModelAnswer]


@router.get("", name="list", responses=problems(503))
def models(deps: InjectedDependencies) -> ModelsAnswer:
    """List the models, each version of its own, and the number of their workers."""
    models = deps.model_registry.models()
    default = choose(deps.settings.model, [model for model, _ in models])
    return ModelsAnswer(
        data=[
            ModelAnswer(
                **description.model_dump(include=set(ModelAnswer.model_fields)),
                default=model == default,
                workers=model.workers,
            )
            for model, description in models
        ]
    )
