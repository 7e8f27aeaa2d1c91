"""Request ids and problems of every response; health, metrics, labels, models and the OpenAPI document."""

import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.errors import NotFound
from app.settings import Settings
from tests.app.conftest import MODEL, Service, eventually, problem, serve, wav
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("request_id", ["abc", "0af7651916cd43dd8448eb211c80319c", "a/b:c-d_e.f+g=h@i", "x" * 128])
def test_a_valid_request_id_is_echoed(folder_service: Service, request_id: str) -> None:
    headers = {"X-Request-Id": request_id}
    assert folder_service.client.get("/livez", headers=headers).headers["x-request-id"] == request_id
    answer = folder_service.client.get("/v1/audio/x", headers=headers)
    assert problem(answer, 404, "not_found")["request_id"] == request_id


@pytest.mark.parametrize("request_id", [None, "", "a b", "<script>", "x" * 129, "é".encode()])
def test_an_invalid_request_id_is_replaced(folder_service: Service, request_id: str | bytes | None) -> None:
    value = request_id.encode() if isinstance(request_id, str) else request_id
    headers = {} if value is None else {b"X-Request-Id": value}
    generated = folder_service.client.get("/livez", headers=headers).headers["x-request-id"]
    assert generated.startswith("req_") and len(generated) == 30


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v2/audio", "/v1/separations/sep_1/events", "/%2e%2e/etc/passwd"])
def test_unknown_paths_are_problems(folder_service: Service, path: str) -> None:
    body = problem(folder_service.client.get(path), 404, "not_found")
    assert body["title"] == NotFound.title, "one title a code, whoever refuses"


@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/audio"), ("GET", "/v1/separations/"), ("PATCH", "/livez")])
def test_other_methods_are_problems(folder_service: Service, method: str, path: str) -> None:
    answer = folder_service.client.request(method, path)
    if answer.status_code == 405:
        assert answer.headers["allow"]
        problem(answer, 405, "method_not_allowed")
    else:
        problem(answer, 404, "not_found")


def test_a_refused_method_names_the_allowed_ones(folder_service: Service) -> None:
    answer = folder_service.client.delete("/v1/audio")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    answer = folder_service.client.put("/v1/separations")
    assert answer.headers["allow"] == "GET, POST", "the methods of every route at the path"
    assert problem(answer, 405, "method_not_allowed")["detail"] == "This path takes GET, POST."


@pytest.mark.parametrize("wrong", ["street.wav", "sep_01K00000000000000000000000", ""])
def test_what_is_no_id_is_told_where_ids_come_from(folder_service: Service, wrong: str) -> None:
    request = {"mixture": {"audio_id": wrong}, "targets": [{"query_id": wrong}]}
    answer = folder_service.client.post("/v1/separations", json=request)
    told = {error["pointer"]: error["detail"] for error in problem(answer, 422, "request_invalid")["errors"]}
    assert "the id of an upload: aud_" in told["/mixture/audio_id"] and "POST /v1/audio" in told["/mixture/audio_id"]
    assert "the id of a saved query: qry_" in told["/targets/0/query_id"]


def test_wrong_parameters_are_named(folder_service: Service) -> None:
    body = problem(folder_service.client.get("/v1/labels", params={"limit": "many"}), 422, "request_invalid")
    assert [error["parameter"] for error in body["errors"]] == ["limit"]


@pytest.mark.parametrize(
    ("path", "here"),
    [
        ("/v1/separations", "status, limit, cursor"),
        ("/v1/labels", "q, limit, askable, model"),
        ("/v1/usage", "from, to"),
    ],
)
def test_unknown_parameters_are_refused(folder_service: Service, path: str, here: str) -> None:
    body = problem(folder_service.client.get(path, params={"limt": 5}), 422, "request_invalid")
    assert body["errors"] == [{"parameter": "limt", "detail": f"Unknown; those here are {here}."}]


def test_malformed_http_gets_no_traceback(folder_service: Service) -> None:
    with socket.create_connection(folder_service.address, timeout=60) as connection:
        connection.sendall(b"POST /v1/audio HTTP/1.1\r\nContent-Length: x\r\n\r\n")
        assert b"Traceback" not in connection.recv(65536)


