"""Metrics: jobs counted where their records change, calls of the store, separate ports."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from app.jobs.lifecycle import Job, JobError
from app.jobs.repository import JobRepository
from app.metrics import PROCESS
from app.records.ids import new_id, timestamp
from app.settings import Settings
from app.storage import Storage
from tests.app.conftest import MODEL, Service, eventually
from tests.app.records import new_job
from tests.conftest import REPOSITORY
from tests.ports import free_ports

RESULT = {
    "mixture": {"duration": 12.5},
    "quality": "high",
    "metrics": {
        "decoding": 0.5,
        "separating": 2.0,
        "encoding": 0.25,
        "real_time_factor": 0.22,
        "threads": 2,
        "batch": 9,
        "speeds": 1,
    },
}


def value(name: str, **labels: str) -> float:
    return PROCESS.get_sample_value(name, labels) or 0.0


def claim(jobs: JobRepository, job: Job, execution: str = "a") -> None:
    assert jobs.claim(job.id, execution) is not None


def succeed(jobs: JobRepository, job: Job) -> None:
    claim(jobs, job)
    assert jobs.publish(job.id, "a", job.targets, RESULT)
    assert jobs.publish(job.id, "a", job.targets, RESULT), "a repeated call is not counted"


def fail(jobs: JobRepository, job: Job) -> None:
    claim(jobs, job)
    assert jobs.fail(job.id, "a", JobError(code="audio_silent", detail="."))


def cancel_waiting(jobs: JobRepository, job: Job) -> None:
    jobs.cancel(job.id)


def hand_over(jobs: JobRepository, job: Job) -> None:
    claim(jobs, job)
    assert jobs.release(job.id, "a")


def lose_worker(jobs: JobRepository, job: Job) -> None:
    claim(jobs, job)
    assert jobs.requeue(jobs.get(job.id)) is not None


def retry(jobs: JobRepository, job: Job) -> None:
    claim(jobs, job)
    claim(jobs, job, "b")


def give_up(jobs: JobRepository, job: Job) -> None:
    for execution in "abc":
        claim(jobs, job, execution)
        jobs.requeue(jobs.get(job.id))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (
            succeed,
            {
                ("earmark_jobs_finished_total", "succeeded", ""): 1,
                ("earmark_job_waiting_duration_seconds_count",): 1,
                ("earmark_job_stage_duration_seconds_sum", "separating"): 2.0,
                ("earmark_job_real_time_factor_ratio_sum", "high"): 0.22,
                ("earmark_audio_seconds_total",): 12.5,
            },
        ),
        (fail, {("earmark_jobs_finished_total", "failed", "audio_silent"): 1}),
        (cancel_waiting, {("earmark_jobs_finished_total", "canceled", ""): 1}),
        (hand_over, {("earmark_jobs_retried_total", "handed_over"): 1}),
        (lose_worker, {("earmark_jobs_retried_total", "lost"): 1}),
        (retry, {("earmark_jobs_retried_total", "failed"): 1}),
        (
            give_up,
            {
                ("earmark_jobs_retried_total", "lost"): 2,
                ("earmark_jobs_finished_total", "failed", "worker_lost"): 1,
                ("earmark_jobs_abandoned_total",): 1,
            },
        ),
    ],
)
def test_the_steps_of_a_job_are_counted(
    jobs: JobRepository, steps: Callable[[JobRepository, Job], None], expected: dict[tuple, float]
) -> None:
    model = new_id("m")  # its metrics start at 0
    steps(jobs, jobs.create(new_job().model_copy(update={"model": model})).job)
    others = {"earmark_jobs_finished_total": ("status", "code"), "earmark_job_stage_duration_seconds_sum": ("stage",)}
    others |= {"earmark_jobs_retried_total": ("reason",), "earmark_job_real_time_factor_ratio_sum": ("quality",)}
    for (name, *words), amount in expected.items():
        labels = dict(zip(others.get(name, ()), words, strict=True))
        assert value(name, kind="separation", model=model, **labels) == pytest.approx(amount), name
    retried = {
        reason for reason in ("failed", "lost", "handed_over") if ("earmark_jobs_retried_total", reason) in expected
    }
    for reason in {"failed", "lost", "handed_over"} - retried:
        assert value("earmark_jobs_retried_total", kind="separation", model=model, reason=reason) == 0
    stages = {
        sample.labels["stage"]
        for family in PROCESS.collect()
        for sample in family.samples
        if sample.labels.get("model") == model and "stage" in sample.labels
    }
    assert stages in (set(), {"decoding", "separating", "encoding"}), "what a result was computed with is no stage"
    finished = [
        sample.value
        for family in PROCESS.collect()
        for sample in family.samples
        if sample.name == "earmark_jobs_finished_total" and sample.labels["model"] == model
    ]
    assert sum(finished) == sum(
        amount for (name, *_), amount in expected.items() if name == "earmark_jobs_finished_total"
    )


def test_a_result_of_an_earlier_release_is_of_standard_quality(jobs: JobRepository) -> None:
    """Its workers do not know another one."""
    model = new_id("m")
    job = jobs.create(new_job().model_copy(update={"model": model})).job
    claim(jobs, job)
    assert jobs.publish(job.id, "a", job.targets, {name: RESULT[name] for name in ("mixture", "metrics")})
    name = "earmark_job_real_time_factor_ratio_count"
    assert value(name, kind="separation", model=model, quality="standard") == 1


def test_calls_of_the_store_are_counted_by_outcome(tmp_path: Path) -> None:
    def count(operation: str, outcome: str) -> float:
        return value("earmark_store_call_duration_seconds_count", operation=operation, outcome=outcome)

    cases = [("put", "ok"), ("get", "ok"), ("get", "missing"), ("check", "failed")]
    before = {case: count(*case) for case in cases}
    storage = Storage.open(Settings(store=str(tmp_path / "store")))
    (tmp_path / "file").write_bytes(b"1234")
    storage.put_file("a", tmp_path / "file")
    storage.download("a", tmp_path / "back")
    with pytest.raises(Exception, match="not in the store"):
        storage.download("b", tmp_path / "back")
    (tmp_path / "store").rename(tmp_path / "away")
    with pytest.raises(Exception, match="store"):
        storage.check()
    assert {case: count(*case) - before[case] for case in cases} == dict.fromkeys(cases, 1.0)


def test_the_front_end_exports_metrics_of_the_queue(folder_service: Service) -> None:
    separation = folder_service.separate()
    jobs, registry = folder_service.deps.jobs, folder_service.deps.model_registry
    eventually(lambda: jobs.fair_queue.oldest_age("base@1") > 0.05)
    text = folder_service.client.get("/metrics").text
    oldest = next(
        line
        for line in text.splitlines()
        if line.startswith('earmark_jobs_oldest_waiting_seconds{model="base",version="1"}')
    )
    assert 0.05 <= float(oldest.split()[-1]) < 60
    assert 'earmark_jobs_running{model="base",version="1"} 0.0' in text
    assert 'earmark_jobs_waiting_audio_seconds{model="base",version="1"} 1.0' in text
    jobs.cancel(separation["id"])
    assert jobs.fair_queue.oldest_age("base@1") == 0
    assert registry.models()[0][1].name == MODEL["name"]


def test_ids_hold_their_time_of_creation() -> None:
    assert timestamp("sep_01HZZZZZZZZZZZZZZZZZZZZZZZ") == pytest.approx(1717986918.399)


@pytest.fixture
def free_port() -> int:
    return free_ports(1)[0]


def test_metrics_are_served_on_a_separate_port_if_one_is_set(redis: Redis, tmp_path: Path, free_port: int) -> None:
    port = redis.connection_pool.connection_kwargs["port"]
    settings = Settings(
        home=tmp_path, redis_url=f"redis://127.0.0.1:{port}/0", housekeeping_metrics_port=free_port, log_format="json"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "app", "housekeeping"],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin", **settings.as_environment()},
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        responses: list[httpx.Response] = []

        def responds() -> bool:
            try:
                responses.append(httpx.get(f"http://127.0.0.1:{free_port}/metrics"))
            except httpx.TransportError:
                return False
            return True

        eventually(responds)
        program.terminate()
        _, lines = program.communicate()
    assert "earmark_webhook_deliveries_total" in responses[0].text
    assert "earmark_process_resident_memory_bytes" in responses[0].text
    assert '"logger": "earmark.metrics"' in lines and f":{free_port}/metrics" in lines


def test_the_port_of_the_api_then_serves_no_metrics(folder_service: Service, tmp_path: Path) -> None:
    from tests.app.conftest import serve

    settings: Any = folder_service.deps.settings.model_copy(update={"metrics_port": 1})
    for service in serve(settings, tmp_path):
        assert service.client.get("/metrics").status_code == 404
