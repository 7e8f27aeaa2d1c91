"""The jobs of a whole deployment, whoever owns them. Over HTTP a caller reaches its own jobs only (`app/job_api/`)."""

from collections.abc import Collection, Iterator

from redis import Redis

from app.errors import NotFound, RecordUnreadable
from app.jobs.deletion import delete_job
from app.jobs.kinds import KINDS, Kind, kind_of_id
from app.jobs.large_fields import LargeFields
from app.jobs.lifecycle import Job, Status
from app.jobs.repository import JobRepository
from app.keys.names import KeyNames
from app.keys.repository import KeyRepository
from app.records import ids
from app.settings import Settings
from app.storage import Storage


class AllJobs:
    """All jobs of one deployment.

    The methods raise `NotFound`, `RecordTooNew`, `RecordUnreadable` and redis-py's errors.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._jobs = JobRepository(redis, settings)
        self._storage = Storage.open(settings)
        self._large_fields = LargeFields(redis, self._storage, settings)
        self.key_names = KeyNames(KeyRepository(redis))

    def owners(self, key: str | None) -> list[str]:
        """Return the ids of the keys with this name, or with this id, revoked or not; None: all owners of jobs."""
        if key is None:
            return self._jobs.listing.owners()
        named = [key] if ids.is_id(key, ids.KEY) else self.key_names.ids(key)
        if not named:
            raise NotFound(f"There is no key named {key}; revoked ones are known by their ids.")
        return named

    def newest(self, owners: Collection[str], kinds: Collection[str], status: Status | None) -> Iterator[Job]:
        """Yield the jobs of these owners, kinds and state, the newest first, without large fields."""
        return self._jobs.listing.merged(owners, kinds, status)

    def get(self, job_id: str) -> Job:
        """Return a job without large fields."""
        _require_kind(job_id)
        return self._jobs.get(job_id)

    def load(self, job: Job) -> Job:
        """Return the complete job. Raises `StoreUnavailable` too."""
        return self._large_fields.load(job)

    def position(self, job: Job) -> int:
        """Return its position in the fair queue; 0 does not wait."""
        return self._jobs.fair_queue.position(job)

    def cancel(self, job_id: str) -> Job:
        """Cancel a waiting job, or ask a running one to stop. Raises `AlreadyFinished` too."""
        _require_kind(job_id)
        return self._jobs.cancel(job_id)

    def delete(self, job_id: str) -> None:
        """Delete a job, in whatever state, readable or not, and its stored output. Raises `StoreUnavailable` too."""
        kind = _require_kind(job_id)
        try:
            owner = self._jobs.get(job_id).owner
        except RecordUnreadable:
            owner = self._owner_by_list(kind, job_id)
        delete_job(self._jobs, self._storage, kind, job_id, owner)

    def _owner_by_list(self, kind: Kind, job_id: str) -> str:
        """Return whose list has a job; without one, the owner of jobs without a key."""
        listing = self._jobs.listing
        return next((owner for owner in listing.owners() if listing.owns(owner, kind.name, job_id)), "")


def _require_kind(job_id: str) -> Kind:
    kind = kind_of_id(job_id)
    if kind is None:
        raise NotFound(f"An id of a job begins with {', '.join(f'{kind.prefix}_' for kind in KINDS.values())}.")
    return kind
