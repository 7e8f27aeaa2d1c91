"""The kinds of job that the API serves, in one tuple: a new kind is a package of its own and a line here.

Its `Kind` is in `app/jobs/kinds.py`; the function that does the work is listed in `worker/tasks.py`.
"""

from typing import Any, NamedTuple

from fastapi import APIRouter

from app.detections import routes as detections
from app.detections.service import DETECTIONS
from app.job_api.resource import JobResource
from app.queries import routes as queries
from app.queries.service import QUERIES
from app.separations import routes as separations
from app.separations.service import SEPARATIONS


class ServedKind(NamedTuple):
    """A kind of job and its routes."""

    resource: JobResource[Any]
    router: APIRouter


SERVED_KINDS = (
    ServedKind(SEPARATIONS, separations.router),
    ServedKind(DETECTIONS, detections.router),
    ServedKind(QUERIES, queries.router),
)
