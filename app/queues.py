"""RQ queues, one a model: `earmark:MODEL`, with the JSON serializer and one entry a job, named by the job's id.

What RQ says about a job is a hint; its record is the truth. So entries may be put, removed and lost at will.
"""

from contextlib import suppress

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry as RedisRetry
from rq import Queue, Retry
from rq.exceptions import DuplicateJobError, NoSuchJobError
from rq.job import Job as Entry
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from app.lifecycle import Job
from app.settings import Settings

TASKS = {"separation": "worker.tasks.separate"}  # by the job's kind; a worker runs no others
_KEEP_FAILURES = 3600  # seconds RQ keeps its own note of a failure, for people who look


def connect(settings: Settings) -> Redis:
    """A pool of connections to the queue's server; it connects when first used."""
    return Redis.from_url(
        settings.redis_url,
        socket_timeout=settings.redis_timeout,
        socket_connect_timeout=settings.redis_timeout,
        health_check_interval=30,
        retry=RedisRetry(ExponentialBackoff(cap=0.2, base=0.02), 3, (RedisConnectionError, RedisTimeoutError)),
    )


def queue_name(model: str) -> str:
    """The RQ queue of a model's jobs."""
    return f"earmark:{model}"


class Queues:
    """The queues of one deployment."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings

    def queue(self, model: str) -> Queue:
        """The RQ queue of a model's jobs."""
        return Queue(queue_name(model), connection=self._redis, serializer=JSONSerializer)

    def put(self, job: Job) -> None:
        """Put a job's id on its queue, unless it has an entry already."""
        with suppress(DuplicateJobError):
            self.queue(job.model).enqueue_call(
                TASKS[job.kind],
                args=[job.id],
                timeout=int(self._settings.job_timeout),
                result_ttl=0,
                failure_ttl=_KEEP_FAILURES,
                job_id=job.id,
                retry=Retry(max=self._settings.job_attempts),
                unique=True,
            )

    def put_again(self, job: Job) -> None:
        """Put a job's id on its queue, whatever became of its last entry."""
        self._forget(job)
        self.put(job)

    def remove(self, job: Job) -> None:
        """Take the id off its list. A worker that already holds it finds nothing to claim."""
        if self._redis.lrem(self.queue(job.model).key, 1, job.id):
            self._forget(job)

    def held(self, model: str) -> set[str]:
        """Ids that RQ holds. Read in the order in which ids move on, so that none slips past between two reads."""
        queue = self.queue(model)
        waiting = queue.get_job_ids()
        taken = queue.intermediate_queue.get_job_ids()
        started = StartedJobRegistry(queue=queue, serializer=JSONSerializer).get_job_ids(cleanup=False)
        return {*waiting, *taken, *started}

    def _forget(self, job: Job) -> None:
        with suppress(NoSuchJobError):
            Entry.fetch(job.id, connection=self._redis, serializer=JSONSerializer).delete()
