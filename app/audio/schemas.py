"""Schemas of uploads: requests and responses."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from app.http.validation import RequestModel
from app.keys.signed_urls import Sign
from app.outbound import LONGEST_URL
from app.records.audio import Audio, PendingUpload, TrackRecord


class UrlSent(RequestModel):
    """A recording to fetch from a URL."""

    url: Annotated[
        str, StringConstraints(max_length=LONGEST_URL), Field(description="http or https, on the public internet")
    ]


class PresignSent(RequestModel):
    """A presigned upload to create. `bytes`: the exact size of the file."""

    filename: Annotated[str, StringConstraints(max_length=1024)] | None = None
    bytes: Annotated[int, Field(ge=1)]
    content_type: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.+-]{1,64}/[A-Za-z0-9.+-]{1,64}$")] | None = (
        Field(default=None, description="passed on to the store; the file's type is determined from its bytes")
    )


class AwaitedAudio(BaseModel):
    """A pending upload, whose bytes are not there yet; to be completed before `expires_at`."""

    id: str
    status: Literal["awaited"] = "awaited"
    filename: str | None
    bytes: int
    created_at: datetime
    expires_at: datetime
    complete_url: str

    @classmethod
    def from_record(cls, pending: PendingUpload) -> "AwaitedAudio":
        """Return the representation of a record."""
        return cls(
            id=pending.id,
            filename=pending.filename,
            bytes=pending.bytes,
            created_at=datetime.fromtimestamp(pending.created_at, UTC),
            expires_at=datetime.fromtimestamp(pending.expires_at, UTC),
            complete_url=f"/v1/audio/{pending.id}/complete",
        )


class DirectUpload(BaseModel):
    """The request that uploads the bytes to the store."""

    method: Literal["PUT"] = "PUT"
    url: str
    headers: dict[str, str]
    expires_at: datetime


class PresignAnswer(BaseModel):
    """Send `upload`, then POST to `audio.complete_url`."""

    audio: AwaitedAudio
    upload: DirectUpload


class ChannelPeaks(BaseModel):
    """Minimum and maximum sample of one channel at each point; full scale is 1."""

    minimum: list[float]
    maximum: list[float]


class PeaksAnswer(BaseModel):
    """A waveform for drawing; all points last equally long. `start` and `duration` of what is drawn, in seconds: it may
    begin a little before the requested start, and ends where the recording ends. Sample rate in hertz."""

    points: int
    start: float
    duration: float
    sample_rate: int
    channels: list[ChannelPeaks]


class AudioAnswer(BaseModel):
    """An upload. Duration in seconds (null if the file's headers do not tell it), sample rate in hertz.

    `tracks`: its audio tracks (not in records of earlier releases); codec, duration, sample rate and channels are those
    of the first that is readable, which is used where a request names none.
    """

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
    tracks: Annotated[list[TrackRecord], Field(exclude_if=lambda tracks: not tracks)] = []
    created_at: datetime
    expires_at: datetime
    url: str
    peaks_url: str
    spectrogram_url: str

    @classmethod
    def from_record(cls, audio: Audio, sign: Sign) -> "AudioAnswer":
        """Return the representation of a record; `sign` makes URLs that need no key."""
        fields = audio.model_dump(exclude={"schema_version", "owner", "created_at", "expires_at"})
        return cls(
            **fields,
            created_at=datetime.fromtimestamp(audio.created_at, UTC),
            expires_at=datetime.fromtimestamp(audio.expires_at, UTC),
            url=sign(f"/v1/audio/{audio.id}/content"),
            peaks_url=sign(f"/v1/audio/{audio.id}/peaks"),
            spectrogram_url=sign(f"/v1/audio/{audio.id}/spectrogram"),
        )
