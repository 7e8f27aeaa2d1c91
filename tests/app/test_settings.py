"""Settings refuse what makes no sense, and names that are nearly theirs, before anything is served."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_settings import BaseSettings
from typer.testing import CliRunner

from app.__main__ import cli
from app.settings import Settings
from app.settings.environment import NEAR, OTHERS, distance, is_service_link, judge
from tests.conftest import REPOSITORY

NAMES = sorted(Settings.model_fields)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("store", {"store": "s3:/earmark"}),
        ("store", {"store": "s3://"}),
        ("store", {"store": "s3://ab/x"}),
        ("store", {"store": "s3://earmark/a//b"}),
        ("store", {"store": "s3://earmark/../b"}),
        ("store", {"store": "file:///srv/store"}),
        ("store", {"store": "~/store"}),
        ("store_endpoint", {"store_endpoint": "http://store:8333"}),
        ("store_public_endpoint", {"store_public_endpoint": "https://earmark.example"}),
        ("store_secret_key", {"store": "s3://earmark", "store_access_key": "a"}),
        ("store_secret_key", {"store": "s3://earmark", "store_secret_key": "a"}),
        ("redis_url", {"redis_url": "localhost:6379"}),
        ("redis_url", {"redis_url": "http://localhost:6379"}),
        ("redis_url", {"redis_url": "redis://:hush@localhost:6379/queue"}),
        ("heartbeat_timeout", {"heartbeat_seconds": 15}),
        ("highest_rate", {"lowest_rate": 192_001}),
        ("port", {"metrics_port": 8000}),
        ("outside_ports", {"outside_ports": "80,99999"}),
        ("proxy_networks", {"proxy_networks": "10.0.0.1/8"}),
        ("job_timeout", {"job_timeout": float("inf")}),
        ("upload_idle", {"upload_idle": float("nan")}),
    ],
)
def test_senseless_values_are_refused(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(**values)
    assert name in [error["loc"][0] for error in caught.value.errors()]
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"store": "s3://earmark"},
        {"store": "s3://my.bucket-1/a/b/"},
        {"store": "/srv/store"},
        {"store": "s3"},
        {"redis_url": "rediss://user:hush@localhost:6379/1"},
        {"redis_url": "unix:///run/valkey.sock"},
        {"store": "s3://earmark", "store_access_key": "", "store_secret_key": "", "store_endpoint": ""},
        {"port": 0, "metrics_port": 0},
        {"store": "/srv/store", "store_secret_key": "of-another-deployment"},
    ],
)
def test_sensible_values_are_accepted(values: dict[str, Any]) -> None:
    Settings(**values)


@given(st.sampled_from(NAMES), st.data())
@hypothesis_settings(deadline=None)
def test_names_within_two_edits_of_a_setting_are_refused(name: str, data: st.DataObject) -> None:
    letters = list(f"EARMARK_{name.upper()}")
    for _ in range(data.draw(st.integers(1, NEAR))):
        at = data.draw(st.integers(len("EARMARK_"), len(letters) - 1))
        letters[at : at + data.draw(st.integers(0, 1))] = data.draw(st.sampled_from(["", "X", "_"]))
    typo = "".join(letters)
    misspelled, unknown = judge({typo: "1"}, NAMES)
    is_known = typo.removeprefix("EARMARK_").lower() in NAMES or typo in OTHERS or is_service_link(typo, "1")
    assert unknown == [] and misspelled.keys() == (set() if is_known else {typo})
    assert all(distance(typo, setting) <= NEAR for setting in misspelled.values())


@given(st.text("AB_", max_size=6), st.text("AB_", max_size=6), st.text("AB_", max_size=6))
@hypothesis_settings(deadline=None)
def test_the_distance_is_a_metric(one: str, other: str, third: str) -> None:
    assert distance(one, other) == distance(other, one) and (distance(one, other) == 0) == (one == other)
    assert distance(one, third) <= distance(one, other) + distance(other, third)
    assert abs(len(one) - len(other)) <= distance(one, other) <= max(len(one), len(other))


def start(environment: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of ours with these settings only, to its end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EARMARK_")}
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=REPOSITORY,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_no_part_of_the_settings_replaces_a_rule_or_a_field_of_another() -> None:
    """Parts are base classes of one: of two that have the same name, one would be lost."""
    parts = [part for part in Settings.__bases__ if part is not BaseSettings]
    fields = Counter(name for part in parts for name in part.model_fields)
    rules = Counter(name for part in parts for name in part.__pydantic_decorators__.field_validators)
    assert not [name for name, count in (fields + rules).items() if count > 1]
    assert rules.keys() == Settings.__pydantic_decorators__.field_validators.keys()


@pytest.mark.parametrize("words", [("app",), ("app", "housekeeping"), ("worker",)])
def test_programs_do_not_start_with_a_misspelled_setting(words: tuple[str, ...], tmp_path: Path) -> None:
    done = start({"EARMARK_STOER": "/srv", "EARMARK_HOME": str(tmp_path)}, *words)
    assert done.returncode == 2 and "EARMARK_STOER is no setting; EARMARK_STORE is one" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_senseless_value_is_told_with_what_would_make_sense(tmp_path: Path) -> None:
    done = start({"EARMARK_STORE": "s3:/earmark", "EARMARK_HOME": str(tmp_path)}, "app")
    assert done.returncode == 2 and "EARMARK_STORE: " in done.stderr and "s3://BUCKET" in done.stderr


def test_unknown_names_are_told_once_and_known_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    links = {
        "EARMARK_PORT": "tcp://10.0.0.1:8000",
        "EARMARK_SERVICE_HOST": "10.0.0.1",
        "EARMARK_SERVICE_PORT_HTTP": "8000",
        "EARMARK_PORT_8000_TCP_ADDR": "10.0.0.1",
        "EARMARK_API_PORT": "tcp://10.0.0.1:8000",
    }
    for name, value in {**links, "EARMARK_SOAK": "1", "EARMARK_FAVOURITE_COLOUR": "blue"}.items():
        monkeypatch.setenv(name, value)
    assert Settings().port == 8000
    result = CliRunner().invoke(cli, ["keys", "list"], env={"EARMARK_REDIS_URL": "redis://127.0.0.1:9"})
    assert result.output.count("EARMARK_FAVOURITE_COLOUR") == 1 and "EARMARK_SOAK" not in result.output
    assert "ignored: EARMARK_FAVOURITE_COLOUR\n" in result.output


def test_every_name_in_the_repository_is_a_setting_or_a_known_other() -> None:
    files = ["docker", "docker-compose.yml", "Makefile", "README.md", "app", "worker", "models", ".ci"]
    found = subprocess.run(
        ["git", "grep", "-hoIwE", "EARMARK_[A-Z0-9_]+", "--", *files], cwd=REPOSITORY, capture_output=True, text=True
    ).stdout.split()
    settings = {f"EARMARK_{name.upper()}" for name in NAMES}
    assert len(settings & set(found)) > 50
    unknown = {name for name in found if name not in settings | OTHERS and not re.fullmatch(r"EARMARK_.*_", name)}
    assert unknown <= {"EARMARK_STOER", "EARMARK_X"}, "a setting, or to be listed in app/settings/environment.py"
