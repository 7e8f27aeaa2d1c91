"""Answers to polls are kept, and never one that is no longer true, or somebody else's."""

from typing import Any

import pytest

from app.jobs.lifecycle import Job, TargetState
from app.keys.signed_urls import Sign
from app.separations.schemas import SeparationAnswer
from tests.app.conftest import Service


def find_in_list(service: Service, job_id: str) -> dict[str, Any]:
    """Return the job as the list shows it, which is not cached."""
    page = service.client.get("/v1/separations").json()["data"]
    return next(each for each in page if each["id"] == job_id)


def test_poll_responses_follow_the_record_and_the_queue(folder_service: Service) -> None:
    jobs = folder_service.deps.jobs
    first, job = folder_service.separate(), folder_service.separate()
    steps = (
        lambda: jobs.claim(first["id"], "a"),  # the place of the other changes, its record does not
        lambda: jobs.claim(job["id"], "b"),
        lambda: jobs.report_progress(job["id"], "b", 0.5, "separating"),
        lambda: jobs.update_target(job["id"], "b", TargetState(name="dog", status="succeeded", presence=0.5)),
        lambda: jobs.release(job["id"], "b"),  # it waits again
        lambda: folder_service.finish(job["id"]),
        lambda: jobs.expire(job["id"]),
    )
    seen = []
    for step in (lambda: None, *steps):
        step()
        for _ in range(3):
            answer = folder_service.client.get(job["url"])
            assert answer.json() == find_in_list(folder_service, job["id"])
        seen.append(answer)
    assert [answer.json()["queue"]["position"] for answer in seen[:3]] == [2, 1, 0]
    assert seen[5].json()["queue"]["position"] > 0 and seen[6].json()["stems"] and not seen[7].json()["stems"]
    tags = [answer.headers["etag"] for answer in seen]
    assert tags[0] == tags[1] and tags[2] == tags[3] and len(set(tags)) == 6
    assert folder_service.client.delete(job["url"]).status_code == 204
    assert folder_service.client.get(job["url"]).status_code == 404


def test_cached_responses_are_for_their_owner_only(keyed_service: Service) -> None:
    one, other = keyed_service.with_key(), keyed_service.with_key()
    job = one.separate()
    path = f"/v1/separations/{job['id']}"
    assert [each.client.get(path).status_code for each in (one, other, one, other)] == [200, 404, 200, 404]
    assert one.client.get(path).json() == job


def test_only_gets_of_ids_take_the_fast_path(folder_service: Service) -> None:
    job, client = folder_service.separate(), folder_service.client
    assert client.head(job["url"]).status_code == 405
    assert client.put(job["url"]).headers["allow"]
    for path in (job["url"][:-1], job["url"] + "0", job["url"].replace("sep_", "det_"), job["url"] + "%0A"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
    told = client.get("/metrics").text
    assert 'route="/v1/separations/{job_id}",status="404"' in told and "none" not in told.split("earmark_http_")[1]


def test_an_unchanged_record_is_rendered_once(folder_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    from_job, rendered = SeparationAnswer.from_job, []

    def count(job: Job, position: int, sign: Sign) -> SeparationAnswer:
        rendered.append(job.id)
        return from_job(job, position, sign)

    job = folder_service.separate()
    monkeypatch.setattr(SeparationAnswer, "from_job", count)
    for _ in range(5):
        folder_service.client.get(job["url"])
    assert rendered == [job["id"]]
