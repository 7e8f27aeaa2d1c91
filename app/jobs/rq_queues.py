"""RQ queues: two per model, with the JSON serializer and one entry per job, named by the job's id.

`earmark:MODEL` is for workers that take any job, `earmark:MODEL:short` for workers that take short jobs only; MODEL is
the model's id, such as `base@3`, or its name alone for jobs that an earlier release has queued. They are the
ready lists of the fair queue (`fair_queue.py`) and hold few jobs. RQ's state of a job is a hint; its record is the
truth, so that entries may be written, deleted and lost at any time.
"""

from redis import Redis
from redis.client import Pipeline
from rq import Queue, Retry
from rq.executions import ExecutionRegistry
from rq.job import Job as Entry
from rq.job import JobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import now

from app.jobs.kinds import TASK_NAMES
from app.jobs.lifecycle import Job
from app.settings import Settings

_FAILURE_SECONDS = 3600  # how long RQ keeps its own record of a failure, for debugging


def queue_name(model: str, short: bool = False) -> str:
    """Return the name of a model's RQ queue; `short`: of the one for workers that take short jobs only."""
    return f"earmark:{model}:short" if short else f"earmark:{model}"


class RqQueues:
    """The RQ queues of one deployment."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings

    def queue(self, model: str, short: bool = False) -> Queue:
        """Return a model's RQ queue; `short`: the one for workers that take short jobs only."""
        return Queue(queue_name(model, short), connection=self._redis, serializer=JSONSerializer)

    def write_entry(self, pipe: Pipeline, job: Job) -> None:
        """Write a job's entry, which is on no queue yet, within a transaction."""
        entry = Entry.create(
            TASK_NAMES[job.kind],
            args=[job.id],
            id=job.id,
            connection=self._redis,
            serializer=JSONSerializer,
            origin=queue_name(job.model),
            status=JobStatus.QUEUED,
            timeout=int(self._settings.execution_timeout(job.audio_seconds, job.effort)),
            result_ttl=0,
            failure_ttl=_FAILURE_SECONDS,
            retry=Retry(max=self._settings.job_attempts),
        )
        entry.enqueued_at = now()
        entry.save(pipeline=pipe)

    def put_first(self, pipe: Pipeline, job: Job) -> None:
        """Put a job at the front of its queue with a new entry in place of any other, within a transaction."""
        for short in (False, True):
            pipe.lrem(self.queue(job.model, short).key, 0, job.id)
        self.delete_entry(pipe, job.id)
        self.write_entry(pipe, job)
        queue = self.queue(job.model)
        pipe.sadd(Queue.redis_queues_keys, queue.key)
        pipe.lpush(queue.key, job.id)

    def delete_entry(self, client: Redis, job_id: str) -> None:
        """Delete a job's entry, and the names of its executions, which RQ keeps for longer than the executions."""
        client.delete(Entry.key_for(job_id), ExecutionRegistry(job_id, self._redis).key)

    def request_held_ids(self, pipe: Pipeline, model: str) -> None:
        """Add commands that return the ids that RQ holds; those of started jobs as `ID:EXECUTION`."""
        for short in (False, True):
            queue = self.queue(model, short)
            pipe.lrange(queue.key, 0, -1)
            pipe.lrange(queue.intermediate_queue_key, 0, -1)
            pipe.zrange(StartedJobRegistry(queue=queue).key, 0, -1)

    def running_count(self, model: str) -> int:
        """Return how many jobs of a model workers hold."""
        registries = [StartedJobRegistry(queue=self.queue(model, short)) for short in (True, False)]
        return sum(self._redis.zcard(registry.key) for registry in registries)
