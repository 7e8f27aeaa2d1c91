"""Uploads as clients see them."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from app.http.validation import RequestModel
from app.keys.signed_urls import Sign
from app.outbound import LONGEST_URL
from app.records.audio import Audio, PendingUpload


class UrlSent(RequestModel):
    """A recording that is on the web."""

    url: Annotated[
        str, StringConstraints(max_length=LONGEST_URL), Field(description="http or https, on the public internet")
    ]


class PresignSent(RequestModel):
    """An upload that the client will bring to the store itself. `bytes`: its exact size."""

    filename: Annotated[str, StringConstraints(max_length=1024)] | None = None
    bytes: Annotated[int, Field(ge=1)]
    content_type: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.+-]{1,64}/[A-Za-z0-9.+-]{1,64}$")] | None = (
        Field(default=None, description="sent along to the store; what the file is, its bytes decide")
    )


class AwaitedAudio(BaseModel):
    """An upload before its bytes are there; it is known as audio once it is completed, before `expires_at`."""

    id: str
    status: Literal["awaited"] = "awaited"
    filename: str | None
    bytes: int
    created_at: datetime
    expires_at: datetime
    complete_url: str

    @classmethod
    def from_record(cls, awaited: PendingUpload) -> "AwaitedAudio":
        """The answer for a record."""
        return cls(
            id=awaited.id,
            filename=awaited.filename,
            bytes=awaited.bytes,
            created_at=datetime.fromtimestamp(awaited.created_at, UTC),
            expires_at=datetime.fromtimestamp(awaited.expires_at, UTC),
            complete_url=f"/v1/audio/{awaited.id}/complete",
        )


class DirectUpload(BaseModel):
    """The request that brings the bytes to the store."""

    method: Literal["PUT"] = "PUT"
    url: str
    headers: dict[str, str]
    expires_at: datetime


class PresignAnswer(BaseModel):
    """Send `upload`, then POST to `audio.complete_url`."""

    audio: AwaitedAudio
    upload: DirectUpload


class ChannelPeaks(BaseModel):
    """One channel's least and greatest sample, point by point; full scale is 1."""

    minimum: list[float]
    maximum: list[float]


class PeaksAnswer(BaseModel):
    """A waveform to draw: points of equal length in time. Duration in seconds, as decoded; sample rate in hertz."""

    points: int
    duration: float
    sample_rate: int
    channels: list[ChannelPeaks]


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
    def from_record(cls, audio: Audio, sign: Sign) -> "AudioAnswer":
        """The answer for a record."""
        fields = audio.model_dump(exclude={"schema_version", "owner", "created_at", "expires_at"})
        return cls(
            **fields,
            created_at=datetime.fromtimestamp(audio.created_at, UTC),
            expires_at=datetime.fromtimestamp(audio.expires_at, UTC),
            url=sign(f"/v1/audio/{audio.id}/content"),
        )
