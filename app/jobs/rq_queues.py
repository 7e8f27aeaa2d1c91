"""RQ queues, two a model, with the JSON serializer and one entry a job, named by the job's id.

`earmark:MODEL` is for workers that take any job, `earmark:MODEL:short` for those that take short ones only. They are
kept short: jobs wait for their turn in `line.py`. What RQ says about a job is a hint; its record is the truth. So
entries may be put, removed and lost at will.
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

from app.jobs.kinds import TASKS
from app.jobs.lifecycle import Job
from app.settings import Settings

_KEEP_FAILURES = 3600  # seconds RQ keeps its own note of a failure, for people who look


def queue_name(model: str, short: bool = False) -> str:
    """The RQ queue of a model's jobs; `short`: of the workers that take short ones only."""
    return f"earmark:{model}:short" if short else f"earmark:{model}"


class RqQueues:
    """The queues of one deployment."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings

    def queue(self, model: str, short: bool = False) -> Queue:
        """The RQ queue of a model's jobs; `short`: of the workers that take short ones only."""
        return Queue(queue_name(model, short), connection=self._redis, serializer=JSONSerializer)

    def write_entry(self, pipe: Pipeline, job: Job) -> None:
        """A job's entry, on no queue yet, within a transaction."""
        entry = Entry.create(
            TASKS[job.kind],
            args=[job.id],
            id=job.id,
            connection=self._redis,
            serializer=JSONSerializer,
            origin=queue_name(job.model),
            status=JobStatus.QUEUED,
            timeout=int(self._settings.job_timeout),
            result_ttl=0,
            failure_ttl=_KEEP_FAILURES,
            retry=Retry(max=self._settings.job_attempts),
        )
        entry.enqueued_at = now()
        entry.save(pipeline=pipe)

    def put_first(self, pipe: Pipeline, job: Job) -> None:
        """Put a job in front of its queue with a new entry, whatever became of its last one, within a transaction."""
        for short in (False, True):
            pipe.lrem(self.queue(job.model, short).key, 0, job.id)
        self.delete_entry(pipe, job.id)
        self.write_entry(pipe, job)
        queue = self.queue(job.model)
        pipe.sadd(Queue.redis_queues_keys, queue.key)
        pipe.lpush(queue.key, job.id)

    def delete_entry(self, client: Redis, job_id: str) -> None:
        """Remove a job's entry; RQ keeps the names of executions for longer than the executions."""
        client.delete(Entry.key_for(job_id), ExecutionRegistry(job_id, self._redis).key)

    def request_held_ids(self, pipe: Pipeline, model: str) -> None:
        """Ask for the ids that RQ holds; those that have begun with their executions' names, as `ID:EXECUTION`."""
        for short in (False, True):
            queue = self.queue(model, short)
            pipe.lrange(queue.key, 0, -1)
            pipe.lrange(queue.intermediate_queue_key, 0, -1)
            pipe.zrange(StartedJobRegistry(queue=queue).key, 0, -1)

    def running_count(self, model: str) -> int:
        """How many jobs of a model workers hold."""
        registries = [StartedJobRegistry(queue=self.queue(model, short)) for short in (True, False)]
        return sum(self._redis.zcard(registry.key) for registry in registries)
