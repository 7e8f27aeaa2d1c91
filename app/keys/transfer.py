"""Export and import of keys as JSON lines, so that they outlive a lost Redis: hashes, never the keys themselves.

A line is the record of a key. Whoever reads it can use no key, but can forge webhooks if it holds the webhook secret;
so secrets are exported on request only, and a key that is imported without one gets a new one.
"""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from app.errors import EarmarkError
from app.keys.repository import SCHEMA, Key, new_webhook_secret
from app.records import ids


class LineInvalid(EarmarkError):
    """A line of an import is not the record of a key."""

    def __init__(self, number: int, error: ValidationError) -> None:
        problems = (f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in error.errors())
        super().__init__(f"Line {number} is not the record of a key: {'; '.join(problems)}. Nothing was imported.")


def require_name(name: str) -> str:
    """Return the name of a key. Raises ValueError."""
    if not name.isprintable() or not 0 < len(name) <= 64:
        raise ValueError("a name has 1 to 64 printable characters")
    return name


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    schema_version: Literal[1] = SCHEMA
    id: str = Field(pattern=ids.pattern(ids.KEY))
    name: Annotated[str, AfterValidator(require_name)]
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    rate: int = Field(ge=0)
    audio_seconds: int = Field(ge=0)
    priority: int = Field(ge=1, le=100)
    webhook_secret: str | None = Field(default=None, pattern=r"^whsec_[A-Za-z0-9+/]{32,88}={0,2}$")
    created_at: float = Field(ge=0, allow_inf_nan=False)


def to_line(key: Key, with_webhook_secret: bool) -> str:
    """Return the line of a key, without a line break."""
    return key.model_dump_json(exclude=None if with_webhook_secret else {"webhook_secret"})


def from_lines(lines: Iterable[str]) -> list[tuple[Key, bool]]:
    """Return the keys in lines, and whether each got a new webhook secret. Raises `LineInvalid`; skips empty lines."""
    keys = []
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = _Line.model_validate_json(text)
        except ValidationError as error:
            raise LineInvalid(number, error) from None
        is_new = line.webhook_secret is None
        secret = new_webhook_secret() if is_new else line.webhook_secret
        keys.append((Key(**{**line.model_dump(), "webhook_secret": secret}), is_new))
    return keys
