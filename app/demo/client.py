"""The whole of a separation as a client of the REST contract does it: upload, ask, poll, fetch."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

POLL_SECONDS = 0.3


class DemoFailed(Exception):
    """The demonstration did not come to its end; the message says where."""


def wait_until_ready(client: httpx.Client, running: Callable[[], bool], seconds: float) -> None:
    """Wait until a worker has loaded its model. Raises DemoFailed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not running():
            raise DemoFailed("the service ended before it was ready")
        try:
            answer = client.get("/readyz")
            if answer.status_code == 200 and client.get("/v1/models").json()["data"]:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(POLL_SECONDS)
    raise DemoFailed(f"the service was not ready within {seconds:.0f} s")


def upload(client: httpx.Client, path: Path) -> dict[str, Any]:
    """POST /v1/audio -> Audio."""
    with path.open("rb") as file:
        return _checked(client.post("/v1/audio", files={"file": (path.name, file)}))


def separate(
    client: httpx.Client, mixture: str, example: str, name: str, progress: Callable[[float, str], None]
) -> dict[str, Any]:
    """POST /v1/separations and poll -> the finished Separation. Raises DemoFailed unless it succeeded."""
    request = {
        "mixture": {"audio_id": mixture},
        "targets": [{"name": name, "examples": [{"audio_id": example}]}],
        "output": {"format": "flac", "residual": True},
    }
    job = _checked(client.post("/v1/separations", json=request))
    while job["status"] in ("queued", "running"):
        time.sleep(POLL_SECONDS)
        job = _checked(client.get(job["url"]))
        progress(job["progress"]["ratio"], job["progress"]["stage"] or job["status"])
    if job["status"] != "succeeded":
        raise DemoFailed(f"the separation {job['status']}: {job['error']}")
    return job


def download(client: httpx.Client, job: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Every stem of a job into `folder`, by name."""
    paths = {}
    for stem in job["stems"]:
        paths[stem["name"]] = folder / f"{stem['name']}.flac"
        with client.stream("GET", stem["url"], follow_redirects=True) as answer:
            answer.raise_for_status()
            with paths[stem["name"]].open("wb") as file:
                for block in answer.iter_bytes():
                    file.write(block)
    return paths


def _checked(answer: httpx.Response) -> dict[str, Any]:
    if answer.is_error:
        raise DemoFailed(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text}")
    return answer.json()
