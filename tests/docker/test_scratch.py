"""Volumes of workers hold what a job may need by the default settings."""

import re
from typing import Any

import yaml

from app.settings import Settings
from tests.conftest import REPOSITORY
from tests.docker.test_files import DOCKER, manifests

SETTINGS = Settings.model_construct()
# Uploads are on the disk until they are decoded, beside the recording: one at a time, with what is decoded of it.
UPLOADS = SETTINGS.upload_bytes + 4 * int(SETTINGS.example_seconds) * SETTINGS.channels * SETTINGS.highest_rate


def gibibytes(text: str) -> int:
    """Return bytes of `26Gi`."""
    number = re.fullmatch(r"(\d+)Gi", text)
    assert number
    return int(number[1]) << 30


def home() -> str:
    """Return the folder that holds the scratch folder in the worker's image."""
    found = re.search(r"EARMARK_HOME=(\S+)", (DOCKER / "Dockerfile.worker").read_text())
    assert found
    return found[1]


def test_the_volume_of_a_kubernetes_worker_holds_the_largest_job() -> None:
    [worker] = [one for _, one in manifests() if one["kind"] == "Deployment" and one["metadata"]["name"] == "worker"]
    pod = worker["spec"]["template"]["spec"]
    [container] = pod["containers"]
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
    [scratch] = [volumes[mount["name"]] for mount in container["volumeMounts"] if mount["mountPath"] == home()]
    assert "medium" not in scratch, "a disk: memory is charged to the container"
    assert gibibytes(scratch["sizeLimit"]) >= SETTINGS.scratch_bytes + UPLOADS
    total = sum(gibibytes(volume["sizeLimit"]) for volume in volumes.values())
    resources = container["resources"]
    assert total < gibibytes(resources["requests"]["ephemeral-storage"]), "the node has the room that is requested"
    assert total < gibibytes(resources["limits"]["ephemeral-storage"])


def test_the_scratch_of_a_worker_in_compose_is_on_a_disk_without_a_smaller_limit() -> None:
    services: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    for name in ("worker", "worker-gpu"):
        assert services[name]["volumes"] == [home()], name
        assert not any(home() in mount for mount in services[name]["tmpfs"]), name
