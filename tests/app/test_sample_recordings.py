"""Recordings that the page offers to try: small, licensed, accepted by the API, with targets that it accepts."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.job_api import validation
from app.model_registry.registry import ModelDescription
from app.separations.schemas import Target
from tests.app.conftest import Service
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "app" / "sample_recordings"
BASE = REPOSITORY / "app" / "model_registry" / "base.json"
LICENCES = {"CC0-1.0", "CC-BY-3.0", "CC-BY-4.0"}
MOST_BYTES = 600_000  # of all


def samples(client: httpx.Client) -> list[dict[str, Any]]:
    answer = client.get("/page/examples.json")
    assert answer.status_code == 200
    return answer.json()["data"]


def test_samples_are_served_without_a_key(keyed_service: Service) -> None:
    listed = samples(keyed_service.client)
    assert 2 <= len(listed) <= 3 and sum(sample["bytes"] for sample in listed) <= MOST_BYTES
    for sample in listed:
        answer = keyed_service.client.get(sample["url"])
        assert answer.content == (FOLDER / "files" / sample["file"]).read_bytes()
        assert len(answer.content) == sample["bytes"] and answer.headers["content-type"] == "audio/ogg"
        assert (
            keyed_service.client.get(sample["url"], headers={"If-None-Match": answer.headers["etag"]}).status_code
            == 304
        )
    assert {sample["file"] for sample in listed} == {path.name for path in (FOLDER / "files").iterdir()}


@pytest.mark.parametrize("path", ["/page/examples/", "/page/examples/missing.ogg", "/page/examples/..%2fexamples.json"])
def test_nothing_else_is_served(keyed_service: Service, path: str) -> None:
    assert keyed_service.client.get(path).status_code in (404, 405)


def test_samples_are_licensed(folder_service: Service) -> None:
    attribution = (FOLDER / "ATTRIBUTION.md").read_text()
    for sample in samples(folder_service.client):
        assert sample["title"] and sample["licence"] in LICENCES and len(sample["attribution"]) > 20
        assert f"`{sample['file']}`" in attribution


def test_samples_are_accepted_with_their_targets(folder_service: Service) -> None:
    """The targets are those of the API, for the shipped model."""
    base = ModelDescription.model_validate_json(Path(BASE).read_text())
    for sample in samples(folder_service.client):
        content = folder_service.client.get(sample["url"]).content
        audio = folder_service.upload(content, sample["file"])
        assert audio["duration"] == pytest.approx(sample["seconds"], abs=0.1) and audio["channels"] == 2
        assert len(sample["suggestions"]) >= 2
        for suggestion in sample["suggestions"]:
            target = Target.model_validate_json(json.dumps(suggestion["target"]))
            assert suggestion["title"] and suggestion["improvement"] > 8
            if target.label is not None:
                assert validation.find_class(base, target.label).label == target.label
            for span in target.spans or []:
                assert 0 <= span.start < span.end <= audio["duration"]
