"""What the records of several kinds of jobs are made of. Workers use these too."""

import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class ModelRecord(BaseModel):
    """Which model does it, or did."""

    name: str
    version: str

    @property
    def id(self) -> str:
        """Such as `base@1`: embeddings of another one cannot be used."""
        return f"{self.name}@{self.version}"


class RecordingRecord(BaseModel):
    """A recording: its upload, and what the probe or (in a result) the decoder said. Seconds, hertz."""

    audio_id: str
    duration: float | None
    sample_rate: int
    channels: int


class ExampleRecord(BaseModel):
    """An upload that sounds like the target; its bytes are under `app.records.audio.store_key(audio_id)`."""

    audio_id: str


class EmbeddingRecord(BaseModel):
    """A query's embedding, as a saved query's result and in what asks with it.

    `vector` is base64 of little-endian float32: a third of what the numbers take as text, and exact. `coherence` 0 to 1
    and `seconds_used` of sound are None where a client gave the numbers themselves.
    """

    model_config = ConfigDict(extra="ignore")

    vector: str
    model: ModelRecord
    coherence: float | None = None
    seconds_used: float | None = None


def pack_vector(vector: Iterable[float]) -> str:
    """Numbers as an `EmbeddingRecord` keeps them; those beyond float32's range become infinite."""
    return b64encode(_little(array("f", vector)).tobytes()).decode()


def unpack_vector(vector: str) -> list[float]:
    """The numbers of an `EmbeddingRecord`."""
    numbers = array("f")
    numbers.frombytes(b64decode(vector))
    return _little(numbers).tolist()


def _little(numbers: "array[float]") -> "array[float]":
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
