"""A client of the HTTP API: upload, create a separation, poll, download."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

POLL_SECONDS = 0.3
_PASSING = frozenset({429, 502, 503, 504})  # statuses of limits and restarts
_PASSING_TRIES = 100


class DemoFailed(Exception):
    """The demonstration failed; the message says in which step."""


def wait_until_ready(client: httpx.Client, is_running: Callable[[], bool], seconds: float) -> None:
    """Wait until a worker has loaded its model. Raises DemoFailed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not is_running():
            raise DemoFailed("the service exited before it was ready")
        try:
            if client.get("/readyz").is_success:
                models = client.get("/v1/models")
                if models.is_success and _parse(models)["data"]:
                    return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(POLL_SECONDS)
    raise DemoFailed(f"the service was not ready within {seconds:.0f} s")


def upload(client: httpx.Client, path: Path) -> dict[str, Any]:
    """POST /v1/audio; return the Audio resource."""
    with path.open("rb") as file:
        return _parse(client.post("/v1/audio", files={"file": (path.name, file)}))


def separate(
    client: httpx.Client, mixture: str, example: str, name: str, progress: Callable[[float, str], None]
) -> dict[str, Any]:
    """POST /v1/separations and poll; return the finished Separation. Raises DemoFailed unless it succeeded."""
    request = {
        "mixture": {"audio_id": mixture},
        "targets": [{"name": name, "examples": [{"audio_id": example}]}],
        "output": {"format": "flac", "residual": True},
    }
    job = _parse(client.post("/v1/separations", json=request))
    while job["status"] in ("queued", "running"):
        time.sleep(POLL_SECONDS)
        job = _poll(client, job["url"])
        progress(job["progress"]["ratio"], job["progress"]["stage"] or job["status"])
    if job["status"] != "succeeded":
        raise DemoFailed(f"the separation {job['status']}: {job['error']}")
    return job


def download(client: httpx.Client, job: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Download all stems of a job into `folder`; return their paths by name."""
    paths = {}
    for stem in job["stems"]:
        paths[stem["name"]] = folder / f"{stem['name']}.flac"
        with client.stream("GET", stem["url"], follow_redirects=True) as response:
            response.raise_for_status()
            with paths[stem["name"]].open("wb") as file:
                for block in response.iter_bytes():
                    file.write(block)
    return paths


def _poll(client: httpx.Client, url: str) -> dict[str, Any]:
    """GET a resource, again while a limit or a restart is in the way."""
    response = client.get(url)
    for _ in range(_PASSING_TRIES):
        if response.status_code not in _PASSING:
            break
        time.sleep(POLL_SECONDS)
        response = client.get(url)
    return _parse(response)


def _parse(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON of a success. Raises DemoFailed for all else, such as a proxy's page."""
    if response.is_success and response.headers.get("Content-Type", "").startswith("application/json"):
        return response.json()
    request = response.request
    raise DemoFailed(f"{request.method} {request.url.path}: {response.status_code} {response.text[:500]}")
