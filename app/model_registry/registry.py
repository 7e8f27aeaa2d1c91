"""The models of a deployment: workers announce theirs at their start, with its classes, and send heartbeats.

A model is a name and a version, together its id, such as `base@3`; workers of several versions may live side by side,
as they do during a rolling upgrade. A worker is alive while its last heartbeat is younger than `heartbeat_timeout`.

Of the versions of a name those are available that living workers have, and the one that the deployment is configured
for (`descriptions.py`). Where no worker of the name lives, so is the one that a worker had last, for `model_seconds`:
its workers may be restarting. A request that names no version gets the first of these that there is: the configured
version, if a living worker has it; the version that most living workers have, and of several the greatest; the version
that a worker had last; the configured version.

A description is what `models.engine.Engine.describe()` returns:
{"name", "version", "embedding_size", "labels", "askable_labels", "sample_rate",
 "classes": [{"label", "mid", "slug", "path": [...], "askable", "source", "synonyms": [...], "description"}]}
"""

import logging
import re
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints
from redis import Redis

from app.errors import ModelUnavailable
from app.model_registry.descriptions import ConfiguredModels
from app.redis_client import execute_when_full, server_clock
from app.settings import Settings

log = logging.getLogger("earmark.models")

_MODELS = "earmark:models"  # descriptions by the models' ids; by their names as the previous release announced them
_SEEN = "earmark:models:seen"  # ids by the last heartbeat of any of their workers
_CACHE_SECONDS = 1.0  # of a description, which is large, and which every new job needs

# A model as requests name it: `base`, or `base@1` for one version of it.
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}(@[A-Za-z0-9._-]{1,32})?$")]

# Where a class's embedding comes from: clips of the class, or a prediction from the detector's classifier.
Source = Literal["clips", "predicted"]


class ClassDescription(BaseModel):
    """A class that a model detects, or separates by name; `path` leads to it from the root of AudioSet's tree."""

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

    @property
    def id(self) -> str:
        """Name and version, such as `base@1`."""
        return f"{self.name}@{self.version}"

    def understands(self, made_by: str | None) -> bool:
        """Return whether a query that a model made, such as "base@3", can be used with this one."""
        return made_by in {f"{self.name}@{version}" for version in (self.version, *self.queries_of)}


@dataclass(frozen=True)
class AvailableModel:
    """A version of a model that takes jobs, with its living workers."""

    id: str
    workers: int = 0
    seen: float = 0.0  # when a worker had it last
    is_configured: bool = False
    is_preferred: bool = False  # the configured version of its name, if there are several

    @property
    def name(self) -> str:
        """The model's name, without its version."""
        return self.id.partition("@")[0]

    @property
    def version_key(self) -> list[tuple[int, str]]:
        """A key that sorts versions as people read them: 2 before 10."""
        parts = re.split(r"(\d+)", self.id.partition("@")[2])
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def workers_key(model: str, short: bool = False) -> str:
    """Return the Redis key of a model's workers by last heartbeat; with `short`, of those that only run short jobs.

    model: its id, here and in all that follows; or its name, for the workers of the previous release.
    """
    return f"earmark:workers:{model}:short" if short else f"earmark:workers:{model}"


