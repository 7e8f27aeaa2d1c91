"""Sizes in compose, Kubernetes, the proxies and the README follow from the default settings."""

import re
from typing import Any

import pytest
import yaml

from app.job_api.event_stream import HEARTBEAT_SECONDS
from app.media import waveform
from app.media.probe import MEMORY_BYTES, SANDBOX_LIMITS
from app.metrics import CALL_BUCKETS
from app.settings import Settings
from app.storage import CONCURRENT_PARTS, PART_BYTES
from tests.conftest import REPOSITORY
from tests.docker.test_files import DOCKER, manifests
from tests.end_to_end.test_capacity import LIMIT

MIB = 1 << 20
API = 256 * MIB  # of memory, without uploads: 90 MiB at rest, 25 in the zygote of decoders
UPLOAD = (CONCURRENT_PARTS + 1) * PART_BYTES  # of memory of a write of the store, at most
CHILD = 64 * MIB  # of memory of a process that reads a sound file: 40 MiB
SLACK = 16 * MIB  # of a body beyond its file, at most
UNITS = {"": 1, "m": MIB, "g": 1 << 30, "k": 1 << 10, "Mi": MIB, "Gi": 1 << 30, "Ki": 1 << 10}
SETTINGS = Settings.model_construct()


def size(text: str) -> int:
    """Return bytes of `520m`, `2g`, `9Gi`."""
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]*)", text).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


@pytest.fixture(scope="module")
def compose_api() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]["api"]


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    [api] = [one for _, one in manifests() if one["kind"] == "Deployment" and one["metadata"]["name"] == "api"]
    return api["spec"]["template"]["spec"]


def temporary_folder() -> str:
    """Return the folder for temporary files in the image."""
    found = re.search(r"\bTMPDIR=(\S+)", (DOCKER / "Dockerfile.api").read_text())
    assert found
    return found[1]


def body_sizes() -> list[int]:
    """Return what nginx in compose and ingress-nginx accept."""
    nginx = re.search(r"client_max_body_size (\w+);", (DOCKER / "nginx.conf").read_text())
    [ingress] = [one for _, one in manifests() if one["kind"] == "Ingress"]
    assert nginx
    return [size(nginx[1]), size(ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"])]


def test_proxies_accept_the_largest_file_and_little_more() -> None:
    for accepted in body_sizes():
        assert SETTINGS.upload_bytes + SETTINGS.body_bytes < accepted <= SETTINGS.upload_bytes + SLACK


def test_the_readmes_tell_what_the_proxies_accept() -> None:
    told = [
        int(number) * MIB
        for path in (REPOSITORY / "README.md", DOCKER / "README.md")
        for number in re.findall(r"(\d+) MB(?:;| each at the proxy| also `docker/nginx.conf`)", path.read_text())
    ]
    assert len(told) >= 3 and set(told) == set(body_sizes())


def read_timeouts() -> tuple[list[float], float]:
    """Return the seconds for which nginx in compose and ingress-nginx wait for an answer; and nginx for an event."""
    units = {"s": 1, "m": 60, "h": 3600}
    found = re.findall(r"proxy_read_timeout\s+(\d+)([smh]);", (DOCKER / "nginx.conf").read_text())
    answers, events = (float(number) * units[unit] for number, unit in found[:2])
    [ingress] = [one for _, one in manifests() if one["kind"] == "Ingress"]
    annotations = ingress["metadata"]["annotations"]
    return [answers, float(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"])], events


def test_proxies_wait_for_the_slowest_answer() -> None:
    peaks = SETTINGS.budget_patience + SETTINGS.fetch_timeout + waveform.SANDBOX_LIMITS.seconds
    fetch = 3 * SETTINGS.budget_patience + SETTINGS.fetch_timeout + SANDBOX_LIMITS.seconds
    completion = 2 * (SETTINGS.fetch_timeout + 60)  # behind another one of the same upload
    answers, events = read_timeouts()
    assert min(answers) > max(peaks, fetch, completion, SETTINGS.longest_wait)
    assert min(*answers, events) > 2 * HEARTBEAT_SECONDS
    stall = SETTINGS.store_timeout  # of a download, or of an upload that the API passes on
    assert min(answers) > 2 * stall


def test_the_duration_of_the_longest_upload_has_a_bucket() -> None:
    assert max(CALL_BUCKETS) >= SETTINGS.upload_timeout
    assert max(CALL_BUCKETS) >= 2 * SETTINGS.fetch_timeout


def test_uploads_in_flight_fit_on_a_disk_and_are_not_in_memory(
    compose_api: dict[str, Any], pod: dict[str, Any]
) -> None:
    folder = temporary_folder()
    assert folder in compose_api["volumes"]
    assert not any(folder in mount for mount in compose_api["tmpfs"])
    [container] = pod["containers"]
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
    [uploads] = [volumes[mount["name"]] for mount in container["volumeMounts"] if mount["mountPath"] == folder]
    assert "medium" not in uploads
    assert size(uploads["sizeLimit"]) > SETTINGS.upload_room + SETTINGS.local_copies
    total = sum(size(volume["sizeLimit"]) for volume in volumes.values())
    resources = container["resources"]
    assert size(resources["requests"]["ephemeral-storage"]) > total, "the node has the room that is requested"
    assert size(resources["limits"]["ephemeral-storage"]) > total


def test_memory_holds_all_uploads_and_the_worst_of_one_key(compose_api: dict[str, Any], pod: dict[str, Any]) -> None:
    """All budgets used with ordinary files, and one key's share of them with files that use all that a child may."""
    children = (SETTINGS.probe_slots, SETTINGS.waveform_slots, SETTINGS.section_slots)
    ordinary = SETTINGS.store_slots * UPLOAD + sum(children) * CHILD
    share = SETTINGS.key_share
    worst = int(SETTINGS.store_slots * share) * UPLOAD + sum(int(n * share) * MEMORY_BYTES for n in children)
    [tmpfs] = compose_api["tmpfs"]
    in_memory = size(re.findall(r"size=(\w+)", tmpfs)[0])
    for limit in (compose_api["mem_limit"], pod["containers"][0]["resources"]["limits"]["memory"]):
        assert size(limit) == LIMIT > API + in_memory + SETTINGS.drawing_cache + max(ordinary, worst)
