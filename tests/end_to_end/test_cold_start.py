"""A new deployment takes jobs of the models that it is configured for before any worker lives."""

import re
from pathlib import Path

import httpx

from tests.app.conftest import wav
from tests.end_to_end.deployment import Deployment, eventually
from tests.ports import free_ports


def test_a_job_waits_for_the_first_worker(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "deployment", Path("base"), {"auth": "off"})
    try:
        (port,) = free_ports(1)
        deployment.start_api(port)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

            def gauge(name: str) -> float:
                (value,) = re.findall(
                    rf'^{name}{{model="base",version="\S+"}} (\S+)$', client.get("/metrics").text, re.MULTILINE
                )
                return float(value)

            assert (gauge("earmark_jobs_waiting"), gauge("earmark_jobs_running"), gauge("earmark_workers")) == (0, 0, 0)
            (model,) = client.get("/v1/models").json()["data"]
            assert (model["name"], model["workers"], model["default"]) == ("base", 0, True)
            job = client.post("/v1/separations", files={"mixture": wav()}, data={"text": "a dog barking"})
            assert job.status_code == 202, job.text
            assert gauge("earmark_jobs_waiting") == 1
            deployment.start_worker()
            url = job.json()["url"]
            eventually(lambda: client.get(url).json()["status"] == "succeeded")
            assert (gauge("earmark_jobs_waiting"), gauge("earmark_workers")) == (0, 1)
    finally:
        deployment.close()
