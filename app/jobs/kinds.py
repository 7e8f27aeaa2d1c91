"""The kinds of jobs. They share one life, one line and one set of calls; only what is asked for and made differs."""

from dataclasses import dataclass

from app.records import ids


@dataclass(frozen=True)
class Kind:
    """One kind of job. `name` is in its records, `prefix` in its ids, `folder` in its addresses and in the store;
    `task` is what workers call. `kept`: what succeeded stays until it is deleted, for it is made to be used again.
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
TASKS = {kind.name: kind.task for kind in KINDS.values()}  # a worker runs no others


def output_folder(kind: str, job_id: str) -> str:
    """The prefix in the store of everything that a job makes."""
    return f"{KINDS[kind].folder}/{job_id}"
