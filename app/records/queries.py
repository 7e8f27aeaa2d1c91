"""The validated request and the published result in a saved query's record. Workers use these too."""

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

from app.records.shared import EmbeddingRecord, ExampleRecord, ModelRecord

# Of a query's examples together. One or two seconds make the best query; this is more than any one example may last.
EXCERPT_SECONDS = 60.0


class QueryRequest(BaseModel):
    """`Job.request` of a saved query."""

    model_config = ConfigDict(extra="ignore")

    name: str
    examples: list[ExampleRecord]
    model: ModelRecord


class ExcerptRecord(BaseModel):
    """The part of an example that its query is made of: a FLAC of one channel in the store, whose samples times `gain`
    are those of the example."""

    key: str
    bytes: int
    seconds: float
    gain: float


class QueryResult(EmbeddingRecord):
    """`Job.result` of a saved query: the embedding by the model that its request was for.

    `excerpts`: of its examples, so that other models can embed it too; none where an earlier release saved it.
    `others`: the embeddings that these have made, each when it was first asked.
    """

    excerpts: list[ExcerptRecord] = Field(default=[])
    others: list[EmbeddingRecord] = Field(default=[])

    @property
    def embeddings(self) -> list[EmbeddingRecord]:
        """All embeddings, the first one first."""
        return [EmbeddingRecord.model_validate(self.model_dump()), *self.others]

    def find(self, understands: Callable[[str], bool]) -> EmbeddingRecord | None:
        """Return an embedding of a model, such as "base@3", that another one understands; None: there is none."""
        return next((found for found in self.embeddings if understands(found.model.id)), None)

    def with_embedding(self, embedding: EmbeddingRecord) -> "QueryResult":
        """Return the result with a further model's embedding."""
        return self.model_copy(update={"others": [*self.others, embedding]})

    def mismatch(self, model: str) -> str:
        """Return the sentence that a query without excerpts is refused with."""
        ready = ", ".join(found.model.id for found in self.embeddings)
        return (
            f"The saved query belongs to the model {ready}, not to {model}, and has no examples to be embedded anew:"
            " save its examples again, or name that model."
        )
