"""Uploads as clients see them."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from app.audio.records import Audio
from app.keys.signatures import Sign
from app.outside import LONGEST_URL
from app.sent import Sent


class UrlSent(Sent):
    """A recording that is on the web."""

    url: Annotated[
        str, StringConstraints(max_length=LONGEST_URL), Field(description="http or https, on the public internet")
    ]


class AudioAnswer(BaseModel):
    """An upload. Duration in seconds (null where the file's headers do not say), sample rate in hertz."""

    id: str
    status: Literal["ready"] = "ready"
    filename: str | None
    bytes: int
    sha256: str
    content_type: str
    container: str
    codec: str
    duration: float | None
    sample_rate: int
    channels: int
    created_at: datetime
    expires_at: datetime
    url: str

    @classmethod
    def of(cls, audio: Audio, sign: Sign) -> "AudioAnswer":
        """The answer for a record."""
        fields = audio.model_dump(exclude={"schema_version", "owner", "created_at", "expires_at"})
        return cls(
            **fields,
            created_at=datetime.fromtimestamp(audio.created_at, UTC),
            expires_at=datetime.fromtimestamp(audio.expires_at, UTC),
            url=sign(f"/v1/audio/{audio.id}/content"),
        )