def test_an_unexpected_exception_is_logged_and_not_shown(
    folder_service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the secret at /srv/secret")

    monkeypatch.setattr(type(folder_service.deps.model_registry), "models", fail)
    with caplog.at_level(logging.ERROR):
        body = problem(folder_service.client.get("/v1/models"), 500, "internal")
    assert "secret" not in json.dumps(body)
    assert body["request_id"] in caplog.text and "the secret at" in caplog.text


def test_health(service: Service) -> None:
    assert service.client.get("/livez").json() == {"status": "alive"}
    readiness = service.client.get("/readyz").json()
    assert readiness == {"status": "ready", "queue": "ok", "store": "ok", "workers": {"base": 1}}
    for path in ("/livez", "/readyz"):
        head = service.client.head(path)
        assert (head.status_code, head.content) == (200, b""), "monitors often send HEAD"
    service.deps.model_registry.leave("base@1", "worker-1")
    answer = service.client.get("/readyz")
    assert (answer.status_code, answer.json()["workers"]) == (200, {"base": 0})


@pytest.fixture
def service_without_queue(tmp_path: Path) -> Iterator[Service]:
    """A front end whose queue server does not exist."""
    yield from serve(Settings(home=tmp_path, redis_url="redis://127.0.0.1:9", redis_timeout=0.5, auth="off"), tmp_path)


def test_without_the_queue_requests_fail_and_leave_nothing(service_without_queue: Service) -> None:
    client = service_without_queue.client
    assert client.get("/livez").status_code == 200
    for answer in (
        client.get("/readyz"),
        client.get("/v1/models"),
        client.get("/v1/audio/aud_01HZZZZZZZZZZZZZZZZZZZZZZZ"),
        client.post("/v1/audio", files={"file": ("a.wav", wav())}),
        client.post("/v1/separations", files={"mixture": ("a.wav", wav())}, data={"label": "Dog"}),
    ):
        problem(answer, 503, "queue_unavailable")
    assert service_without_queue.stored_keys() == []
    assert "earmark_queue_up 0.0" in client.get("/metrics").text


def test_without_the_store_requests_fail(folder_service: Service, tmp_path: Path) -> None:
    settings = folder_service.deps.settings.model_copy(
        update={"store": "s3://earmark", "store_endpoint": "http://127.0.0.1:9", "store_timeout": 0.5}
    )
    for service in serve(settings, tmp_path):
        eventually(lambda service=service: service.client.get("/readyz").status_code == 503)
        problem(service.client.get("/readyz"), 503, "store_unavailable")
        answer = service.client.post("/v1/audio", files={"file": ("a.wav", wav())})
        problem(answer, 503, "store_unavailable")


def test_metrics(folder_service: Service) -> None:
    folder_service.separate()
    folder_service.client.get("/v1/audio/x")
    folder_service.client.get("/v1/audio/y")
    text = folder_service.client.get("/metrics").text
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    assert names and all(name.startswith("earmark_") for name in names)
    assert 'earmark_jobs_waiting{model="base",version="1"} 1.0' in text
    assert 'earmark_workers{model="base",version="1"} 1.0' in text
    assert 'route="/v1/audio/{audio_id}",status="404"' in text and 'audio/x"' not in text


def test_models_and_their_workers(folder_service: Service) -> None:
    registry = folder_service.deps.model_registry
    registry.heartbeat("base@1", "worker-2")
    registry.announce({**MODEL, "name": "paper", "version": "3"}, "worker-3")
    registry.leave("paper@3", "worker-3")
    shipped = json.loads((REPOSITORY / "app" / "model_registry" / "base.json").read_text())["version"]
    models = folder_service.client.get("/v1/models").json()["data"]
    assert [(model["name"], model["version"], model["default"], model["workers"]) for model in models] == [
        ("base", "1", True, 2),
        ("base", shipped, False, 0),
        ("paper", "3", False, 0),
    ]
    # The shipped model's figures are those of its classes: more can be asked for than are detected.
    labels = folder_service.client.get("/v1/labels", params={"model": f"base@{shipped}", "limit": 1000}).json()["data"]
    assert models[1]["askable_labels"] == sum(label["askable"] for label in labels) > models[1]["labels"]
    fields = folder_service.client.get("/openapi.json").json()["components"]["schemas"]["ModelAnswer"]["properties"]
    assert "detections find" in fields["labels"]["description"]
    assert "/v1/labels?askable=true" in fields["askable_labels"]["description"]
    assert set(models[0]) == {
        *("name", "version", "default", "embedding_size", "labels", "askable_labels", "sample_rate", "workers")
    }


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("dog", "Dog"),
        ("DOG", "Dog"),
        ("/m/03kmc9", "Siren"),
        ("sirn", "Siren"),
        ("male_speech", "Male speech, man speaking"),
        ("man", "Male speech, man speaking"),
        ("bark", "Bark"),
        ("animal", "Dog"),
        ("alarm", "Siren"),
    ],
)
def test_labels_are_found_by_text(folder_service: Service, text: str, first: str) -> None:
    labels = folder_service.client.get("/v1/labels", params={"q": text}).json()["data"]
    assert labels[0]["label"] == first
    assert [label["score"] for label in labels] == sorted((label["score"] for label in labels), reverse=True)
    assert set(labels[0]) == {"label", "mid", "slug", "path", "askable", "reason", "source", "score"}


