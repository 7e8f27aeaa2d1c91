"""Registry of models: workers announce a model at start, with its embedding size and classes, and send heartbeats.

The description of a model outlives its workers, so that jobs can wait for new ones; the last announcement counts. The
models that a deployment is configured for are known before any worker announces them (`descriptions.py`). A worker is
alive while its last heartbeat is younger than `heartbeat_timeout`.

A description is what `models.engine.Engine.describe()` returns:
{"name", "version", "embedding_size", "labels", "askable_labels", "sample_rate",
 "classes": [{"label", "mid", "slug", "path": [...], "askable", "source", "synonyms": [...], "description"}]}
"""

import logging
import time
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints
from redis import Redis

from app.errors import ModelUnavailable
from app.model_registry.descriptions import ConfiguredModels
from app.redis_client import execute_when_full, server_clock
from app.settings import Settings

log = logging.getLogger("earmark.models")

_MODELS = "earmark:models"
_CACHE_SECONDS = 1.0  # of a description, which is large, and which every new job needs

# A model as requests name it: `base`, or `base@1` for one version of it.
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}(@[A-Za-z0-9._-]{1,32})?$")]

# Where a class's embedding comes from: clips of the class, or a prediction from the detector's classifier.
Source = Literal["clips", "predicted"]


class ClassDescription(BaseModel):
    """A class of the detector; `path` leads to it from the root of AudioSet's tree."""

    label: str
    mid: str
    slug: str
    path: list[str] = []
    askable: bool = False  # whether the model has an embedding of it, so that a target can name it
    source: Source | None = None  # of that embedding; None if there is none, or if an earlier release announced it
    synonyms: list[str] = []
    description: str = ""


class ModelDescription(BaseModel):
    """A model, as its workers describe it. `sample_rate` in hertz; `queries_of`: the earlier versions whose queries it
    understands, since their query encoder is the same."""

    model_config = ConfigDict(extra="ignore")

    name: str
    version: str
    embedding_size: int
    labels: int
    askable_labels: int
    sample_rate: int
    queries_of: list[str] = []
    classes: list[ClassDescription] = []

    def understands(self, made_by: str | None) -> bool:
        """Return whether a query that a model made, such as "base@3", can be used with this one."""
        return made_by in {f"{self.name}@{version}" for version in (self.version, *self.queries_of)}


def workers_key(model: str, short: bool = False) -> str:
    """Return the Redis key of a model's workers by last heartbeat; with `short`, of those that only run short jobs."""
    return f"earmark:workers:{model}:short" if short else f"earmark:workers:{model}"


class ModelRegistry:
    """The models of one deployment."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._clock = server_clock(redis)
        self._parsed: dict[bytes | str, ModelDescription] = {}
        self._cache: dict[str, tuple[float, ModelDescription]] = {}  # by name, with the time when it expires
        self._configured = ConfiguredModels(settings)

    def announce(self, description: dict, worker: str, short: bool = False) -> None:
        """Register a model and a worker that has loaded it. `worker` is the worker's name, new for every start."""
        model = ModelDescription.model_validate(description)
        self._redis.hset(_MODELS, model.name, model.model_dump_json())
        self._cache.pop(model.name, None)
        self.heartbeat(model.name, worker, short)

    def is_announced(self, model: str) -> bool:
        """Return whether a worker's announcement of a model is kept: the server may have lost it."""
        return bool(self._redis.hexists(_MODELS, model))

    def heartbeat(self, model: str, worker: str, short: bool = False) -> None:
        """Record a worker's heartbeat. Workers call it every `heartbeat_seconds`, also while a job runs.

        short: the worker only runs short jobs.
        """
        now = self._clock.now()
        with self._redis.pipeline() as pipe:
            pipe.zadd(workers_key(model), {worker: now})
            if short:
                pipe.zadd(workers_key(model, short=True), {worker: now})
            execute_when_full(self._redis, pipe)

    def leave(self, model: str, worker: str) -> None:
        """Remove a worker that shuts down."""
        self._redis.zrem(workers_key(model), worker)
        self._redis.zrem(workers_key(model, short=True), worker)

    def worker_count(self, model: str) -> int:
        """Return the number of live workers of the model."""
        return self._redis.zcount(workers_key(model), self._clock.now() - self._settings.heartbeat_timeout, "+inf")

    def delete_dead(self, model: str) -> int:
        """Remove workers without a heartbeat for ten times `heartbeat_timeout`; return how many."""
        oldest = self._clock.now() - 10 * self._settings.heartbeat_timeout
        self._redis.zremrangebyscore(workers_key(model, short=True), 0, oldest)
        return self._redis.zremrangebyscore(workers_key(model), 0, oldest)

    def models(self) -> list[ModelDescription]:
        """Return all models that are configured or were ever announced, by name; without unreadable descriptions."""
        descriptions: Any = self._redis.hgetall(_MODELS)
        texts = self._configured.texts() | {name.decode(): text for name, text in descriptions.items()}
        models = []
        for name, text in sorted(texts.items()):
            with suppress(ModelUnavailable):
                models.append(self._parse(name, text))
        return models

    def model(self, name: str) -> ModelDescription:
        """Return a model, at most a second old.

        Raises `ModelUnavailable` if it is not configured and no worker ever announced it, or if its description is
        unreadable: the next heartbeat of a worker announces it again.
        """
        expires_at, model = self._cache.get(name, (0.0, None))
        if model is not None and time.monotonic() < expires_at:
            return model
        text = self._redis.hget(_MODELS, name) or self._configured.texts().get(name)
        if text is None:
            raise ModelUnavailable(f"No worker has announced the model {name} yet.")
        model = self._parse(name, text)
        self._cache[name] = (time.monotonic() + _CACHE_SECONDS, model)
        return model

    def resolve(self, name: str | None) -> ModelDescription:
        """Return the model that a request names (see `ModelName`), the server's own if it names none.

        Raises `ModelUnavailable`: no worker has announced the model, or workers have another version of it.
        """
        name, _, version = (name or self._settings.model).partition("@")
        model = self.model(name)
        if version and version != model.version:
            raise ModelUnavailable(f"Workers have {model.name}@{model.version}.")
        return model

    def _parse(self, name: str, text: bytes | str) -> ModelDescription:
        """Parse a description, each text once: descriptions are large (527 classes) and rarely change."""
        if text not in self._parsed:
            if len(self._parsed) > 16:
                self._parsed.clear()
            try:
                self._parsed[text] = ModelDescription.model_validate_json(text)
            except ValueError as error:
                log.error("the description of the model %s cannot be read: %s", name, error)
                raise ModelUnavailable(f"The description of the model {name} cannot be read.") from error
        return self._parsed[text]
