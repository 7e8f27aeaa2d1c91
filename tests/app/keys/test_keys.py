"""Keys at the door: who gets in, before a body is read, and what of another key's there is to see."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from starlette.routing import Route
from typer.testing import CliRunner

from app.__main__ import cli
from app.keys import middleware
from app.keys.exposure import ExposedWithoutKeys, check_exposure
from app.keys.repository import KeyRepository, digest, key_id
from app.main import create_app
from app.records.ids import new_id
from app.settings import Settings
from tests.app.conftest import LIMITS, Service, problem, serve, wav

UNKNOWN = f"emk_{new_id('key').removeprefix('key_')}_{'x' * 43}"


def test_all_but_a_few_named_routes_need_a_key(keyed_service: Service, tmp_path: Path) -> None:
    app = create_app(Settings(home=tmp_path))
    routes = {route.path: route.methods or set() for route in app.routes if isinstance(route, Route)}
    routes |= {path: {method.upper() for method in methods} for path, methods in app.openapi()["paths"].items()}
    assert routes.keys() >= {"/v1/audio", "/v1/limits", "/livez", "/docs", "/"}
    for path, methods in routes.items():
        for method in methods:
            answer = keyed_service.client.request(method, re.sub(r"{\w+}", "x", path))
            if path in middleware.PUBLIC_PATHS or path.startswith(middleware.PUBLIC_FOLDERS):
                assert answer.status_code in ((404,) if path == "/metrics" else (200, 307)), path
            else:
                assert path.startswith("/v1/") and answer.status_code == 401, path
    problem(keyed_service.client.get("/v1/nothing"), 401, "unauthorized")
    problem(keyed_service.client.get("/livez/../v1/models"), 401, "unauthorized")


@pytest.mark.parametrize(
    "sent",
    [
        None,
        "",
        "Bearer",
        "Bearer x",
        "Basic dXNlcjpwYXNz",
        f"Bearer {UNKNOWN}",
        f"Bearer {UNKNOWN} {UNKNOWN}",
        f"Bearer\t{UNKNOWN}",
        "Bearer " + "x" * 8000,
        "Bearer emk_\xff",
    ],
)
def test_what_opens_nothing(keyed_service: Service, sent: str | None) -> None:
    headers = [] if sent is None else [(b"Authorization", sent.encode("latin-1"))]
    answer = keyed_service.client.get("/v1/models", headers=headers)
    told = problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith('Bearer realm="earmark"')
    assert UNKNOWN not in json.dumps(told) and "ratelimit" not in answer.headers


def test_a_key_opens_until_it_is_revoked(keyed_service: Service) -> None:
    keys = KeyRepository(keyed_service.deps.redis)
    key, written = keys.create("first", 0, 0, 1)
    other, _ = keys.create("second", 0, 0, 1)

    def status(value: str) -> int:
        return keyed_service.client.get("/v1/models", headers={"Authorization": value}).status_code

    assert status(f"Bearer {written}") == status(f"bearer {written}") == 200
    assert status(f"Bearer {written[:-1]}{'A' if written[-1] != 'A' else 'B'}") == 401  # a known id, another secret
    swapped = f"emk_{other.id.removeprefix('key_')}{written[30:]}"
    assert key_id(swapped) == other.id and status(f"Bearer {swapped}") == 401
    keys.revoke(key.id)
    assert status(f"Bearer {written}") == 401


def test_two_keys_at_once_are_none(keyed_service: Service) -> None:
    _, written = KeyRepository(keyed_service.deps.redis).create("key", 0, 0, 1)
    headers = [("Authorization", f"Bearer {written}"), ("Authorization", f"Bearer {written}")]
    problem(keyed_service.client.get("/v1/models", headers=headers), 401, "unauthorized")


@pytest.mark.parametrize("path", ["/v1/audio", "/v1/separations"])
@pytest.mark.parametrize("body", [b"", b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nRIFF'])
def test_a_wrong_key_is_refused_before_the_body_comes(keyed_service: Service, path: str, body: bytes) -> None:
    """A terabyte is announced, and none or little of it is ever sent: an answer cannot have waited for it."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {UNKNOWN}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000000000\r\n\r\n"
    )
    with socket.create_connection(keyed_service.address, timeout=5) as client:
        client.sendall(head.encode() + body)
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 401 ") and b"www-authenticate: bearer" in answer.lower()
    assert keyed_service.stored_keys() == [] and keyed_service.orphans() == []


