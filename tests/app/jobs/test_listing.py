"""Lists of separations, page by page, and all stems of one in a zip."""

import io
import time
import zipfile

import pytest
from redis import Redis

from app.jobs.listing import Listing
from app.jobs.repository import JobRepository
from app.records.ids import first_id, is_id, new_id
from tests.app.conftest import Service, problem
from tests.app.records import new_job


def pages(service: Service, **parameters: str | int) -> list[list[str]]:
    """The ids of every page, from the first to the last."""
    found, cursor = [], None
    while True:
        told = service.client.get("/v1/separations", params=parameters | ({"cursor": cursor} if cursor else {})).json()
        assert set(told) == {"data", "next_cursor", "has_more"}
        assert told["has_more"] == (told["next_cursor"] is not None)
        found.append([job["id"] for job in told["data"]])
        if not told["has_more"]:
            return found
        cursor = told["next_cursor"]


def made(service: Service, count: int) -> list[str]:
    mixture = {"audio_id": service.recording()["id"]}
    jobs = []
    for _ in range(count):
        jobs.append(service.separate(mixture=mixture)["id"])
        time.sleep(0.002)  # ids sort by the millisecond
    return jobs[::-1]


def test_pages_hold_every_job_once_the_newest_first(folder_service: Service) -> None:
    assert pages(folder_service) == [[]]
    jobs = made(folder_service, 5)
    assert pages(folder_service) == [jobs]
    assert pages(folder_service, limit=5) == [jobs]
    assert pages(folder_service, limit=2) == [jobs[:2], jobs[2:4], jobs[4:]]
    first = folder_service.client.get("/v1/separations", params={"limit": 2}).json()
    assert first["data"][0] == folder_service.client.get(f"/v1/separations/{jobs[0]}").json()
    folder_service.client.delete(f"/v1/separations/{jobs[1]}")  # where the cursor points
    rest = folder_service.client.get("/v1/separations", params={"cursor": first["next_cursor"]}).json()
    assert [job["id"] for job in rest["data"]] == jobs[2:]


def test_pages_of_jobs_in_one_state(folder_service: Service) -> None:
    jobs = made(folder_service, 5)
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
    jobs = made(folder_service, 3)
    folder_service.deps.redis.set(f"earmark:job:{jobs[0]}", '{"schema_version": 99}')
    folder_service.deps.redis.delete(f"earmark:job:{jobs[1]}")
    assert pages(folder_service, limit=1) == [[], [], [jobs[2]]]
    assert folder_service.deps.jobs.find_lost() == []


def test_old_entries_are_trimmed(folder_service: Service) -> None:
    jobs, listing = made(folder_service, 2), folder_service.deps.jobs.trim
    assert listing() == 0
    ancient = first_id("sep", time.time() - 400 * 86400)
    assert is_id(ancient, "sep") and ancient < jobs[-1] < first_id("sep", time.time() + 1) < new_id("seq")
    folder_service.deps.redis.zadd("earmark:jobs:separation:", {ancient: 0})
    assert listing() == 1 and pages(folder_service) == [jobs]


@pytest.mark.parametrize(
    "wrong", [{"limit": 0}, {"limit": 101}, {"status": "lost"}, {"cursor": "sep_1"}, {"cursor": "+"}]
)
def test_invalid_page_parameters_are_refused(folder_service: Service, wrong: dict[str, str | int]) -> None:
    problem(folder_service.client.get("/v1/separations", params=wrong), 422, "request_invalid")


def test_all_stems_in_one_zip(service: Service) -> None:
    job = service.separate(targets=[{"name": "a b.c", "label": "Dog"}])
    problem(service.client.get(job["archive_url"]), 404, "not_found")
    stems = {"a b.c": bytes(range(256)) * 4096, "residual": b"rest", "silent": b""}
    service.finish(job["id"], stems)
    answer = service.client.get(job["archive_url"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    assert answer.headers["content-disposition"] == f'attachment; filename="{job["id"]}.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {entry.filename: archive.read(entry) for entry in archive.infolist()} == {
            f"{name}.flac": content for name, content in stems.items()
        }
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    assert service.client.get(job["archive_url"]).content == answer.content
    service.deps.storage.delete_prefix(f"separations/{job['id']}")
    problem(service.client.get(job["archive_url"]), 404, "not_found")
    service.deps.jobs.expire(job["id"])
    problem(service.client.get(job["archive_url"]), 410, "stems_expired")
