"""Validation of JSON from clients: strict, with errors that point at the wrong fields."""

from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError

from app.errors import RequestInvalid

_MAX_FIELD_ERRORS = 256  # to describe: a small body can have hundreds of thousands, and each is slow to format

Model = TypeVar("Model", bound=BaseModel)


class RequestModel(BaseModel):
    """Base of request bodies: unknown fields are errors, and values are not coerced from other types."""

    model_config = ConfigDict(extra="forbid", strict=True)


def validate(model: type[Model], document: Any, *location: str) -> Model:
    """Return a model of parsed JSON; `location` is the path of the form field that it comes from.

    Raises `RequestValidationError` that points at each error, or `RequestInvalid` with their number if they are many.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        if error.error_count() > _MAX_FIELD_ERRORS:
            raise RequestInvalid(f"The request has {error.error_count()} errors.") from None
        raise RequestValidationError(
            [{**each, "loc": ("body", *location, *each["loc"])} for each in error.errors(include_url=False)]
        ) from error
