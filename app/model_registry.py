"""What workers announce at start: models, their embedding sizes and their classes.

A description is kept when its workers are gone, so that jobs can wait for them. The last announcement of a model
counts. Who is alive is told by heartbeats, which a worker sends with `beat`.

A description is what `models.engine.Engine.describe()` answers:
{"name", "version", "embedding_size", "labels", "askable_labels", "sample_rate",
 "classes": [{"label", "mid", "slug", "path": [...], "askable", "synonyms": [...], "description"}]}
"""

import time
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints
from redis import Redis

from app.errors import ModelUnavailable
from app.settings import Settings

_MODELS = "earmark:models"
_FRESH_SECONDS = 1.0  # that a description is believed without asking again: it is large, and every new job needs it

# A model as requests name it: `base`, or `base@1` for one version of it.
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}(@[A-Za-z0-9._-]{1,32})?$")]


class ClassDescription(BaseModel):
    """One class that the detector knows; `path` leads to it from the root of AudioSet's tree."""

    label: str
    mid: str
    slug: str
    path: list[str] = []
    askable: bool = False  # the model has an embedding for it, so that a target may name it
    synonyms: list[str] = []
    description: str = ""


class ModelDescription(BaseModel):
    """One model, as its workers described it. `sample_rate` in hertz."""

    model_config = ConfigDict(extra="ignore")

    name: str
    version: str
    embedding_size: int
    labels: int
    askable_labels: int
    sample_rate: int
    classes: list[ClassDescription] = []


def workers_key(model: str, short: bool = False) -> str:
    """The Redis key of a model's workers by their last heartbeat; `short`: of those that take short jobs only."""
    return f"earmark:workers:{model}:short" if short else f"earmark:workers:{model}"


class ModelRegistry:
    """The models of one deployment."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._parsed: dict[bytes | str, ModelDescription] = {}
        self._fresh: dict[str, tuple[float, ModelDescription]] = {}  # until when, by name

    def announce(self, description: dict, worker: str, short: bool = False) -> None:
        """A worker has loaded a model and is ready. `worker` is its own name, new for every start."""
        model = ModelDescription.model_validate(description)
        self._redis.hset(_MODELS, model.name, model.model_dump_json())
        self._fresh.pop(model.name, None)
        self.heartbeat(model.name, worker, short)

    def heartbeat(self, model: str, worker: str, short: bool = False) -> None:
        """The worker lives. To be called every `heartbeat_seconds`, while a job runs too.

        `short`: it takes short jobs only.
        """
        now = self._now()
        self._redis.zadd(workers_key(model), {worker: now})
        if short:
            self._redis.zadd(workers_key(model, short=True), {worker: now})

    def leave(self, model: str, worker: str) -> None:
        """The worker ends in good order."""
        self._redis.zrem(workers_key(model), worker)
        self._redis.zrem(workers_key(model, short=True), worker)

    def worker_count(self, model: str) -> int:
        """How many workers of the model are alive."""
        return self._redis.zcount(workers_key(model), self._now() - self._settings.heartbeat_timeout, "+inf")

    def delete_dead(self, model: str) -> int:
        """Drop the names of workers that have been silent for ten times the limit. Returns how many."""
        silent = self._now() - 10 * self._settings.heartbeat_timeout
        self._redis.zremrangebyscore(workers_key(model, short=True), 0, silent)
        return self._redis.zremrangebyscore(workers_key(model), 0, silent)

    def models(self) -> list[ModelDescription]:
        """Every model ever announced, by name."""
        return sorted((self._parse(text) for text in self._redis.hvals(_MODELS)), key=lambda model: model.name)

    def model(self, name: str) -> ModelDescription:
        """One model, as it was described a moment ago; raises `ModelUnavailable` if no worker ever announced it."""
        until, found = self._fresh.get(name, (0.0, None))
        if found is not None and time.monotonic() < until:
            return found
        text = self._redis.hget(_MODELS, name)
        if text is None:
            raise ModelUnavailable(f"No worker has announced the model {name} yet.")
        found = self._parse(text)
        self._fresh[name] = (time.monotonic() + _FRESH_SECONDS, found)
        return found

    def resolve(self, name: str | None) -> ModelDescription:
        """Return the model that a request names (see `ModelName`), the server's own if it names none.

        Raises `ModelUnavailable`: no worker has announced the model, or workers have another version of it.
        """
        name, _, version = (name or self._settings.model).partition("@")
        model = self.model(name)
        if version and version != model.version:
            raise ModelUnavailable(f"Workers have {model.name}@{model.version}.")
        return model

    def _now(self) -> float:
        """By Redis's clock: those of workers may be wrong."""
        seconds, microseconds = self._redis.time()
        return seconds + microseconds / 1e6

    def _parse(self, text: bytes | str) -> ModelDescription:
        """Descriptions are large (527 classes) and rarely change: parse each text once."""
        if text not in self._parsed:
            if len(self._parsed) > 16:
                self._parsed.clear()
            self._parsed[text] = ModelDescription.model_validate_json(text)
        return self._parsed[text]
