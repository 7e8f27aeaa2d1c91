"""The fair queue: jobs wait here for their turn, in front of RQ's short queues.

A job enters with its owner (an API key), a weight (its priority) and a cost (the seconds of audio that it is charged).
Jobs are served by start-time fair queueing: waiting owners get seconds of audio in proportion to their weights, and an
owner who had nothing waiting is next at once. A served job is on a ready list, an RQ queue of as many jobs as its
living workers may need. The script is `fair_queue_lists.lua`, with its keys, followed by `fair_queue.lua`, with the
steps.

A step is added to a pipeline beside the other changes that belong to it, such as the job's record, and `commit` applies
the pipeline in one script: no process can die between them. Every step also serves the jobs whose turn has come.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.job import Job as Entry
from rq.registry import StartedJobRegistry

from app.errors import EarmarkError, QueueFull
from app.jobs.kinds import kind_of_id
from app.jobs.lifecycle import Job
from app.jobs.rq_queues import queue_name
from app.model_registry.registry import workers_key
from app.records.ids import timestamp
from app.redis_client import server_clock
from app.settings import Settings

log = logging.getLogger("earmark.jobs")

Condition = tuple[tuple[Any, ...], EarmarkError | None]  # its words (see `fair_queue.lua`), and the error if it fails
_STEP = "FAIRQUEUE"  # no command of Redis; `fair_queue.lua` executes it
_MODELS_KEY = "earmark:lines"  # the models that have, or had, a fair queue
_MINIMUM_SECONDS = 1.0  # the least cost of a job: a job has a fixed part too
UNKNOWN_SECONDS = 300.0  # the cost of a recording whose header does not give its duration; it is never short


def waiting_key(model: str) -> str:
    """Return the Redis key of a model's waiting jobs, a sorted set in the order of their turns."""
    return f"earmark:jobs:waiting:{model}"


def _key_prefix(model: str) -> str:
    return f"earmark:line:{model}"


def _heads_key(model: str, short: bool = False) -> str:
    """Return the key of the first jobs of all owners."""
    return f"{_key_prefix(model)}:{'short' if short else 'long'} heads"


def _previous_keys(model: str) -> tuple[str, str]:
    """Return the keys under which the previous release keeps the jobs that are on no ready list."""
    return _key_prefix(model), f"{_key_prefix(model)}:short"


