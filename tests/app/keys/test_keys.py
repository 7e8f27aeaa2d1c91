"""Authentication by keys, ownership of records, the commands for keys, exposure without keys, and CORS."""

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
from app.keys.repository import KeyRepository, digest, parse_key_id
from app.main import create_app
from app.records.ids import new_id
from app.settings import Settings
from tests.app.conftest import LIMITS, Service, problem, serve, wav

UNKNOWN = f"emk_{new_id('key').removeprefix('key_')}_{'x' * 43}"


def test_all_routes_but_the_public_ones_need_a_key(keyed_service: Service, tmp_path: Path) -> None:
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
    "header",
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
def test_invalid_credentials_are_refused(keyed_service: Service, header: str | None) -> None:
    headers = [] if header is None else [(b"Authorization", header.encode("latin-1"))]
    answer = keyed_service.client.get("/v1/models", headers=headers)
    body = problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith('Bearer realm="earmark"')
    assert UNKNOWN not in json.dumps(body) and "ratelimit" not in answer.headers


def test_a_key_that_was_cut_is_told_from_a_header_of_another_form(keyed_service: Service) -> None:
    def refuse(header: str) -> str:
        answer = keyed_service.client.get("/v1/models", headers={"Authorization": header})
        return problem(answer, 401, "unauthorized")["detail"]

    assert "emk_" in refuse(f"Bearer {UNKNOWN[:-5]}")
    assert refuse(UNKNOWN) == refuse(f"Basic {UNKNOWN}") == "Send one header `Authorization: Bearer KEY`."


def test_a_key_is_valid_until_it_is_revoked(keyed_service: Service) -> None:
    keys = KeyRepository(keyed_service.deps.redis)
    key, api_key = keys.create("first", 0, 0, 1)
    other, _ = keys.create("second", 0, 0, 1)

    def status(header: str) -> int:
        return keyed_service.client.get("/v1/models", headers={"Authorization": header}).status_code

    assert status(f"Bearer {api_key}") == status(f"bearer {api_key}") == 200
    assert status(f"Bearer {api_key[:-1]}{'A' if api_key[-1] != 'A' else 'B'}") == 401  # a known id, another secret
    swapped = f"emk_{other.id.removeprefix('key_')}{api_key[30:]}"
    assert parse_key_id(swapped) == other.id and status(f"Bearer {swapped}") == 401
    keys.revoke(key.id)
    assert status(f"Bearer {api_key}") == 401


def test_two_keys_in_one_request_are_refused(keyed_service: Service) -> None:
    _, api_key = KeyRepository(keyed_service.deps.redis).create("key", 0, 0, 1)
    headers = [("Authorization", f"Bearer {api_key}"), ("Authorization", f"Bearer {api_key}")]
    problem(keyed_service.client.get("/v1/models", headers=headers), 401, "unauthorized")


