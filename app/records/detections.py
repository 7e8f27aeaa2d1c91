"""The validated request and the published result in a detection's record. Workers use these too."""

from pydantic import BaseModel, ConfigDict

from app.records.shared import ModelRecord, RecordingRecord


class DetectionRequest(BaseModel):
    """`Job.request` of a detection: the number of tags, and the probability that an event must reach."""

    model_config = ConfigDict(extra="ignore")

    audio: RecordingRecord
    model: ModelRecord
    threshold: float
    top: int


class TagRecord(BaseModel):
    """A class in the recording, and its highest probability."""

    label: str
    mid: str
    probability: float


class EventRecord(BaseModel):
    """A class that sounds from `start` to `end`, in seconds; confidence: its highest probability there."""

    label: str
    mid: str
    start: float
    end: float
    confidence: float


class PictureRecord(BaseModel):
    """The stored picture of the timeline, a PNG file."""

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
