"""The validated request in a saved query's record; its result is an `EmbeddingRecord`. Workers use it too."""

from pydantic import BaseModel, ConfigDict

from app.records.shared import ExampleRecord, ModelRecord


class QueryRequest(BaseModel):
    """`Job.request` of a saved query."""

    model_config = ConfigDict(extra="ignore")

    name: str
    examples: list[ExampleRecord]
    model: ModelRecord
