"""Validation of JSON from clients: strict, with errors that point at the wrong fields."""

from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError

from app.errors import RequestInvalid
from app.http.problems import NOT_AN_OBJECT, UNKNOWN_FIELD

_MAX_FIELD_ERRORS = 256  # to describe: a small body can have hundreds of thousands, and each is slow to format

Model = TypeVar("Model", bound=BaseModel)


class RequestModel(BaseModel):
    """Base of request bodies: unknown fields are errors, and values are not coerced from other types."""

    model_config = ConfigDict(extra="forbid", strict=True)


async def require_known_parameters(request: Request) -> None:
    """Require that a request for a list has only parameters of its route: a mistyped filter would return more.

    Raises `RequestValidationError` that names each.
    """
    known = _parameters(request.scope["route"].dependant)
    message = f"Unknown; those here are {', '.join(known)}"
    if unknown := sorted(request.query_params.keys() - known.keys()):
        raise RequestValidationError(
            [{"type": "unknown_parameter", "loc": ("query", name), "msg": message} for name in unknown]
        )


def validate(model: type[Model], document: Any, *location: str) -> Model:
    """Return a model of parsed JSON; `location` is the path of the form field that it comes from.

    Raises `RequestValidationError` that points at each error, unknown fields first, since a field that is missing is
    often there under a wrong name; or `RequestInvalid` with their number if they are many.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        if error.error_count() > _MAX_FIELD_ERRORS:
            raise RequestInvalid(f"The request has {error.error_count()} errors.") from None
        errors = sorted(error.errors(include_url=False), key=lambda each: each["type"] != UNKNOWN_FIELD)
        raise RequestValidationError(
            [{**_with_fields(model, each), "loc": ("body", *location, *each["loc"])} for each in errors]
        ) from error


def _parameters(dependant: Dependant) -> dict[str, None]:
    """Return the names of the query parameters of a route and of its dependencies, in their order."""
    names = {parameter.alias: None for parameter in dependant.query_params}
    for dependency in dependant.dependencies:
        names |= _parameters(dependency)
    return names


def _with_fields(model: type[BaseModel], error: Any) -> dict[str, Any]:
    """Return an error of Pydantic's; where a field is unknown, or no object, its message names the fields to send."""
    is_unknown = error["type"] == UNKNOWN_FIELD
    if not is_unknown and error["type"] not in NOT_AN_OBJECT:
        return error
    described = _model_at(model, error["loc"][:-1] if is_unknown else error["loc"])
    if described is None:
        return error
    start = "Unknown field; those here are" if is_unknown else "Input should be an object; its fields are"
    return {**error, "type": "fields_named", "msg": f"{start} {', '.join(described.model_fields)}"}


def _model_at(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    """Return the model of the object at this path of a document; None if no model describes it."""
    kind: Any = model
    for step in location:
        if isinstance(step, int):
            kind = _without_none(get_args(kind)[0]) if get_origin(kind) is list else None
        else:
            field = kind.model_fields.get(step) if _is_model(kind) else None
            kind = _without_none(field.annotation) if field is not None else None
    return kind if _is_model(kind) else None


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _without_none(annotation: Any) -> Any:
    """Return the type of a field without its metadata and without None."""
    if get_origin(annotation) is Annotated:
        return _without_none(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return _without_none(kinds[0]) if len(kinds) == 1 else None
    return annotation
