"""What clients send as JSON: checked without coercion, and told with pointers where it is wrong."""

from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError

from app.errors import RequestInvalid

_MAX_FIELD_ERRORS = 256  # that are looked at: a small body can hold hundreds of thousands, each dear to describe

Model = TypeVar("Model", bound=BaseModel)


class RequestModel(BaseModel):
    """What clients send: unknown fields are refused, and nothing is coerced from another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


def validate(model: type[Model], sent: Any, *place: str) -> Model:
    """A model from JSON that was sent.

    Raises `RequestValidationError` that points into it, or `RequestInvalid` that only counts where faults are too many.
    """
    try:
        return model.model_validate(sent)
    except ValidationError as error:
        if error.error_count() > _MAX_FIELD_ERRORS:
            raise RequestInvalid(f"The request has {error.error_count()} faults.") from None
        raise RequestValidationError(
            [{**wrong, "loc": ("body", *place, *wrong["loc"])} for wrong in error.errors(include_url=False)]
        ) from error
