"""The kinds of jobs. They share one life cycle, one fair queue and one set of routes; requests and results differ."""

from dataclasses import dataclass

from app.records import ids


@dataclass(frozen=True)
class Kind:
    """One kind of job.

    name: in its records. prefix: of its ids. folder: in its addresses and in the store. task: what workers call.
    kept: a job that succeeded stays until it is deleted, since its result is made to be used again.
    """

    name: str
    prefix: str
    folder: str
    task: str
    kept: bool = False


SEPARATION = Kind("separation", ids.SEPARATION, "separations", "worker.tasks.separate")
DETECTION = Kind("detection", ids.DETECTION, "detections", "worker.tasks.detect")
QUERY = Kind("query", ids.QUERY, "queries", "worker.tasks.embed", kept=True)
KINDS = {kind.name: kind for kind in (SEPARATION, DETECTION, QUERY)}
TASK_NAMES = {kind.name: kind.task for kind in KINDS.values()}  # of entries on RQ queues


def output_folder(kind: str, job_id: str) -> str:
    """Return the prefix in the store of everything that a job writes."""
    return f"{KINDS[kind].folder}/{job_id}"


def kind_of_id(job_id: str) -> Kind | None:
    """Return the kind of job that an id's prefix names; None for what is not the id of a job."""
    return next((kind for kind in KINDS.values() if ids.is_id(job_id, kind.prefix)), None)
