"""The line: where jobs wait for their turn, in front of RQ's short queues, and how they are shared out fairly.

Jobs enter with their owner (an API key), a weight (its priority) and a cost (seconds of audio). They are served by
start-time fair queueing, so that owners who wait get audio seconds in proportion to their weights, and one who has
nothing waiting is next at once. Served jobs lie on a ready list, an RQ queue, as many as its living workers may need.
The steps and the keys are in `line.lua`. A step is put into a pipeline beside what else changes with it, such as the
job's record, and `commit` does it all in one script: nothing can die in the midst of it. Every step also serves what
can be served.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.job import Job as Entry
from rq.registry import StartedJobRegistry

from app.errors import EarmarkError, QueueFull
from app.jobs.lifecycle import Job
from app.jobs.rq_queues import queue_name
from app.model_registry import workers_key
from app.records.ids import created_at
from app.settings import Settings

Condition = tuple[tuple[Any, ...], EarmarkError | None]  # its words (see `line.lua`), and what it means if it fails
_MODELS_KEY = "earmark:lines"  # the models that have had one
_LEAST_SECONDS = 1.0  # what a job costs at least: there is more to it than its audio
UNKNOWN_SECONDS = 300.0  # what a recording counts for whose header does not say how long it is; never short


def waiting_key(model: str) -> str:
    """The Redis key of a model's waiting jobs, in their order."""
    return f"earmark:jobs:waiting:{model}"


def _key_prefix(model: str) -> str:
    return f"earmark:line:{model}"


class FairQueue:
    """The lines of one deployment, one a model."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._script = redis.register_script(Path(__file__).with_suffix(".lua").read_text())
        self._keys: dict[str, tuple[str, ...]] = {}

    # Steps: commands that only `commit` understands

    def enter(self, pipe: Pipeline, job: Job) -> None:
        """A new job gets its place; its entry for RQ must be there before. Entered again, it keeps its place."""
        pipe.execute_command("LINE", "enter", job.id, *self._cost(job))

    def put_back(self, pipe: Pipeline, job: Job) -> None:
        """A job that had its turn waits again, in front of the line; whoever calls puts it on a ready list."""
        pipe.execute_command("LINE", "back", job.id, *self._cost(job))

    def leave(self, pipe: Pipeline, job: Job, over: bool) -> None:
        """A job waits no more, if it did; `over`: nobody shall work on it, so that RQ's entry goes too."""
        pipe.execute_command("LINE", "leave", job.id, int(over))

    # What is done

    def commit(self, model: str, pipe: Pipeline, conditions: Sequence[Condition] = ()) -> bool:
        """Do what the pipeline holds, steps of this model's line too, all at once, if the conditions hold.

        False, or the first one's error, where one does not; then nothing is done.
        """
        if model not in self._keys:
            self._keys[model] = self._key_names(model)
        phrases = [words for words, _ in conditions] + [command for command, _ in pipe.command_stack]
        line = (
            *(model, self._settings.ready_jobs, self._settings.heartbeat_timeout),
            *(queue_name(model), queue_name(model, short=True), Entry.redis_job_namespace_prefix),
        )
        words = [word for phrase in phrases for word in (len(phrase), *phrase)]
        failed: Any = self._script(self._keys[model], [*line, len(conditions), *words], client=self._redis)
        if not failed:
            return True
        if (error := conditions[failed - 1][1]) is not None:
            raise error
        return False

    def fill(self, model: str) -> None:
        """Serve what can be served: workers may have come, gone, or become idle."""
        with self._redis.pipeline() as pipe:
            pipe.execute_command("LINE", "fill")
            self.commit(model, pipe)

    def room_conditions(self, job: Job) -> tuple[Condition, ...]:
        """That not so much waits that this job may not."""
        settings = self._settings
        share = settings.queue_share if job.owner else 1.0
        most = (settings.queue_jobs, settings.queue_audio_seconds * 1000)
        own = (share * most[0], share * most[1], job.owner)
        return (
            (("room", *most), QueueFull("Too many jobs wait for this model; try again later.")),
            (("share", *own), QueueFull("Too many of your own jobs wait for this model; try again later.")),
        )

    # Figures

    def position(self, job: Job) -> int:
        """Its place among all that wait, those on ready lists too: 1 for the next; 0 when it does not wait.

        Who comes later with a lesser share may get a place before it, and short jobs may pass it.
        """
        rank: Any = self._redis.zrank(waiting_key(job.model), job.id)
        return 0 if rank is None else rank + 1

    def waiting_count(self, model: str) -> int:
        """How many jobs wait, those on ready lists too."""
        return self._redis.zcard(waiting_key(model))

    def waiting_seconds(self, model: str) -> float:
        """Seconds of audio of the jobs that wait."""
        milliseconds: Any = self._redis.hget(f"{_key_prefix(model)}:load", "milliseconds")
        return int(milliseconds or 0) / 1000

    def oldest_created_at(self, model: str) -> float | None:
        """When the oldest of the waiting jobs was asked for, in seconds since 1970; its id tells. None: none waits."""
        found: Any = self._redis.zrange(waiting_key(model), 0, -1)
        return min((created_at(member.decode()) for member in found), default=None)

    def models(self) -> list[str]:
        """Models that have or had jobs."""
        found: Any = self._redis.smembers(_MODELS_KEY)
        return sorted(member.decode() for member in found)

    def request_ids(self, pipe: Pipeline, model: str) -> None:
        """Ask for the ids of the jobs in line, those on ready lists left out."""
        pipe.zrange(_key_prefix(model), 0, -1)
        pipe.zrange(f"{_key_prefix(model)}:short", 0, -1)

    # How

    def _cost(self, job: Job) -> tuple[Any, ...]:
        seconds = UNKNOWN_SECONDS if job.audio_seconds is None else max(job.audio_seconds, _LEAST_SECONDS)
        short = job.audio_seconds is not None and job.audio_seconds <= self._settings.short_seconds
        return round(seconds * 1000), job.weight, int(short), job.owner

    def _key_names(self, model: str) -> tuple[str, ...]:
        lane, ready = _key_prefix(model), []
        for short in (False, True):
            queue = Queue(queue_name(model, short=short), connection=self._redis)
            ready += [queue.key, queue.intermediate_queue_key, StartedJobRegistry(queue=queue).key]
        return (
            *(waiting_key(model), lane, f"{lane}:short", f"{lane}:jobs", f"{lane}:finish", f"{lane}:load"),
            *(f"{lane}:clock", _MODELS_KEY, Queue.redis_queues_keys),
            *(workers_key(model), workers_key(model, short=True)),
            *ready,
        )
