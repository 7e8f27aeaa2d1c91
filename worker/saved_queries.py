"""Excerpts of saved queries, by which a worker of any model embeds a query that another one has saved."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch

from app.errors import NotFound, QueryModelMismatch
from app.jobs.lifecycle import Job
from app.records.ids import new_id
from app.records.queries import EXCERPT_SECONDS, ExcerptRecord, QueryResult
from app.records.shared import EmbeddingRecord, ModelRecord, pack_vector
from models.audio import Waveform
from models.queries.query import Query
from worker.execution import JobExecution

logger = logging.getLogger("earmark.worker")

_LARGEST = 1 - 2.0**-23  # sample of 24 bits


def embedding_record(query: Query, model: ModelRecord) -> EmbeddingRecord:
    """Return the record of a query that a model has made."""
    return EmbeddingRecord(
        vector=pack_vector(query.vector.tolist()),
        model=model,
        coherence=round(query.coherence, 4),
        seconds_used=round(query.seconds_used, 3),
    )


def store_excerpts(execution: JobExecution, examples: Sequence[Waveform]) -> list[ExcerptRecord]:
    """Store what other models need to embed the examples.

    Raises QuotaExceeded where the query's owner may keep no more bytes, SilentQuery, StoreUnavailable and Cancelled.
    """
    found = execution.context.engine.excerpts(examples, EXCERPT_SECONDS)
    files = [execution.folder / f"{number}.flac" for number in range(len(found))]
    gains = [write_excerpt(path, excerpt) for path, excerpt in zip(files, found, strict=True)]
    count = sum(path.stat().st_size for path in files)
    execution.context.jobs.excerpt_bytes.require_room(execution.job.owner, count)
    records = []
    for path, excerpt, gain in zip(files, found, gains, strict=True):
        key, stored = execution.store(path)
        records.append(ExcerptRecord(key=key, bytes=stored.bytes, seconds=round(excerpt.duration, 3), gain=gain))
    return records


def find_embedding(execution: JobExecution, query_id: str) -> EmbeddingRecord:
    """Return a saved query's embedding for this worker's model, which is made and kept where there is none.

    Raises NotFound if the query is deleted, QueryModelMismatch if it has no excerpts, SilentQuery, StoreUnavailable,
    and RecordUnreadable.
    """
    engine = execution.context.engine
    while True:
        job, result = _load(execution, query_id)
        found = result.find(engine.understands)
        if found is not None:
            return found
        made = embedding_record(engine.embed(_read_excerpts(execution, result)), execution.model)
        if _keep(execution, job, result.with_embedding(made)):
            logger.info("%s: embedded for %s", query_id, engine.model_id)
            return made


def write_excerpt(path: Path, excerpt: Waveform) -> float:
    """Write a FLAC of 24 bits, with the peak between a half and the full scale; return the gain that undoes this."""
    samples = excerpt.samples[0].double().numpy()
    gain = 2.0 ** np.ceil(np.log2(np.abs(samples).max()))
    soundfile.write(path, (samples / gain).clip(-1.0, _LARGEST), excerpt.rate, "PCM_24", format="FLAC")
    return float(gain)


def read_excerpt(path: Path, gain: float) -> Waveform:
    """Return what `write_excerpt` has written. Raises LibsndfileError."""
    samples, rate = soundfile.read(path, dtype="float64")
    return Waveform(torch.from_numpy(samples * gain).float()[None], rate)


def _load(execution: JobExecution, query_id: str) -> tuple[Job, QueryResult]:
    context = execution.context
    try:
        job = execution.retry_store(lambda: context.large_fields.load(context.jobs.get(query_id)))
    except NotFound as error:
        detail = f"The saved query was deleted before it was embedded for the model {context.engine.model_id}."
        raise NotFound(detail) from error
    return job, QueryResult.model_validate(job.result)


def _read_excerpts(execution: JobExecution, result: QueryResult) -> list[Waveform]:
    if not result.excerpts:
        raise QueryModelMismatch(result.mismatch(execution.context.engine.model_id))
    return [_read_excerpt(execution, excerpt) for excerpt in result.excerpts]


def _read_excerpt(execution: JobExecution, excerpt: ExcerptRecord) -> Waveform:
    path = execution.folder / "excerpt.flac"
    execution.control.check()
    try:
        execution.retry_store(lambda: execution.context.storage.download(excerpt.key, path))
        return read_excerpt(path, excerpt.gain)
    except (NotFound, soundfile.LibsndfileError) as error:
        logger.error("the store has lost %s: %s", excerpt.key, error)
        detail = "The examples of the saved query are no longer in the store: save them again."
        raise QueryModelMismatch(detail) from error
    finally:
        path.unlink(missing_ok=True)


def _keep(execution: JobExecution, job: Job, result: QueryResult) -> bool:
    """Add an embedding to a query's record; False if the record has changed, so that another worker may have been
    first."""
    context, outcome = execution.context, result.model_dump()
    arguments = (job, new_id("exe").lower(), job.targets, outcome, job.warnings)
    stored = execution.retry_store(lambda: context.large_fields.store_outcome(*arguments))
    return context.jobs.amend(job, outcome, stored)