@pytest.mark.parametrize("path", ["/v1/audio", "/v1/separations"])
@pytest.mark.parametrize("body", [b"", b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nRIFF'])
def test_a_wrong_key_is_refused_before_the_body_is_read(keyed_service: Service, path: str, body: bytes) -> None:
    """A terabyte is announced and little or nothing of it sent, so that the response cannot have waited for it."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {UNKNOWN}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000000000\r\n\r\n"
    )
    with socket.create_connection(keyed_service.address, timeout=60) as client:
        client.sendall(head.encode() + body)
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 401 ") and b"www-authenticate: bearer" in answer.lower()
    assert keyed_service.stored_keys() == [] and keyed_service.orphans() == []


def test_records_of_another_key_are_answered_like_unknown_ones(keyed_service: Service) -> None:
    mine, yours = keyed_service.with_key(), keyed_service.with_key()
    audio, job = mine.upload(), mine.separate()
    mine.finish(job["id"])
    done = mine.client.get(f"/v1/separations/{job['id']}").json()
    for folder, record_id in (("audio", audio["id"]), ("separations", job["id"])):
        unknown = new_id(record_id[:3])
        for method, rest in [
            *(("GET", ""), ("DELETE", ""), ("GET", "/content"), ("GET", "/events"), ("POST", "/cancel")),
            *(("GET", "/archive"), ("GET", "/stems/dog"), ("HEAD", "/stems/dog"), ("GET", "/peaks")),
        ]:
            texts = []
            for requested in (record_id, unknown):
                answer = yours.client.request(method, f"/v1/{folder}/{requested}{rest}")
                assert answer.status_code in (404, 405), (method, rest)
                texts.append(answer.text.replace(requested, "ID").replace(answer.headers["x-request-id"], "R"))
            assert texts[0] == texts[1]
    request = {"mixture": {"audio_id": audio["id"]}, "targets": [{"label": "Dog"}]}
    problem(yours.client.post("/v1/separations", json=request), 404, "not_found")
    assert yours.client.get("/v1/separations").json()["data"] == []
    assert [each["id"] for each in mine.client.get("/v1/separations").json()["data"]] == [job["id"]]
    assert mine.client.get(done["stems"][0]["url"]).content == b"0123456789"


def test_no_operation_reveals_ids_of_another_key(keyed_service: Service) -> None:
    """Covers every path of the OpenAPI document with an id, and every field of a body that holds one."""
    mine, yours = keyed_service.with_key(), keyed_service.with_key()
    ids = {"audio": mine.recording()["id"], "queries": mine.saved_query(), "separations": mine.separate()["id"]}
    ids["detections"] = mine.client.post("/v1/detections", json={"audio_id": ids["audio"]}).json()["id"]
    mine.finish(ids["separations"])
    accessible = {"audio_id": yours.recording()["id"]}

    def comparable(answer: httpx.Response, requested: str) -> tuple[int, str]:
        return answer.status_code, answer.text.replace(requested, "ID").replace(answer.headers["x-request-id"], "R")

    calls = 0
    resumption = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    for path, methods in keyed_service.client.get("/openapi.json").json()["paths"].items():
        folder, _, rest = path.removeprefix("/v1/").partition("/{")
        for method in methods if rest else ():
            answers = []
            for requested in (ids[folder], new_id(ids[folder][:3])):
                url = f"/v1/{folder}/{requested}{rest.partition('}')[2].replace('{name}', 'dog')}"
                headers = resumption if method == "patch" else {}
                answers.append(comparable(yours.client.request(method.upper(), url, headers=headers), requested))
            assert answers[0] == answers[1] and answers[0][0] == 404, path
            calls += 1
    assert calls >= 20
    target, foreign = {"name": "x", "label": "Dog"}, {"audio_id": "AUDIO"}
    for path, body in (
        ("separations", {"mixture": foreign, "targets": [target]}),
        ("separations", {"mixture": accessible, "targets": [{"name": "x", "examples": [foreign]}]}),
        ("separations", {"mixture": accessible, "targets": [target | {"not_examples": [foreign]}]}),
        ("separations", {"mixture": accessible, "targets": [{"name": "x", "query_id": "QUERY"}]}),
        ("detections", foreign),
        ("queries", {"name": "x", "examples": [accessible, foreign]}),
    ):
        answers = []
        for audio, query in ((ids["audio"], ids["queries"]), (new_id("aud"), new_id("qry"))):
            content = json.dumps(body).replace("AUDIO", audio).replace("QUERY", query)
            answer = yours.client.post(f"/v1/{path}", content=content, headers={"Content-Type": "application/json"})
            answers.append(comparable(answer, audio))
        assert answers[0] == answers[1] and answers[0][0] == 404, body
    for folder in ("separations", "detections", "queries"):
        assert yours.client.get(f"/v1/{folder}").json()["data"] == []
        for cursor in (ids[folder], new_id(ids[folder][:3])):
            assert yours.client.get(f"/v1/{folder}?cursor={cursor}").json()["data"] == []
    assert mine.client.get(f"/v1/separations/{ids['separations']}").json()["status"] == "succeeded"


def test_a_job_carries_its_keys_id_and_priority(keyed_service: Service) -> None:
    mine = keyed_service.with_key(priority=7)
    job = mine.deps.jobs.get(mine.separate()["id"])
    assert (job.owner, job.weight) == (mine.deps.caller.key_id, 7.0)


@pytest.fixture
def service_without_queue(tmp_path: Path) -> Iterator[Service]:
    """A front end whose queue server does not exist."""
    settings = Settings(home=tmp_path, redis_url="redis://127.0.0.1:9", redis_timeout=0.5)
    yield from serve(settings, tmp_path)


def test_without_the_queue_server_authentication_fails(service_without_queue: Service) -> None:
    answer = service_without_queue.client.get("/v1/models", headers={"Authorization": f"Bearer {UNKNOWN}"})
    problem(answer, 503, "queue_unavailable")
    problem(service_without_queue.client.get("/v1/models"), 401, "unauthorized")
    assert service_without_queue.client.get("/livez").status_code == 200


# Commands


@pytest.fixture
def run(valkey: Any, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `python -m app keys WORDS`; return the exit code and the output."""
    monkeypatch.setenv("EARMARK_REDIS_URL", valkey.connection_url)

    def command(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["keys", *words])
        return result.exit_code, result.output

    return command


def test_keys_are_created_listed_and_revoked(run: Any, redis: Redis) -> None:
    code, output = run("create", "web", "--rate", "30", "--audio-seconds", "0", "--priority", "5")
    assert code == 0
    printed = dict(re.findall(r"^(id|key|webhook secret) +(\S+)$", output, re.MULTILINE))
    assert parse_key_id(printed["key"]) == printed["id"]
    record = KeyRepository(redis).get(printed["id"])
    assert (record.name, record.rate, record.audio_seconds, record.priority) == ("web", 30, 0, 5)
    assert record.digest == digest(printed["key"]) and record.webhook_secret == printed["webhook secret"]
    for redis_key in redis.scan_iter():  # none holds the key itself
        assert (
            printed["key"].encode() not in (redis.dump(redis_key) or b"") and printed["key"].encode() not in redis_key
        )
    assert printed["key"] not in repr(record) and printed["webhook secret"] not in repr(record)

    code, output = run("list")
    assert code == 0 and printed["id"] in output and re.search(r"30 +none +5 +web$", output, re.MULTILINE)
    assert printed["key"] not in output and printed["webhook secret"] not in output
    assert run("revoke", printed["id"])[0] == 0
    assert printed["id"] not in run("list")[1]
    assert run("revoke", printed["id"])[0] == 1


@pytest.mark.parametrize(
    "words",
    [("",), ("a\nb",), ("x" * 65,), ("a", "--rate", "-1"), ("a", "--priority", "0"), ("a", "--priority", "101")],
)
def test_invalid_options_of_keys_are_refused(run: Any, redis: Redis, words: tuple[str, ...]) -> None:
    assert run("create", *words)[0] == 2
    assert KeyRepository(redis).list() == []


def test_a_queue_that_does_not_answer_is_reported_in_a_sentence(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EARMARK_HOME", str(tmp_path / "never"))
    code, output = run("list", "--embedded")
    assert code == 1 and "no embedded service has run" in output
    for other in (["check", "--embedded"], ["housekeeping", "reconcile", "--dry-run", "--embedded"]):
        result = CliRunner().invoke(cli, other)
        assert result.exit_code == 1 and "no embedded service has run" in result.output
    monkeypatch.setenv("EARMARK_REDIS_URL", "redis://:hush@127.0.0.1:9")
    monkeypatch.setenv("EARMARK_REDIS_TIMEOUT", "0.2")
    code, output = run("list")
    assert code == 1 and "does not answer" in output and "give --embedded" in output and "hush" not in output


def test_an_invalid_setting_is_a_sentence_for_every_command() -> None:
    result = CliRunner().invoke(cli, ["keys", "list"], env={"EARMARK_AUTH": "maybe"})
    assert result.exit_code == 2 and "EARMARK_AUTH" in result.output


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
def test_a_public_address_without_authentication_is_refused(host: str, settings: dict[str, Any], refused: bool) -> None:
    if not refused:
        check_exposure(Settings(host=host, **settings))
        return
    with pytest.raises(ExposedWithoutKeys, match="EARMARK_OPEN_TO_ALL"):
        check_exposure(Settings(host=host, **settings))
    result = CliRunner().invoke(cli, ["--host", host], env={"EARMARK_AUTH": "off"})
    assert result.exit_code == 2 and "EARMARK_AUTH" in result.output
    result = CliRunner().invoke(cli, ["--embedded", "--host", host])
    assert result.exit_code == 2 and "EARMARK_AUTH" in result.output


# CORS


def test_cross_origin_requests_are_refused_by_default(folder_service: Service) -> None:
    preflight_headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    assert folder_service.client.options("/v1/separations", headers=preflight_headers).status_code == 405
    tus = folder_service.client.options("/v1/audio", headers=preflight_headers)
    assert not [name for name in tus.headers if name.startswith("access-control-")]
    answer = folder_service.client.get("/v1/models", headers={"Origin": "https://example.org"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.fixture
def cors_service(valkey: Any, redis: Redis, tmp_path: Path) -> Iterator[Service]:
    """A front end with authentication that allows requests from pages of two origins."""
    settings: dict[str, Any] = LIMITS | {"auth": "on", "cors_origins": "https://example.org, http://localhost:3000"}
    yield from serve(Settings(home=tmp_path, redis_url=valkey.connection_url, **settings), tmp_path)


def test_pages_of_allowed_origins_may_send_and_read_the_headers_they_need(cors_service: Service) -> None:
    preflight_headers = {
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
        preflight = cors_service.client.options("/v1/separations", headers=preflight_headers | {"Origin": origin})
        assert preflight.headers.get("access-control-allow-origin") == (origin if allowed else None)
        assert (preflight.status_code == 200) == allowed
        for service, status in ((cors_service, 401), (cors_service.with_key(rate=10), 200)):
            answer = service.client.get("/v1/labels", headers={"Origin": origin})
            assert answer.status_code in (status, 503)
            assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
            if allowed:
                readable = answer.headers["access-control-expose-headers"].lower()
                for name in ("location", "retry-after", "etag", "ratelimit", "ratelimit-policy", "x-request-id"):
                    assert name in re.split(r",\s*", readable)
                assert "upload-offset" in readable
            assert "access-control-allow-credentials" not in answer.headers


def test_pages_may_continue_their_uploads(cors_service: Service) -> None:
    headers = "authorization,content-type,tus-resumable,upload-length,upload-metadata,upload-offset"
    preflight_headers = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": headers}
    preflight = cors_service.client.options(
        f"/v1/audio/{new_id('aud')}", headers=preflight_headers | {"Origin": "https://example.org"}
    )
    assert preflight.status_code == 200, preflight.text


@pytest.mark.parametrize("wrong", ["example.org", "https://example.org/", "https://a b", "https://*.example.org"])
def test_invalid_origins_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="no origin"):
        Settings(cors_origins=wrong)
    assert Settings(cors_origins="*").cors_origins == "*"


def test_an_upload_belongs_to_its_key(keyed_service: Service) -> None:
    mine = keyed_service.with_key()
    audio = mine.upload(wav(0.2))
    assert mine.deps.audio.get(audio["id"]).owner == mine.deps.caller.key_id
    assert mine.client.get(f"/v1/audio/{audio['id']}").json() == audio