class ModelRegistry:
    """The models of one deployment."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._clock = server_clock(redis)
        self._parsed: dict[bytes | str, ModelDescription] = {}
        self._cache: dict[str, tuple[float, ModelDescription]] = {}  # by id, with the time when it expires
        self._available: tuple[float, list[AvailableModel]] = (0.0, [])  # with the time when it expires
        self._configured = ConfiguredModels(settings)

    # Calls of workers and housekeeping

    def announce(self, description: dict, worker: str, short: bool = False) -> None:
        """Register a model and a worker that has loaded it. `worker` is the worker's name, new for every start."""
        model = ModelDescription.model_validate(description)
        self._redis.hset(_MODELS, model.id, model.model_dump_json())
        self._cache.pop(model.id, None)
        self.heartbeat(model.id, worker, short)

    def is_announced(self, model: str) -> bool:
        """Return whether a worker's announcement of a model is kept, and can be read: the server may have lost it."""
        return self._description(model) is not None

    def heartbeat(self, model: str, worker: str, short: bool = False) -> None:
        """Record a worker's heartbeat. Workers call it every `heartbeat_seconds`, also while a job runs.

        short: the worker only runs short jobs.
        """
        now = self._clock.now()
        with self._redis.pipeline() as pipe:
            pipe.zadd(workers_key(model), {worker: now})
            pipe.zadd(_SEEN, {model: now})
            if short:
                pipe.zadd(workers_key(model, short=True), {worker: now})
            execute_when_full(self._redis, pipe)
        self._forget_available()

    def leave(self, model: str, worker: str) -> None:
        """Remove a worker that shuts down."""
        self._redis.zrem(workers_key(model), worker)
        self._redis.zrem(workers_key(model, short=True), worker)
        self._forget_available()

    def worker_count(self, model: str) -> int:
        """Return the number of living workers of a model."""
        return self._redis.zcount(workers_key(model), self._clock.now() - self._settings.heartbeat_timeout, "+inf")

    def is_gone(self, model: str) -> bool:
        """Return whether no job should wait for a model: it is not configured, and no worker had it for
        `model_seconds`."""
        if model in {description.id for description in self._configured_models().values()}:
            return False
        seen: Any = self._redis.zscore(_SEEN, model)
        return not self.worker_count(model) and (seen or 0.0) < self._clock.now() - self._settings.model_seconds

    def delete_dead(self) -> None:
        """Remove workers without a heartbeat for ten times `heartbeat_timeout`, and descriptions of models that are
        gone."""
        oldest = self._clock.now() - 10 * self._settings.heartbeat_timeout
        fields = self._announced_ids()
        names = {field.partition("@")[0] for field in fields if "@" in field}
        for field in fields:
            for short in (False, True):
                self._redis.zremrangebyscore(workers_key(field, short), 0, oldest)
            # The announcement of the previous release counts until a worker of this one has announced the name.
            if self.is_gone(field) if "@" in field else field in names and not self.worker_count(field):
                self._redis.hdel(_MODELS, field)
                self._redis.zrem(_SEEN, field)

    # Calls of the front end

    def available(self) -> list[AvailableModel]:
        """Return the models that take jobs, by name and version, as they are now."""
        configured = self._configured_models()
        seen_by_id: dict[str, float] = {description.id: 0.0 for description in configured.values()}
        with self._redis.pipeline(transaction=False) as pipe:
            for field in (fields := self._announced_ids()):
                pipe.zscore(_SEEN, field)
            for field, seen in zip(fields, pipe.execute(), strict=True):
                if "@" in field:
                    seen_by_id[field] = seen or 0.0
                elif (previous := self._description(field)) is not None:
                    seen_by_id.setdefault(previous.id, float("inf"))
            ids = list(seen_by_id)
            since = self._clock.now() - self._settings.heartbeat_timeout
            for model in ids:
                pipe.zcount(workers_key(model), since, "+inf")
            counts = pipe.execute()
        known = [
            self._known(model, workers, seen_by_id[model], configured)
            for model, workers in zip(ids, counts, strict=True)
        ]
        found = [model for model in known if model.workers or model.is_configured]
        for name in {model.name for model in known} - {model.name for model in known if model.workers}:
            last = max((model for model in known if model.name == name), key=lambda model: model.seen)
            if last not in found and last.seen >= self._clock.now() - self._settings.model_seconds:
                found.append(last)
        found.sort(key=lambda model: (model.name, model.version_key))
        self._available = (time.monotonic() + _CACHE_SECONDS, found)
        return found

    def workers_by_name(self) -> dict[str, int]:
        """Return the numbers of living workers of the models that take jobs, of all versions, by name."""
        workers: Counter[str] = Counter()
        for model in self.available():
            workers[model.name] += model.workers
        return dict(workers)

    def models(self) -> list[tuple[AvailableModel, ModelDescription]]:
        """Return the models that take jobs with their descriptions; without those whose descriptions are unreadable."""
        models = []
        for found in self.available():
            with suppress(ModelUnavailable):
                models.append((found, self.model(found.id)))
        return models

    def model(self, model: str) -> ModelDescription:
        """Return the description of a model, at most a second old.

        Raises `ModelUnavailable` if it is not configured and no worker ever announced it, or if its description is
        unreadable: the next heartbeat of a worker announces it again.
        """
        expires_at, description = self._cache.get(model, (0.0, None))
        if description is not None and time.monotonic() < expires_at:
            return description
        text = self._redis.hget(_MODELS, model)
        description = self._parse(model, text) if text is not None else self._find_unannounced(model)
        self._cache[model] = (time.monotonic() + _CACHE_SECONDS, description)
        return description

    def resolve(self, name: str | None) -> ModelDescription:
        """Return the model that does the jobs of a request that names this one (see `ModelName`), or none.

        Raises `ModelUnavailable`, with what is available.
        """
        name = name or self._settings.model
        expires_at, known = self._available
        chosen = choose(name, known) if time.monotonic() < expires_at else None
        if chosen is None:
            known = self.available()
            chosen = choose(name, known)
        if chosen is None:
            others = ", ".join(model.id for model in known) or "none"
            raise ModelUnavailable(f"No worker has the model {name}; available: {others}.")
        return self.model(chosen.id)

    def _announced_ids(self) -> list[str]:
        fields: Any = self._redis.hkeys(_MODELS)
        return sorted(field.decode() for field in fields)

    def _configured_models(self) -> dict[str, ModelDescription]:
        """Return the configured models by the names of their files; without unreadable ones."""
        configured = {}
        for name, text in self._configured.texts().items():
            with suppress(ModelUnavailable):
                configured[name] = self._parse(name, text)
        return configured

    @staticmethod
    def _known(model: str, workers: int, seen: float, configured: dict[str, ModelDescription]) -> AvailableModel:
        files = [name for name, description in configured.items() if description.id == model]
        return AvailableModel(model, workers, seen, bool(files), model.partition("@")[0] in files)

    def _description(self, model: str) -> ModelDescription | None:
        """Return what a worker has announced, if it can be read; one of the previous release did by the name alone."""
        text = self._redis.hget(_MODELS, model)
        with suppress(ModelUnavailable):
            return None if text is None else self._parse(model, text)
        return None

    def _find_unannounced(self, model: str) -> ModelDescription:
        """Return the description of a model that only the configuration or the previous release has."""
        for description in (self._description(model.partition("@")[0]), *self._configured_models().values()):
            if description is not None and description.id == model:
                return description
        raise ModelUnavailable(f"No worker has announced the model {model}.")

    def _forget_available(self) -> None:
        self._available = (0.0, [])

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


def choose(name: str, available: Iterable[AvailableModel]) -> AvailableModel | None:
    """Return the model that a name means, by the order in this module's docstring; None if there is none."""
    models = [model for model in available if name in (model.id, model.name)]
    living = [model for model in models if model.workers]
    if living:
        return max(living, key=lambda model: (model.is_preferred, model.workers, model.version_key))
    return max(models, key=lambda model: (model.seen, model.is_preferred, model.version_key), default=None)
