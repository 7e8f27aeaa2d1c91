"""`python -m worker --processes`: several workers in one program."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from rq import Worker

from tests.end_to_end.deployment import ROOT, TIMEOUT, Deployment, eventually
from tests.ports import free_ports


def workers(program: subprocess.Popen) -> list[psutil.Process]:
    """Return the worker processes."""
    return [child for child in psutil.Process(program.pid).children() if "worker" in child.cmdline()]


def test_workers_die_independently_and_stop_together(deploy: Callable[..., Deployment]) -> None:
    port, _ = free_ports(2)  # one for each process
    deployment = deploy(worker_metrics_port=port)
    words = ("worker", "--model", str(deployment.model), "--device", "cpu", "--hand-over-after", "0.1")
    program = deployment.start(*words, "--processes", "2")
    eventually(lambda: deployment.registry.workers_by_name().get("base", 0) == 2)
    pages = [httpx.get(f"http://127.0.0.1:{port + index}/metrics", timeout=60).text for index in range(2)]
    assert all("earmark_batch_size" in page for page in pages)

    long = deployment.submit(deployment.upload(seconds=300.0), [{"name": "dog", "label": "Dog"}])
    deployment.wait_running(long)
    deployment.start_housekeeping()
    victim = busy_worker(deployment)
    (other,) = [process for process in workers(program) if process.pid != victim]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: deployment.jobs.get(long.id).attempts == 2)
    assert other.is_running(), "the death of one worker does not affect the other"
    eventually(lambda: len(workers(program)) == 2 and deployment.registry.workers_by_name().get("base", 0) == 2)

    deployment.jobs.cancel(long.id)
    jobs = [deployment.submit(long.audio_ids[0], [{"name": "dog", "label": "Dog"}]) for _ in range(2)]
    for job in jobs:
        deployment.wait_running(job, ratio=0.0)
    deployment.stop(program)
    assert deployment.registry.workers_by_name().get("base", 0) == 0
    assert [deployment.jobs.get(job.id).status for job in jobs] == ["queued", "queued"], "handed over"


def busy_worker(deployment: Deployment) -> int:
    """Return the process id of the worker that runs the job."""
    workers = Worker.all(connection=deployment.redis)
    (worker,) = [worker for worker in workers if worker.get_current_executions()]
    return int(worker.name.split(".")[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "no-such-model"), "\nThe worker cannot run jobs: the model no-such-model does not load"),
        (("--burst",), "--processes 1"),
    ],
)
def test_workers_that_cannot_start_end_the_program(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    environment = {**os.environ, "EARMARK_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "worker", "--processes", "2", *options]
    program = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert program.returncode == 2
    assert message in f"\n{program.stderr}"
    assert "Traceback" not in program.stderr
    scratch = [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()]
    assert [path for path in scratch if path.name != "lock"] == []
