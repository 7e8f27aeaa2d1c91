"""Jobs whose records are unreadable: taken out of all that goes on, and deleted with all that they have left.

Such a record does not tell its model, its uploads or where its output is: what is known is its id, and all that is
stored by it.
"""

from typing import Any

from redis import Redis
from redis.client import Pipeline

from app.jobs.events import events_key
from app.jobs.excerpt_bytes import ExcerptBytes
from app.jobs.fair_queue import FairQueue
from app.jobs.job_records import EXPIRY_KEY, audio_ids_key
from app.jobs.kinds import Kind, kind_of_id, output_folder
from app.jobs.large_fields import record_folder
from app.jobs.listing import Listing, record_key
from app.records.audio import users_key
from app.records.orphans import OrphanLedger
from app.records.quarantine import Quarantine
from app.records.shared import OPEN_JOBS_KEY
from app.redis_client import execute_when_full, server_clock
from app.settings import Settings


class UnreadableJobs:
    """The jobs of one deployment that cannot be read; `JobRepository` and its callers find them."""

    def __init__(
        self, redis: Redis, settings: Settings, fair_queue: FairQueue, listing: Listing, quarantine: Quarantine
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._fair_queue = fair_queue
        self._listing = listing
        self._quarantine = quarantine
        self._excerpt_bytes = ExcerptBytes(redis, settings)
        self._orphans = OrphanLedger(redis)
        self._clock = server_clock(redis)

    def set_aside(self, job_id: str) -> None:
        """Take a job whose record is unreadable out of every queue, out of the open jobs, and its uploads' users.

        Its record stays, for the operator, for the time of a record, or until it is deleted if its kind is kept; then
        its events and its output go too.
        """
        self._quarantine.add(record_key(job_id))
        self.leave_all(job_id)

    def leave_all(self, job_id: str) -> None:
        """Do the same without a record to be kept: Redis has lost it.

        Uploads that only a record names lose their user by its leaving the open jobs (`AudioRepository.delete`).
        """
        kind = kind_of_id(job_id)
        with self._redis.pipeline() as pipe:
            if kind is None or not kind.kept:
                retention = self._settings.record_retention
                for key in (record_key(job_id), events_key(job_id)):
                    pipe.expire(key, int(retention), nx=True)
                for folder in _output_folders(kind, job_id):
                    self._orphans.add_missing(pipe, folder, self._clock.now() + retention)
            self._leave_uploads(pipe, job_id)
            execute_when_full(self._redis, pipe)
        for model in self._fair_queue.models():
            with self._redis.pipeline() as pipe:
                self._fair_queue.leave_by_id(pipe, job_id)
                self._fair_queue.commit(model, pipe)
        self._redis.srem(OPEN_JOBS_KEY, job_id)  # last: until then `JobRepository.find_lost` finds it again

    def delete(self, kind: Kind, job_id: str, owner: str) -> None:
        """Delete a job of this owner's; its caller deletes what it has stored, or housekeeping does after a while."""
        self.set_aside(job_id)
        due = self._clock.now() + self._settings.execution_seconds
        with self._redis.pipeline() as pipe:
            pipe.zrem(EXPIRY_KEY, job_id)
            self._listing.remove(pipe, owner, kind.name, job_id)
            pipe.delete(record_key(job_id), events_key(job_id))
            for folder in _output_folders(kind, job_id):
                self._orphans.remove(pipe, folder)  # due when the record would have been dropped
                self._orphans.add(pipe, folder, due)
            execute_when_full(self._redis, pipe)
        self._excerpt_bytes.forget(owner, job_id)
        self._quarantine.remove(record_key(job_id))

    def _leave_uploads(self, pipe: Pipeline, job_id: str) -> None:
        members: Any = self._redis.smembers(audio_ids_key(job_id))
        for audio_id in members:
            pipe.srem(users_key(audio_id.decode()), job_id)
        pipe.delete(audio_ids_key(job_id))


def _output_folders(kind: Kind | None, job_id: str) -> list[str]:
    """Return the prefixes in the store of all that a job may have stored."""
    return [] if kind is None else [output_folder(kind.name, job_id), record_folder(job_id)]