def test_labels_tell_why_a_text_cannot_be_asked_and_what_can(folder_service: Service) -> None:
    """As a target with this text is refused, or accepted."""
    audio_id, near = folder_service.recording()["id"], {"dog": [], "bark": ["Dog"], "dog and siren": [], "no dog": []}
    for text, expected in near.items():
        found = folder_service.client.get("/v1/labels", params={"q": text}).json()
        body = {"mixture": {"audio_id": audio_id}, "targets": [{"text": text}]}
        answer = folder_service.client.post("/v1/separations", json=body)
        assert found["refusal"] == (None if answer.status_code == 202 else answer.json()["detail"])
        assert (found["refusal"] is None) == (text == "dog") and found["near"] == expected
        assert all((label["reason"] is None) == label["askable"] for label in found["data"])


@pytest.mark.parametrize(
    ("model", "status"), [("base", 200), ("base@1", 200), ("base@2", 503), ("", 422), ("A b", 422)]
)
def test_labels_accept_a_model_as_jobs_do(folder_service: Service, model: str, status: int) -> None:
    answer = folder_service.client.get("/v1/labels", params={"q": "dog", "model": model})
    assert answer.status_code == status, answer.text


def test_labels_without_a_query_are_all_labels(folder_service: Service) -> None:
    client = folder_service.client
    labels = client.get("/v1/labels").json()["data"]
    assert [label["label"] for label in labels] == ["Bark", "Dog", "Male speech, man speaking", "Siren"]
    assert len(client.get("/v1/labels", params={"limit": 2}).json()["data"]) == 2
    assert len(client.get("/v1/labels", params={"askable": "true"}).json()["data"]) == 3
    # The third is as a worker of the previous release announces it.
    assert [label["source"] for label in labels] == [None, "clips", None, "predicted"]
    unknown = client.get("/v1/labels", params={"q": "zzzzqqq"}).json()
    assert unknown["data"] == unknown["near"] == [] and "'zzzzqqq'" in unknown["refusal"]


def test_labels_of_an_unknown_model_are_unavailable(folder_service: Service) -> None:
    problem(folder_service.client.get("/v1/labels", params={"model": "paper"}), 503, "model_unavailable")


def test_the_openapi_document_describes_requests_and_responses(folder_service: Service) -> None:
    document = folder_service.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert "HTTPValidationError" not in schemas
    create = document["paths"]["/v1/separations"]["post"]
    assert set(create["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    references = set()

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                references.add(node["$ref"].rpartition("/")[2])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    assert references <= set(schemas)
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation.get("summary") and operation.get("description")
            for status, answer in operation["responses"].items():
                assert int(status) < 400 or list(answer["content"]) == ["application/problem+json"]


def test_docs(folder_service: Service) -> None:
    page = folder_service.client.get("/docs").text
    assert "//" not in page.replace("window.location.origin + '/docs", "").replace("<!-- `SwaggerUIBundle`", "")
    for path in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert path.startswith("/docs/") and len(folder_service.client.get(path).content) > 1000


def test_settings_pass_to_other_programs_through_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings.model_validate({"home": tmp_path, "store_secret_key": "s", "targets": 3, "job_timeout": 7.5})
    for name, value in settings.as_environment().items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings
    assert "store_secret_key=SecretStr('**********')" in repr(settings)


@pytest.mark.parametrize(
    "wrong", [{"upload_bytes": 0}, {"store_endpoint": "nowhere"}, {"model": "../x"}, {"port": 99999}, {"channels": "x"}]
)
def test_invalid_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings.model_validate(wrong)


def test_secrets_are_not_in_the_representation_of_settings() -> None:
    secrets = {"redis_url": "redis://:hush@queue:6379", "store_secret_key": "hush", "url_secret": "hush"}
    assert "hush" not in repr(Settings.model_validate(secrets))


def test_connections_can_be_closed_by_the_client(folder_service: Service) -> None:
    with httpx.Client(base_url=folder_service.client.base_url) as client:
        assert client.get("/livez", headers={"Connection": "close"}).status_code == 200
