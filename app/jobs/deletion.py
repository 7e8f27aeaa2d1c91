"""Deletion of a job with all that it has stored."""

from app.errors import RecordUnreadable
from app.jobs.kinds import Kind, output_folder
from app.jobs.large_fields import record_folder
from app.jobs.repository import JobRepository
from app.storage import Storage


def delete_job(jobs: JobRepository, storage: Storage, kind: Kind, job_id: str, owner: str) -> None:
    """Delete a job, in whatever state, and its stored output. owner: whose list has it, if its record is unreadable.

    Raises `NotFound`, `RecordTooNew`, and `StoreUnavailable`; then the job is deleted, and its output is left to
    housekeeping.
    """
    try:
        has_stored_fields = bool(jobs.delete(job_id).stored_fields)
    except RecordUnreadable:
        jobs.unreadable.delete(kind, job_id, owner)
        has_stored_fields = True  # possibly
    storage.delete_prefix(output_folder(kind.name, job_id))
    if has_stored_fields:
        storage.delete_prefix(record_folder(job_id))
