"""Lists of jobs, page by page, over HTTP and without."""

import time

import pytest
from redis import Redis

from app.jobs.listing import Listing
from app.jobs.repository import JobRepository
from app.records.ids import first_id, is_id, new_id
from tests.app.conftest import Service, problem
from tests.app.records import new_job


def pages(service: Service, **parameters: str | int) -> list[list[str]]:
    """Return the ids of every page, from the first to the last."""
    found, cursor = [], None
    while True:
        page = service.client.get("/v1/separations", params=parameters | ({"cursor": cursor} if cursor else {})).json()
        assert set(page) == {"data", "next_cursor", "has_more"}
        assert page["has_more"] == (page["next_cursor"] is not None)
        found.append([job["id"] for job in page["data"]])
        if not page["has_more"]:
            return found
        cursor = page["next_cursor"]


def create_jobs(service: Service, count: int) -> list[str]:
    """Create separations; return their ids, the newest first."""
    mixture = {"audio_id": service.recording()["id"]}
    jobs = []
    for _ in range(count):
        jobs.append(service.separate(mixture=mixture)["id"])
        time.sleep(0.002)  # ids sort by the millisecond
    return jobs[::-1]


def test_pages_hold_every_job_once_the_newest_first(folder_service: Service) -> None:
    assert pages(folder_service) == [[]]
    jobs = create_jobs(folder_service, 5)
    assert pages(folder_service) == [jobs]
    assert pages(folder_service, limit=5) == [jobs]
    assert pages(folder_service, limit=2) == [jobs[:2], jobs[2:4], jobs[4:]]
    first = folder_service.client.get("/v1/separations", params={"limit": 2}).json()
    assert first["data"][0] == folder_service.client.get(f"/v1/separations/{jobs[0]}").json()
    folder_service.client.delete(f"/v1/separations/{jobs[1]}")  # where the cursor points
    rest = folder_service.client.get("/v1/separations", params={"cursor": first["next_cursor"]}).json()
    assert [job["id"] for job in rest["data"]] == jobs[2:]


def test_pages_of_jobs_in_one_state(folder_service: Service) -> None:
    jobs = create_jobs(folder_service, 5)
    for job in (jobs[1], jobs[4]):
        folder_service.client.post(f"/v1/separations/{job}/cancel")
    assert pages(folder_service, status="canceled") == [[jobs[1], jobs[4]]]
    assert pages(folder_service, status="canceled", limit=1) == [[jobs[1]], [jobs[4]]]
    assert pages(folder_service, status="running") == [[]]


def test_a_page_of_jobs_in_one_state_reads_a_limited_number_of_records(redis: Redis, jobs: JobRepository) -> None:
    job_ids = [jobs.create(new_job()).job.id for _ in range(5)][::-1]
    for job_id in (job_ids[1], job_ids[4]):
        jobs.cancel(job_id)
    listing = Listing(redis, reads_per_page=2)
    found, before = [], None
    for _ in range(3):
        page, before = listing.page("", "separation", 20, before, "canceled")
        found.append([job.id for job in page])
    assert (found, before) == ([[job_ids[1]], [], [job_ids[4]]], None)


def test_unreadable_records_are_left_out(folder_service: Service) -> None:
    jobs = create_jobs(folder_service, 3)
    folder_service.deps.redis.set(f"earmark:job:{jobs[0]}", '{"schema_version": 99}')
    folder_service.deps.redis.delete(f"earmark:job:{jobs[1]}")
    assert pages(folder_service, limit=1) == [[], [], [jobs[2]]]
    assert folder_service.deps.jobs.find_lost() == []


def test_old_entries_are_trimmed(folder_service: Service) -> None:
    jobs, trim = create_jobs(folder_service, 2), folder_service.deps.jobs.trim
    assert trim() == 0
    old_id = first_id("sep", time.time() - 400 * 86400)
    assert is_id(old_id, "sep") and old_id < jobs[-1] < first_id("sep", time.time() + 1) < new_id("seq")
    folder_service.deps.redis.zadd("earmark:jobs:separation:", {old_id: 0})
    assert trim() == 1 and pages(folder_service) == [jobs]


@pytest.mark.parametrize(
    "wrong", [{"limit": 0}, {"limit": 101}, {"status": "lost"}, {"cursor": "sep_1"}, {"cursor": "+"}]
)
def test_invalid_page_parameters_are_refused(folder_service: Service, wrong: dict[str, str | int]) -> None:
    problem(folder_service.client.get("/v1/separations", params=wrong), 422, "request_invalid")
