"""Export and import of keys: after a loss of Redis, the same keys work again."""

import json
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from typer.testing import CliRunner, Result

from app.__main__ import cli
from app.keys.repository import Key, KeyRepository
from tests.app.conftest import Service


@pytest.fixture
def run(valkey: Any, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `python -m app keys WORDS`, with a text as standard input."""
    monkeypatch.setenv("EARMARK_REDIS_URL", valkey.connection_url)
    return lambda *words, text=None: CliRunner().invoke(cli, ["keys", *words], input=text)


def test_keys_work_again_after_redis_was_lost(keyed_service: Service, run: Any, redis: Redis, tmp_path: Path) -> None:
    services = [keyed_service.with_key(rate=100 + number, priority=3) for number in range(2)]
    records = KeyRepository(redis).list()
    exported: Result = run("export", "--webhook-secrets")
    assert exported.exit_code == 0
    for service in services:
        assert service.client.headers["Authorization"].removeprefix("Bearer ") not in exported.stdout
    file = tmp_path / "keys.jsonl"
    file.write_text(exported.stdout)

    redis.flushall()
    assert services[0].client.get("/v1/limits").status_code == 401
    assert run("import", str(file)).exit_code == 0

    assert [service.client.get("/v1/limits").status_code for service in services] == [200, 200]
    assert KeyRepository(redis).list() == records
    again: Result = run("import", "-", text=exported.stdout)
    assert again.exit_code == 0 and "0 keys imported, 2 were there already" in again.output


def test_webhook_secrets_are_exported_on_request_only_and_made_anew_otherwise(run: Any, redis: Redis) -> None:
    key, _ = KeyRepository(redis).create("shop", 5, 6, 7)
    exported: Result = run("export")
    assert key.webhook_secret not in exported.stdout and json.loads(exported.stdout)["digest"] == key.digest
    redis.flushall()
    imported: Result = run("import", "-", text=exported.stdout)
    [found] = KeyRepository(redis).list()
    assert found.webhook_secret in imported.output and found.webhook_secret != key.webhook_secret
    assert found == key.model_copy(update={"webhook_secret": found.webhook_secret})


@pytest.mark.parametrize(
    "damage",
    [
        {"digest": "0"},
        {"id": "aud_1"},
        {"priority": 0},
        {"name": "a\nb"},
        {"schema_version": 2},
        {"webhook_secret": "s3cret"},
        {"more": 1},
    ],
)
def test_of_a_damaged_export_nothing_is_imported(run: Any, redis: Redis, damage: dict[str, Any]) -> None:
    first, second = (KeyRepository(redis).create(name, 0, 0, 1)[0] for name in ("a", "b"))
    redis.flushall()
    lines = f"{to_text(first)}\n\n{to_text(second, **damage)}\n"
    result: Result = run("import", "-", text=lines)
    assert result.exit_code == 1 and "Line 3" in result.output
    assert KeyRepository(redis).list() == []
    assert "s3cret" not in result.output


def to_text(key: Key, **changes: Any) -> str:
    return json.dumps(key.model_dump() | changes)
