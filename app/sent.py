"""What clients send as JSON: checked without coercion, and told with pointers where it is wrong."""

from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError

Model = TypeVar("Model", bound=BaseModel)


class Sent(BaseModel):
    """What clients send: unknown fields are refused, and nothing is coerced from another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


def validated(model: type[Model], sent: Any, *place: str) -> Model:
    """A model from JSON that was sent, or `RequestValidationError` that points into it."""
    try:
        return model.model_validate(sent)
    except ValidationError as error:
        raise RequestValidationError(
            [{**wrong, "loc": ("body", *place, *wrong["loc"])} for wrong in error.errors(include_url=False)]
        ) from error
