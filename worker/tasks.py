"""The tasks that jobs on the queue may name, one for each kind of job.

A new kind of job is one module with its work and one line in WORK_OF_KIND.
"""

import functools
from collections.abc import Mapping

from app.jobs.kinds import DETECTION, QUERY, SEPARATION, Kind
from worker.detecting import detect
from worker.embedding import embed
from worker.job_run import Work, run
from worker.rq_worker import Task
from worker.separating import separate

WORK_OF_KIND: Mapping[Kind, Work] = {
    SEPARATION: separate,
    DETECTION: detect,
    QUERY: embed,
}

# By the dotted name in the queue's entries (`worker.tasks.separate`): task(context, execution_id, job_id).
TASKS: Mapping[str, Task] = {kind.task: functools.partial(run, work) for kind, work in WORK_OF_KIND.items()}
