"""What a detection's record holds: the request as checked, and the result as published. Workers use these too."""

from pydantic import BaseModel, ConfigDict

from app.records.shared import ModelRecord, RecordingRecord


class DetectionRequest(BaseModel):
    """`Job.request` of a detection: `top` tags, and events that reach the probability `threshold`."""

    model_config = ConfigDict(extra="ignore")

    audio: RecordingRecord
    model: ModelRecord
    threshold: float
    top: int


class TagRecord(BaseModel):
    """A class heard somewhere in the recording, and the highest probability that it has there."""

    label: str
    mid: str
    probability: float


class EventRecord(BaseModel):
    """A class heard from `start` to `end`, in seconds; confidence: its highest probability there."""

    label: str
    mid: str
    start: float
    end: float
    confidence: float


class PictureRecord(BaseModel):
    """The stored picture of the timeline, a PNG."""

    key: str
    bytes: int
    sha256: str


class DetectionResult(BaseModel):
    """`Job.result` of a detection. `metrics` in seconds: decoding, detecting, encoding; and real_time_factor."""

    model_config = ConfigDict(extra="ignore")

    audio: RecordingRecord
    tags: list[TagRecord]
    events: list[EventRecord]
    picture: PictureRecord
    model: ModelRecord
    metrics: dict[str, float] = {}
