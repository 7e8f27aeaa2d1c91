"""Lifecycle rules of the bucket, set on a real S3 server, and what they leave alone."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.__main__ import cli
from app.errors import StoreUnavailable
from app.housekeeping import lifecycle
from app.settings import Settings
from tests.conftest import S3Server


def rules(document: str) -> dict[str, int]:
    """Return the days after which objects are deleted, by prefix."""
    found = re.findall(r"<Prefix>([^<]*)</Prefix></Filter><Status>Enabled</Status><Expiration><Days>(\d+)<", document)
    return {prefix: int(days) for prefix, days in found}


def test_the_command_sets_the_rules_of_the_bucket(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = seaweed.settings("rules", stem_retention=86400.0 * 50)
    for name, value in settings.as_environment().items():
        monkeypatch.setenv(name, value)
    told = CliRunner().invoke(cli, ["housekeeping", "lifecycle", "--dry-run"])
    assert told.exit_code == 0 and told.output.strip() == lifecycle.document(settings)
    assert CliRunner().invoke(cli, ["housekeeping", "lifecycle"]).exit_code == 0
    document = lifecycle.request(settings, "GET").text
    assert rules(document)["rules/separations/"] == 57
    assert "<DaysAfterInitiation>2</DaysAfterInitiation>" in document
    monkeypatch.setenv("EARMARK_STORE_SECRET_KEY", "wrong")
    refused = CliRunner().invoke(cli, ["housekeeping", "lifecycle"])
    assert refused.exit_code == 1 and "403" in refused.output


def test_rules_outlast_every_retention_and_spare_saved_queries() -> None:
    settings = Settings(store="s3://earmark")
    days = rules(lifecycle.document(settings))
    kept = {"audio/": 1, "outlines/": 1, "incoming/": 1, "separations/": 3, "detections/": 3}
    kept |= {"records/sep_": 33, "records/det_": 33}
    assert days.keys() == kept.keys()
    assert all(days[prefix] >= kept[prefix] + 7 for prefix in kept)
    assert not any(key.startswith(prefix) for prefix in days for key in ("queries/qry_1/e/x", "records/qry_1/e.json"))


def test_a_folder_has_no_rules(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        lifecycle.request(Settings(home=tmp_path), "GET")
