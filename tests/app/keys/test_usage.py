"""Usage of keys: requests, audio seconds and stored bytes, by day, as clients and operators see it."""

import re
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from redis import Redis
from typer.testing import CliRunner

from app.__main__ import cli
from app.keys.repository import KEYS_KEY, KeyRepository
from tests.app.conftest import Service, problem, wav


def today(service: Service) -> date:
    return datetime.fromtimestamp(service.deps.clock.now(), UTC).date()


def used(service: Service, **days: str) -> dict[str, Any]:
    response = service.client.get("/v1/usage", params=days)
    assert response.status_code == 200, response.text
    return response.json()


def test_requests_charged_seconds_and_stored_bytes_are_counted_by_key(keyed_service: Service) -> None:
    service, other = keyed_service.with_key(audio_seconds=100), keyed_service.with_key()
    content = wav(2.0)
    audio = service.upload(content)
    job = service.separate(mixture={"audio_id": audio["id"]})
    service.finish(job["id"], {"dog": b"0" * 1000, "residual": b"0" * 500})

    answer = used(service)

    [day] = answer["data"]
    assert day == {
        "day": str(today(service)),
        "requests": 3,  # the upload, the separation, this one
        "audio_seconds": service.deps.jobs.get(job["id"]).charged_seconds,
        "stored_bytes": len(content) + 1500,
    }
    assert answer["total"] == {name: day[name] for name in ("requests", "audio_seconds", "stored_bytes")}
    assert used(other)["total"] == {"requests": 1, "audio_seconds": 0.0, "stored_bytes": 0}


def test_a_refused_job_and_a_corrected_charge_are_no_usage(keyed_service: Service) -> None:
    service = keyed_service.with_key(audio_seconds=2)
    quotas, key_id = service.deps.quotas, service.deps.caller.key_id
    mixture = {"mixture": {"audio_id": service.upload(wav(1.0))["id"]}, "targets": [{"name": "x", "label": "No such"}]}
    assert service.client.post("/v1/separations", json=mixture).status_code == 422
    assert used(service)["total"]["audio_seconds"] == 0.0
    with quotas.charge(key_id, None, 5.0):
        pass
    quotas.adjust(key_id, -1.5, service.deps.clock.now())
    assert used(service)["total"]["audio_seconds"] == 3.5
    with pytest.raises(KeyError), quotas.charge(key_id, None, 5.0):
        raise KeyError
    assert used(service)["total"]["audio_seconds"] == 3.5


def test_days_are_chosen_and_dropped_after_their_retention(keyed_service: Service, redis: Redis) -> None:
    service = keyed_service.with_key()
    number = (today(service) - date(1970, 1, 1)).days
    key_id = service.deps.caller.key_id
    redis.hset(f"earmark:usage:{key_id}:{number - 2}", mapping={"requests": 7, "stored_bytes": 9})
    used(service)
    before = str(today(service) - timedelta(days=2))
    assert [day["requests"] for day in used(service)["data"]] == [7, 2]
    assert [day["requests"] for day in used(service, **{"from": before, "to": before})["data"]] == [7]
    assert used(service, to=before)["from"] == str(date.fromisoformat(before) - timedelta(days=29))
    lifetime = redis.ttl(f"earmark:usage:{key_id}:{number}")
    assert 0 < lifetime <= service.deps.settings.usage_retention


@pytest.mark.parametrize("days", [{"from": "2026-02-02", "to": "2026-02-01"}, {"from": "2020-01-01"}, {"to": "soon"}])
def test_unusable_days_are_refused(keyed_service: Service, days: dict[str, str]) -> None:
    problem(keyed_service.with_key().client.get("/v1/usage", params=days), 422, "request_invalid")


def test_the_first_of_all_days_has_no_usage(keyed_service: Service) -> None:
    assert used(keyed_service.with_key(), to="0001-01-01")["data"] == []


def test_without_keys_requests_are_not_counted(folder_service: Service) -> None:
    before = used(folder_service)["total"]["stored_bytes"]
    folder_service.upload(wav(0.5))
    total = used(folder_service)["total"]
    assert total["requests"] is None and total["stored_bytes"] == before + len(wav(0.5))


def test_operators_see_the_usage_of_all_keys_and_of_one_by_day(
    keyed_service: Service, valkey: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EARMARK_REDIS_URL", valkey.connection_url)
    service = keyed_service.with_key()
    service.upload(wav(1.0))
    key_id = service.deps.caller.key_id
    output = CliRunner().invoke(cli, ["keys", "usage"]).output
    assert re.search(rf"^{key_id} +1 +0\.0 +{len(wav(1.0))} +test$", output, re.MULTILINE), output
    output = CliRunner().invoke(cli, ["keys", "usage", key_id]).output
    assert re.search(rf"^{today(service)} +1 +0\.0 +{len(wav(1.0))} +test$", output, re.MULTILINE), output
    assert CliRunner().invoke(cli, ["keys", "usage", "--from", "2020-01-01"]).exit_code == 1


def test_operators_see_the_usage_of_revoked_keys_and_without_keys(
    keyed_service: Service, valkey: Any, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EARMARK_REDIS_URL", valkey.connection_url)
    used, unused, damaged = (keyed_service.with_key() for _ in range(3))
    ids = [service.deps.caller.key_id for service in (used, unused, damaged)]
    for service in (used, damaged):
        service.upload(wav(1.0))
    redis.hset(KEYS_KEY, ids[2], "{")
    redis.hset(f"earmark:usage::{(today(used) - date(1970, 1, 1)).days}", "stored_bytes", 7)
    keys = KeyRepository(redis)
    keys.revoke(ids[0])
    keys.revoke(ids[1])

    def rows(*words: str) -> dict[str, list[str]]:
        lines = CliRunner().invoke(cli, ["keys", "usage", *words]).output.splitlines()
        return {words[0]: words[1:] for words in (line.split() for line in lines[1:])}

    used_up = ["1", "0.0", str(len(wav(1.0)))]
    assert rows() == {
        ids[0]: [*used_up, "(revoked)"],
        ids[2]: [*used_up, "(damaged)"],
        "-": ["0", "0.0", "7", "(no", "key)"],
    }
    assert rows(ids[0]) == {str(today(used)): [*used_up, "(revoked)"]}
    assert rows("--to", str(today(used) - timedelta(days=1))) == {}
