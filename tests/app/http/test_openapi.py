"""`openapi.json` at the top of the repository is the document that the application generates."""

import json
from pathlib import Path

from typer.testing import CliRunner

from app.__main__ import cli
from tests.conftest import REPOSITORY


def test_the_committed_openapi_document_is_current(tmp_path: Path) -> None:
    assert CliRunner().invoke(cli, ["openapi", str(tmp_path / "generated.json")]).exit_code == 0
    committed = (REPOSITORY / "openapi.json").read_text(encoding="utf-8")
    assert (tmp_path / "generated.json").read_text(encoding="utf-8") == committed, "run `python -m app openapi`"


def test_generated_clients_get_short_names_and_can_download_stems() -> None:
    document = json.loads((REPOSITORY / "openapi.json").read_text(encoding="utf-8"))
    ids = [operation["operationId"] for calls in document["paths"].values() for operation in calls.values()]
    assert {"audio_upload", "separations_create", "separations_list", "separations_get", "models_list"} <= set(ids)
    assert len(ids) == len(set(ids)) and not any("_v1_" in each for each in ids)
    stem = document["paths"]["/v1/separations/{job_id}/stems/{name}"]["get"]["responses"]["200"]
    assert stem["content"]["audio/*"]["schema"] == {"type": "string", "format": "binary"}


def test_receivers_of_webhooks_find_the_message_and_its_signature() -> None:
    document = json.loads((REPOSITORY / "openapi.json").read_text(encoding="utf-8"))
    assert set(document["webhooks"]) == {"separation", "detection", "query"}
    finished = document["webhooks"]["separation"]["post"]
    message = finished["requestBody"]["content"]["application/json"]["schema"]
    assert message["properties"]["data"] == {"$ref": "#/components/schemas/SeparationAnswer"}
    assert message["required"] == ["type", "timestamp", "data"]
    assert {each["name"] for each in finished["parameters"]} == {
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    }