class FairQueue:
    """The fair queues of one deployment, one per model: `model` is its id, or its name for jobs of earlier releases."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._clock = server_clock(redis)
        self._settings = settings
        parts = (Path(__file__).with_name(name).read_text() for name in ("fair_queue_lists.lua", "fair_queue.lua"))
        self._script = redis.register_script("".join(parts))
        self._keys: dict[str, tuple[str, ...]] = {}

    # Steps: commands for a pipeline that `commit` applies

    def enter(self, pipe: Pipeline, job: Job) -> None:
        """Add a new job, whose RQ entry exists already. A job that enters again keeps its place."""
        pipe.execute_command(_STEP, "enter", job.id, *self._cost(job))

    def put_back(self, pipe: Pipeline, job: Job) -> None:
        """Let a job that was served before wait again, ahead of all others; the caller puts it on a ready list."""
        pipe.execute_command(_STEP, "put_back", job.id, *self._cost(job))

    def leave(self, pipe: Pipeline, job: Job, finished: bool) -> None:
        """Remove a job if it waits; `finished`: no worker shall run it, so that its RQ entry is deleted too."""
        pipe.execute_command(_STEP, "leave", job.id, int(finished))

    def leave_by_id(self, pipe: Pipeline, job_id: str) -> None:
        """Remove a job that no worker shall run, and whose record is unreadable."""
        pipe.execute_command(_STEP, "leave", job_id, 1)

    # Calls

    def commit(self, model: str, pipe: Pipeline, conditions: Sequence[Condition] = ()) -> int | None:
        """Apply a pipeline, including steps of this model's fair queue, atomically if all conditions hold.

        Returns the position of the job that entered (see `position`), or 0. Where a condition does not hold, changes
        nothing, and raises the error of the first such condition or, if it has none, returns None.
        """
        if model not in self._keys:
            self._keys[model] = self._key_names(model)
        commands = [words for words, _ in conditions] + [command for command, _ in pipe.command_stack]
        parameters = (
            *(model, self._settings.ready_jobs, self._settings.heartbeat_timeout),
            *(queue_name(model), queue_name(model, short=True), Entry.redis_job_namespace_prefix),
        )
        words = [word for command in commands for word in (len(command), *command)]
        reply: Any = self._script(self._keys[model], [*parameters, len(conditions), *words], client=self._redis)
        failed, position = reply
        if not failed:
            return position
        if (error := conditions[failed - 1][1]) is not None:
            raise error
        return None

    def fill(self, model: str) -> None:
        """Serve the jobs whose turn has come: workers may have started, died, or become idle. Cheap and idempotent."""
        with self._redis.pipeline() as pipe:
            pipe.execute_command(_STEP, "fill")
            self.commit(model, pipe)

    def repair(self, model: str) -> bool:
        """Build the queue anew if Redis has lost a part of its keys, and serve the jobs whose turn has come.

        Returns whether a part was lost. Takes time for each owner with waiting jobs. Jobs of which too much was lost
        leave the queue: `find_lost` of the repository finds them.
        """
        with self._redis.pipeline() as pipe:
            pipe.execute_command(_STEP, "repair")
            was_lost = bool(self.commit(model, pipe))
        if was_lost:
            log.error("Redis has lost a part of the fair queue of %s, which was built anew", model)
        return was_lost

    def room_conditions(self, job: Job) -> tuple[Condition, ...]:
        """Return the conditions that the queue, and its owner's share of it, have room for a job."""
        settings = self._settings
        share = settings.queue_share if job.owner else 1.0
        limits = (settings.queue_jobs, settings.queue_audio_seconds * 1000)
        owner_limits = (share * limits[0], share * limits[1], job.owner)
        return (
            (("room", *limits), QueueFull("Too many jobs wait for this model; try again later.")),
            (("share", *owner_limits), QueueFull("Too many of your own jobs wait for this model; try again later.")),
        )

    # Figures

    def position(self, job: Job) -> int:
        """Return its place among all waiting jobs, those on ready lists included: 1 is next, 0 does not wait.

        A later job of an owner with a smaller share may get a place ahead of it, and short jobs may overtake it. After
        a cancellation the positions of its owner's later jobs are upper bounds, until further steps have
        brought them up to date, 16 in each.
        """
        if job.status != "queued":
            return 0
        rank: Any = self._redis.zrank(waiting_key(job.model), job.id)
        return 0 if rank is None else rank + 1

    def waiting_count(self, model: str) -> int:
        """Return the number of waiting jobs, those on ready lists included."""
        return self._redis.zcard(waiting_key(model))

    def waiting_ids(self, model: str) -> list[str]:
        """Return the ids of the waiting jobs, those on ready lists included, in the order of their turns."""
        ids: Any = self._redis.zrange(waiting_key(model), 0, -1)
        return [job_id.decode() for job_id in ids]

    def waiting_seconds(self, model: str) -> float:
        """Return the seconds of audio of the waiting jobs."""
        milliseconds: Any = self._redis.hget(f"{_key_prefix(model)}:load", "milliseconds")
        return int(milliseconds or 0) / 1000

    def oldest_age(self, model: str) -> float:
        """Return the seconds since the oldest waiting job was created, by its id; 0 where none waits."""
        with self._redis.pipeline(transaction=False) as pipe:  # of an owner's waiting jobs the first is the oldest
            pipe.zrange(_heads_key(model), 0, -1)
            pipe.zrange(_heads_key(model, short=True), 0, -1)
            for short in (False, True):
                pipe.lrange(Queue(queue_name(model, short=short), connection=self._redis).key, 0, -1)
            lists = pipe.execute()
        now = self._clock.now()
        ids = (job_id.decode(errors="replace") for job_ids in lists for job_id in job_ids)
        return max((0.0, *(now - timestamp(job_id) for job_id in ids if kind_of_id(job_id))))  # others may use RQ too

    def models(self) -> list[str]:
        """Return the models that have or had jobs."""
        names: Any = self._redis.smembers(_MODELS_KEY)
        return sorted(name.decode() for name in names)

    def request_ids(self, pipe: Pipeline, model: str) -> None:
        """Add commands that return the ids of the waiting jobs, those on ready lists excluded."""
        pipe.smembers(f"{_key_prefix(model)}:unserved")
        for key in _previous_keys(model):
            pipe.zrange(key, 0, -1)

    def _cost(self, job: Job) -> tuple[Any, ...]:
        seconds = job.charged_seconds
        if seconds is None:
            seconds = UNKNOWN_SECONDS if job.audio_seconds is None else job.audio_seconds
        seconds = max(seconds, _MINIMUM_SECONDS)
        # By its cost: a minute of 8 channels and 16 targets takes a worker as long as an ordinary quarter of an hour.
        is_short = job.audio_seconds is not None and seconds <= self._settings.short_seconds
        return round(seconds * 1000), job.weight, int(is_short), job.owner

    def _key_names(self, model: str) -> tuple[str, ...]:
        prefix, ready = _key_prefix(model), []
        for short in (False, True):
            queue = Queue(queue_name(model, short=short), connection=self._redis)
            ready += [queue.key, queue.intermediate_queue_key, StartedJobRegistry(queue=queue).key]
        return (
            *(waiting_key(model), _heads_key(model), _heads_key(model, short=True), f"{prefix}:unserved"),
            *(f"{prefix}:jobs", f"{prefix}:finish", f"{prefix}:load", f"{prefix}:clock"),
            *(f"{prefix}:entries", f"{prefix}:outdated", *_previous_keys(model), _MODELS_KEY, Queue.redis_queues_keys),
            *(workers_key(model), workers_key(model, short=True)),
            *ready,
        )
