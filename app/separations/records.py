"""What a separation's record holds: the request as checked, and the result as published. Workers use these too."""

from pathlib import PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict

Format = Literal["wav", "flac", "mp3", "ogg", "opus", "m4a"]
KIND = "separation"


class Span(BaseModel):
    """A stretch of a recording, in seconds."""

    start: float
    end: float


class ExampleRecord(BaseModel):
    """An upload that sounds like the target; its bytes are under `app.audio.records.store_key(audio_id)`."""

    audio_id: str


class TargetRecord(BaseModel):
    """One target: exactly one of `examples`, `label` (the class's own name) and `spans` of the mixture is given."""

    model_config = ConfigDict(extra="ignore")

    name: str
    examples: list[ExampleRecord] = []
    label: str | None = None
    spans: list[Span] = []


class OutputRecord(BaseModel):
    """How stems are written; `bit_depth` None is the format's default."""

    format: Format = "flac"
    bit_depth: int | None = None
    residual: bool = True
    joint: bool = False
    gate: bool = True


class MixtureRecord(BaseModel):
    """The mixture: its upload, and what the probe or (in a result) the decoder said. Seconds, hertz."""

    audio_id: str
    duration: float | None
    sample_rate: int
    channels: int


class ModelRecord(BaseModel):
    """Which model does it, or did."""

    name: str
    version: str


class SeparationRequest(BaseModel):
    """`Job.request` of a separation; `model` is the one that was announced when it was asked for."""

    model_config = ConfigDict(extra="ignore")

    mixture: MixtureRecord
    model: ModelRecord
    targets: list[TargetRecord]
    output: OutputRecord


class StemRecord(BaseModel):
    """One stored stem; `name` is its target's, or `residual`. Peak: linear; loudness: LUFS, None for silence."""

    name: str
    key: str
    content_type: str
    bytes: int
    sha256: str
    peak: float
    loudness: float | None


def file_name(stem: StemRecord) -> str:
    """What a stem is called where it is saved."""
    return f"{stem.name}{PurePosixPath(stem.key).suffix}"


class SeparationResult(BaseModel):
    """`Job.result` of a separation. `metrics` in seconds: decoding, separating, encoding; and real_time_factor."""

    model_config = ConfigDict(extra="ignore")

    mixture: MixtureRecord
    stems: list[StemRecord]
    gain: float = 1.0
    model: ModelRecord
    metrics: dict[str, float] = {}
