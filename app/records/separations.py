"""The validated request and the published result in a separation's record. Workers use these too."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.records.shared import EmbeddingRecord, ExampleRecord, MatchedClass, ModelRecord, RecordingRecord

Format = Literal["wav", "flac", "mp3", "ogg", "opus", "m4a"]
Quality = Literal["standard", "high"]


class Span(BaseModel):
    """A section of a recording, in seconds."""

    start: float
    end: float


class TargetRecord(BaseModel):
    """One target, by exactly one of `examples`, `label` (the name of a class), `spans` of the mixture and `embedding`
    (of a saved query, or a client's own), or by `examples` of a class and its `label`; `not_examples` or `not_label`:
    its negative query. `matched`: the classes that a text means, in place of `label`, which is the heaviest of them for
    workers of an earlier release. `query_id`: the saved query of `embedding`, from which a worker that does not
    understand that makes its own."""

    model_config = ConfigDict(extra="ignore")

    name: str
    examples: list[ExampleRecord] = []
    label: str | None = None
    matched: list[MatchedClass] = []
    spans: list[Span] = []
    embedding: EmbeddingRecord | None = None
    query_id: str | None = None
    not_examples: list[ExampleRecord] = []
    not_label: str | None = None


class OutputRecord(BaseModel):
    """How stems are made and encoded; `bit_depth` None is the format's default. Workers of an earlier release do not
    know `quality`, and make stems of the standard one."""

    format: Format = "flac"
    bit_depth: int | None = None
    residual: bool = True
    joint: bool = False
    gate: bool = True
    quality: Quality = "standard"


class AutoRecord(BaseModel):
    """Targets that the worker chooses: classes detected with a probability of `threshold`, the most probable first."""

    max_targets: int
    threshold: float


class SeparationRequest(BaseModel):
    """`Job.request` of a separation: `targets`, or `auto`. `model`: as it was announced when the job was created."""

    model_config = ConfigDict(extra="ignore")

    mixture: RecordingRecord
    model: ModelRecord
    targets: list[TargetRecord] = []
    auto: AutoRecord | None = None
    output: OutputRecord
    source: str | None = None  # the name of the mixture's file, after which outputs are named


class StemRecord(BaseModel):
    """One stored stem; `name` is its target's, or `residual`. Peak: linear; loudness: LUFS, None for silence."""

    name: str
    key: str
    content_type: str
    bytes: int
    sha256: str
    peak: float
    loudness: float | None


# Metrics of a result that are no durations: what the samples depend on to the last bit. bits: 16 for bfloat16; speeds:
# at how many the masks are computed, whose mean is applied.
COMPUTATION = ("threads", "batch", "bits", "speeds")


class SeparationResult(BaseModel):
    """`Job.result` of a separation. `metrics` in seconds: decoding, separating, encoding; real_time_factor; and
    COMPUTATION. `quality`: of the stems, whatever was requested of a worker of an earlier release."""

    model_config = ConfigDict(extra="ignore")

    mixture: RecordingRecord
    stems: list[StemRecord]
    gain: float = 1.0
    quality: Quality = Field(default="standard", exclude_if=lambda quality: quality == "standard")
    model: ModelRecord
    metrics: dict[str, float] = {}
