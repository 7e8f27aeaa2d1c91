"""`/v1/labels`: search for classes that targets can name."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from app.dependencies import InjectedDependencies
from app.http.openapi import problems
from app.http.validation import require_known_parameters
from app.labels.service import vocabulary
from app.model_registry.registry import ClassDescription, ModelName, Source

router = APIRouter(prefix="/v1/labels", tags=["labels"])


class LabelAnswer(BaseModel):
    """A class of AudioSet. `askable`: a target can name it, as the model has its embedding; `reason`: why not.
    `source`: whether that embedding is of clips of the class, or predicted from the detector's classifier. Score from 0
    to 1."""

    label: str
    mid: str
    slug: str
    path: list[str]
    askable: bool
    reason: str | None
    source: Source | None
    score: float


class LabelsAnswer(BaseModel):
    """Classes, the best match first. `refusal`: why a target with this `text` would be refused, null if it would not;
    `near`: then, names of similar classes that targets can name."""

    data: list[LabelAnswer]
    refusal: str | None
    near: list[str]


@router.get("", dependencies=[Depends(require_known_parameters)], responses=problems(422, 503))
def search(
    deps: InjectedDependencies,
    q: Annotated[str, Query(max_length=200, description="a text to match; empty: all classes")] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    askable: Annotated[bool | None, Query(description="only classes that targets can name, or only others")] = None,
    model: Annotated[ModelName | None, Query(description="such as `base`; default: the server's")] = None,
) -> LabelsAnswer:
    """Search the classes of a model by text. The best match is what a target with this `text` asks for, if it is
    sure."""
    described = deps.model_registry.resolve(model)
    classes = vocabulary(described)
    matches = classes.search(q, len(described.classes))
    chosen = [(label, score) for label, score in matches if askable in (None, label.askable)][:limit]
    refusal, near = classes.refusal(q)
    return LabelsAnswer(data=[_answer(*one) for one in chosen], refusal=refusal, near=near)


def _answer(label: ClassDescription, score: float) -> LabelAnswer:
    reason = None if label.askable else "The model has no embedding of this class: give an example of it, or a span."
    return LabelAnswer(**label.model_dump(), reason=reason, score=round(score, 3))
