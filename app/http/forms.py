"""Readers of the fields of a multipart form.

A route declares the fields of its form, reads the form, and builds its request from their values:

    file = file_field("file", uploads.receive, is_required=True)
    options = json_field("options", DetectionOptions, settings.body_bytes)
    await read_form(request, settings, file, options)
    fields = (options.value or DetectionOptions()).model_dump(exclude_unset=True)
    return DetectionCreate(audio_id=file.values[0].id, **fields)
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fastapi import Request

from app.errors import AudioUndecodable, EarmarkError, RequestInvalid, UploadTooLarge
from app.http import multipart
from app.http.multipart import Part
from app.http.problems import field_error
from app.http.validation import Model, validate
from app.settings import Settings

Value = TypeVar("Value")
_CLIENT_ERRORS = (AudioUndecodable.status, UploadTooLarge.status)


@dataclass
class FormField(Generic[Value]):
    """A field that a form may have; `values` holds what `read` returns for its parts, in the order of the form."""

    name: str
    read: Callable[[Part], Awaitable[Value]]
    limit: int = 1  # number of parts with this name
    is_file: bool = False  # a part without a file name is unexpected
    is_required: bool = False
    values: list[Value] = field(default_factory=list, init=False)

    @property
    def value(self) -> Value | None:
        """The first value; None if the form has no such part."""
        return self.values[0] if self.values else None

    def pointer(self) -> tuple[str | int, ...]:
        """Return the JSON pointer of the next value."""
        return (self.name, len(self.values)) if self.limit > 1 else (self.name,)

    def accepts(self, part: Part) -> bool:
        """Whether this part belongs to the field, and the limit allows one more."""
        return (
            part.name == self.name and len(self.values) < self.limit and (part.filename is not None or not self.is_file)
        )


def file_field(
    name: str, read: Callable[[Part], Awaitable[Value]], limit: int = 1, is_required: bool = False
) -> FormField[Value]:
    """Return a field of files, each read by `read` (`Uploads.receive`)."""
    return FormField(name, read, limit, is_file=True, is_required=is_required)


def text_field(name: str, max_bytes: int, limit: int = 1) -> FormField[str]:
    """Return a field of UTF-8 text of at most `max_bytes`."""
    return FormField(name, lambda part: part.text(max_bytes), limit)


def json_field(name: str, model: type[Model], max_bytes: int) -> FormField[Model]:
    """Return a field of JSON of at most `max_bytes`, validated as `model`; its errors point below `/name`."""

    async def read(part: Part) -> Model:
        return validate(model, await part.json(max_bytes), name)

    return FormField(name, read)


async def read_form(
    request: Request,
    settings: Settings,
    *fields: FormField,
) -> None:
    """Read the form of a request into the values of its fields.

    An error of a field's value points at the field, and at the value's number where a form may have several. Raises
    `RequestInvalid` for a part that no field accepts, and for a missing required field; and what `multipart.parts` and
    the readers of the fields raise.
    """
    files = sum(each.limit for each in fields if each.is_file)
    async with aclosing(multipart.parts(request, settings, files)) as form:
        async for part in form:
            accepting = next((each for each in fields if each.accepts(part)), None)
            if accepting is None:
                raise _unexpected(part, fields)
            try:
                accepting.values.append(await accepting.read(part))
            except EarmarkError as error:
                is_of_form = type(error) is RequestInvalid  # malformed, wherever it was noticed
                if not error.errors and not is_of_form and error.status in _CLIENT_ERRORS:
                    error.errors = [field_error(error.detail, *accepting.pointer())]
                raise
    for each in fields:
        if each.is_required and not each.values:
            raise RequestInvalid(f"The form has no {each.name}.", [field_error("Field required.", each.name)])


def _unexpected(part: Part, fields: Sequence[FormField]) -> RequestInvalid:
    """Return the error for a part that no field accepts. What the client sent comes last, since it may be cut."""
    meant = next((each for each in fields if each.name == part.name), None)
    if meant is None:
        detail = f"The fields of this form are {', '.join(each.name for each in fields)}; none is named {part.name}."
    elif meant.is_file and part.filename is None:
        detail = f"The field {meant.name} is a file: curl -F {meant.name}=@PATH, with the @."
    elif meant.limit == 1:
        detail = f"The form may have one {meant.name}."
    else:
        detail = f"The form may have {meant.limit} of {meant.name}."
    return RequestInvalid(detail, [field_error(detail, part.name)])