def test_anothers_things_are_not_there(keyed_service: Service) -> None:
    mine, yours = keyed_service.with_key(), keyed_service.with_key()
    audio, job = mine.upload(), mine.separate()
    mine.finish(job["id"])
    done = mine.client.get(f"/v1/separations/{job['id']}").json()
    for kind, made in (("audio", audio["id"]), ("separations", job["id"])):
        unknown = new_id(made[:3])
        for method, rest in [
            *(("GET", ""), ("DELETE", ""), ("GET", "/content"), ("GET", "/events"), ("POST", "/cancel")),
            *(("GET", "/archive"), ("GET", "/stems/dog"), ("HEAD", "/stems/dog"), ("GET", "/peaks")),
        ]:
            told = []
            for asked in (made, unknown):
                answer = yours.client.request(method, f"/v1/{kind}/{asked}{rest}")
                assert answer.status_code in (404, 405), (method, rest)
                told.append(answer.text.replace(asked, "ID").replace(answer.headers["x-request-id"], "R"))
            assert told[0] == told[1]
    request = {"mixture": {"audio_id": audio["id"]}, "targets": [{"label": "Dog"}]}
    problem(yours.client.post("/v1/separations", json=request), 404, "not_found")
    assert yours.client.get("/v1/separations").json()["data"] == []
    assert [one["id"] for one in mine.client.get("/v1/separations").json()["data"]] == [job["id"]]
    assert mine.client.get(done["stems"][0]["url"]).content == b"0123456789"


def test_no_call_tells_anothers_ids_from_unknown_ones(keyed_service: Service) -> None:
    """Every path of the contract that holds an id, and every place of a body that does."""
    mine, yours = keyed_service.with_key(), keyed_service.with_key()
    made = {"audio": mine.recording()["id"], "queries": mine.saved_query(), "separations": mine.separate()["id"]}
    made["detections"] = mine.client.post("/v1/detections", json={"audio_id": made["audio"]}).json()["id"]
    mine.finish(made["separations"])
    own = {"audio_id": yours.recording()["id"]}

    def told(answer: httpx.Response, asked: str) -> tuple[int, str]:
        return answer.status_code, answer.text.replace(asked, "ID").replace(answer.headers["x-request-id"], "R")

    calls = 0
    for path, methods in keyed_service.client.get("/openapi.json").json()["paths"].items():
        kind, _, rest = path.removeprefix("/v1/").partition("/{")
        for method in methods if rest else ():
            answers = []
            for asked in (made[kind], new_id(made[kind][:3])):
                filled = f"/v1/{kind}/{asked}{rest.partition('}')[2].replace('{name}', 'dog')}"
                answers.append(told(yours.client.request(method.upper(), filled), asked))
            assert answers[0] == answers[1] and answers[0][0] == 404, path
            calls += 1
    assert calls >= 20
    target, theirs = {"name": "x", "label": "Dog"}, {"audio_id": "AUDIO"}
    for path, body in (
        ("separations", {"mixture": theirs, "targets": [target]}),
        ("separations", {"mixture": own, "targets": [{"name": "x", "examples": [theirs]}]}),
        ("separations", {"mixture": own, "targets": [target | {"not_examples": [theirs]}]}),
        ("separations", {"mixture": own, "targets": [{"name": "x", "query_id": "QUERY"}]}),
        ("detections", theirs),
        ("queries", {"name": "x", "examples": [own, theirs]}),
    ):
        answers = []
        for audio, query in ((made["audio"], made["queries"]), (new_id("aud"), new_id("qry"))):
            content = json.dumps(body).replace("AUDIO", audio).replace("QUERY", query)
            answer = yours.client.post(f"/v1/{path}", content=content, headers={"Content-Type": "application/json"})
            answers.append(told(answer, audio))
        assert answers[0] == answers[1] and answers[0][0] == 404, body
    for kind in ("separations", "detections", "queries"):
        assert yours.client.get(f"/v1/{kind}").json()["data"] == []
        for cursor in (made[kind], new_id(made[kind][:3])):
            assert yours.client.get(f"/v1/{kind}?cursor={cursor}").json()["data"] == []
    assert mine.client.get(f"/v1/separations/{made['separations']}").json()["status"] == "succeeded"


