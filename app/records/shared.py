"""Parts of the records of several kinds of jobs. Workers use these too."""

import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# None, the first that can be read, is left out of documents.
Track = Annotated[
    int | None, Field(exclude_if=lambda track: track is None, description="the audio track that was chosen, from 1")
]

OPEN_JOBS_KEY = "earmark:jobs:open"  # ids of the jobs that wait or run


class ModelRecord(BaseModel):
    """The model that processes, or processed, a job."""

    name: str
    version: str

    @property
    def id(self) -> str:
        """Name and version, such as `base@1`."""
        return f"{self.name}@{self.version}"


class RecordingRecord(BaseModel):
    """A recording: its upload, and the result of the probe or (in a job's result) of the decoder. Seconds, hertz."""

    audio_id: str
    duration: float | None
    sample_rate: int
    channels: int
    track: Track = None


class ExampleRecord(BaseModel):
    """An upload that sounds like the target; its bytes are under `app.records.audio.store_key(audio_id)`."""

    audio_id: str
    track: Track = None


class MatchedClass(BaseModel):
    """A class that a text means, and its weight beside the others, which add up to 1."""

    label: str
    weight: float


class EmbeddingRecord(BaseModel):
    """The embedding of a query: the result of a saved query, and part of requests that use it.

    `vector` is base64 of little-endian float32: exact, and a third of the size of decimal numbers. `coherence` 0 to 1
    and `seconds_used` of sound are None where a client gave the numbers themselves.
    """

    model_config = ConfigDict(extra="ignore")

    vector: str
    model: ModelRecord
    coherence: float | None = None
    seconds_used: float | None = None


def embedding_mismatch(made_by: str | None, model: str) -> str:
    """Return the sentence that an embedding of another model is refused with."""
    return (
        f"The embedding belongs to the model {made_by}, not to {model}: make it again, name that model, or save its"
        " examples with POST /v1/queries, since saved queries are embedded anew for each model."
    )


def pack_vector(vector: Iterable[float]) -> str:
    """Return numbers as the `vector` of an `EmbeddingRecord`; those beyond the range of float32 become infinite."""
    return b64encode(_little(array("f", vector)).tobytes()).decode()


def unpack_vector(vector: str) -> list[float]:
    """Return the numbers of the `vector` of an `EmbeddingRecord`."""
    numbers = array("f")
    numbers.frombytes(b64decode(vector))
    return _little(numbers).tolist()


def _little(numbers: "array[float]") -> "array[float]":
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