def test_a_job_carries_its_keys_id_and_priority(keyed_service: Service) -> None:
    mine = keyed_service.with_key(priority=7)
    job = mine.deps.jobs.get(mine.separate()["id"])
    assert (job.owner, job.weight) == (mine.deps.caller.key_id, 7.0)


@pytest.fixture
def nowhere(tmp_path: Path) -> Iterator[Service]:
    """A front end whose queue's server is not there."""
    settings = Settings(home=tmp_path, redis_url="redis://127.0.0.1:9", redis_timeout=0.5)
    yield from serve(settings, tmp_path)


def test_without_the_queues_server_nobody_is_let_in(nowhere: Service) -> None:
    answer = nowhere.client.get("/v1/models", headers={"Authorization": f"Bearer {UNKNOWN}"})
    problem(answer, 503, "queue_unavailable")
    problem(nowhere.client.get("/v1/models"), 401, "unauthorized")
    assert nowhere.client.get("/livez").status_code == 200


# Commands


@pytest.fixture
def run(valkey: Any, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`python -m app keys WORDS`: its exit code and what it printed."""
    monkeypatch.setenv("EARMARK_REDIS_URL", valkey.connection_url)

    def command(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["keys", *words])
        return result.exit_code, result.output

    return command


def test_keys_are_made_listed_and_revoked(run: Any, redis: Redis) -> None:
    code, told = run("create", "web", "--rate", "30", "--audio-seconds", "0", "--priority", "5")
    assert code == 0
    made = dict(re.findall(r"^(id|key|webhook secret) +(\S+)$", told, re.MULTILINE))
    assert key_id(made["key"]) == made["id"]
    kept = KeyRepository(redis).get(made["id"])
    assert (kept.name, kept.rate, kept.audio_seconds, kept.priority) == ("web", 30, 0, 5)
    assert kept.digest == digest(made["key"]) and kept.webhook_secret == made["webhook secret"]
    for found in redis.scan_iter():  # the key itself is nowhere
        assert made["key"].encode() not in (redis.dump(found) or b"") and made["key"].encode() not in found
    assert made["key"] not in repr(kept) and made["webhook secret"] not in repr(kept)

    code, told = run("list")
    assert code == 0 and made["id"] in told and re.search(r"30 +none +5 +web$", told, re.MULTILINE)
    assert made["key"] not in told and made["webhook secret"] not in told
    assert run("revoke", made["id"])[0] == 0
    assert made["id"] not in run("list")[1]
    assert run("revoke", made["id"])[0] == 1


@pytest.mark.parametrize(
    "words",
    [("",), ("a\nb",), ("x" * 65,), ("a", "--rate", "-1"), ("a", "--priority", "0"), ("a", "--priority", "101")],
)
def test_keys_that_cannot_be(run: Any, redis: Redis, words: tuple[str, ...]) -> None:
    assert run("create", *words)[0] == 2
    assert KeyRepository(redis).list() == []


def test_a_queue_that_is_away_is_said_in_a_sentence(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EARMARK_HOME", str(tmp_path / "never"))
    code, told = run("list", "--embedded")
    assert code == 1 and "no embedded service has run" in told
    monkeypatch.setenv("EARMARK_REDIS_URL", "redis://:hush@127.0.0.1:9")
    monkeypatch.setenv("EARMARK_REDIS_TIMEOUT", "0.2")
    code, told = run("list")
    assert code == 1 and "does not answer" in told and "hush" not in told


@pytest.mark.parametrize(
    ("host", "settings", "refused"),
    [
        ("0.0.0.0", {"auth": "off"}, True),
        ("::", {"auth": "off"}, True),
        ("10.0.0.1", {"auth": "off"}, True),
        ("example.org", {"auth": "off"}, True),
        ("localhost.example.org", {"auth": "off"}, True),
        ("0.0.0.0", {"auth": "on"}, False),
        ("0.0.0.0", {}, False),
        ("0.0.0.0", {"auth": "off", "open_to_all": True}, False),
        ("127.0.0.1", {"auth": "off"}, False),
        ("127.8.0.1", {"auth": "off"}, False),
        ("::1", {"auth": "off"}, False),
        ("localhost", {"auth": "off"}, False),
    ],
)
def test_nobody_serves_strangers_by_accident(host: str, settings: dict[str, Any], refused: bool) -> None:
    if not refused:
        check_exposure(Settings(host=host, **settings))
        return
    with pytest.raises(ExposedWithoutKeys, match="EARMARK_OPEN_TO_ALL"):
        check_exposure(Settings(host=host, **settings))
    result = CliRunner().invoke(cli, ["--host", host], env={"EARMARK_AUTH": "off"})
    assert result.exit_code == 2 and "EARMARK_AUTH" in result.output
    result = CliRunner().invoke(cli, ["--embedded", "--host", host])
    assert result.exit_code == 2 and "EARMARK_AUTH" in result.output


# Pages of other origins


def test_other_origins_pages_may_ask_only_if_the_settings_say_so(folder_service: Service) -> None:
    asking = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    assert folder_service.client.options("/v1/audio", headers=asking).status_code == 405
    answer = folder_service.client.get("/v1/models", headers={"Origin": "https://example.org"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.fixture
def shared_service(valkey: Any, redis: Redis, tmp_path: Path) -> Iterator[Service]:
    """A front end with keys that lets pages of two origins ask."""
    settings: dict[str, Any] = LIMITS | {"auth": "on", "cors_origins": "https://example.org, http://localhost:3000"}
    yield from serve(Settings(home=tmp_path, redis_url=valkey.connection_url, **settings), tmp_path)


def test_pages_of_allowed_origins_ask_and_read_what_they_need(shared_service: Service) -> None:
    asking = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, idempotency-key, prefer, x-request-id",
    }
    for origin, allowed in (
        ("https://example.org", True),
        ("http://localhost:3000", True),
        ("https://example.org.evil.test", False),
        ("http://example.org", False),
        ("null", False),
    ):
        preflight = shared_service.client.options("/v1/separations", headers=asking | {"Origin": origin})
        assert preflight.headers.get("access-control-allow-origin") == (origin if allowed else None)
        assert (preflight.status_code == 200) == allowed
        for service, status in ((shared_service, 401), (shared_service.with_key(rate=10), 200)):
            answer = service.client.get("/v1/labels", headers={"Origin": origin})
            assert answer.status_code in (status, 503)
            assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
            if allowed:
                read = answer.headers["access-control-expose-headers"].lower()
                for name in ("location", "retry-after", "etag", "ratelimit", "ratelimit-policy", "x-request-id"):
                    assert name in re.split(r",\s*", read)
            assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("wrong", ["example.org", "https://example.org/", "https://a b", "https://*.example.org"])
def test_what_is_no_origin(wrong: str) -> None:
    with pytest.raises(ValueError, match="no origin"):
        Settings(cors_origins=wrong)
    assert Settings(cors_origins="*").cors_origins == "*"


def test_an_upload_with_a_key_belongs_to_it(keyed_service: Service) -> None:
    mine = keyed_service.with_key()
    audio = mine.upload(wav(0.2))
    assert mine.deps.audio.get(audio["id"]).owner == mine.deps.caller.key_id
    assert mine.client.get(f"/v1/audio/{audio['id']}").json() == audio
