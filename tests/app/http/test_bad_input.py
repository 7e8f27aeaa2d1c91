"""Fuzzing: no input causes a status of 500 or more, or leaves anything behind."""

import json
import os
import socket
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.app.conftest import Service

pytestmark = pytest.mark.soak

fuzz = hypothesis_settings(
    max_examples=500 if os.environ.get("EARMARK_SOAK") else 25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# Every text that JSON can hold, with lone surrogates, which are not Unicode.
TEXT = st.text(st.characters(), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
FIELDS = ["mixture", "targets", "output", "metadata", "model", "auto", "webhook"]
TARGET_FIELDS = ["name", "examples", "label", "spans", "query_id", "embedding", "not_label"]


def assert_no_failure(service: Service, answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code
    assert service.deps.jobs.unfinished_count() == 0


@fuzz
@given(
    body=st.dictionaries(st.sampled_from(FIELDS) | TEXT, JSON, max_size=4),
    target=st.dictionaries(st.sampled_from(TARGET_FIELDS), JSON, max_size=3),
    nested=st.booleans(),
)
def test_any_json(folder_service: Service, body: dict[str, Any], target: dict[str, Any], nested: bool) -> None:
    if nested:
        body = {"mixture": {"audio_id": "aud_01HZZZZZZZZZZZZZZZZZZZZZZZ"}} | body | {"targets": [target]}
    content = json.dumps(body).encode()
    assert_no_failure(
        folder_service,
        folder_service.client.post("/v1/separations", content=content, headers={"Content-Type": "application/json"}),
    )


@fuzz
@given(content=st.binary(max_size=300), route=st.sampled_from(["/v1/audio", "/v1/separations"]))
def test_any_form(folder_service: Service, content: bytes, route: str) -> None:
    for body in (
        content,
        b"--XX\r\n" + content,
        b'--XX\r\nContent-Disposition: form-data; name="label"\r\n\r\n' + content,
    ):
        for end in (b"", b"\r\n--XX--\r\n"):
            answer = folder_service.client.post(
                route, content=body + end, headers={"Content-Type": "multipart/form-data; boundary=XX"}
            )
            assert_no_failure(folder_service, answer)
    assert folder_service.stored_keys() == [] and folder_service.orphans() == []


@fuzz
@given(kind=st.binary(max_size=60).filter(lambda value: not set(value) & {0, 10, 11, 12, 13}))
def test_any_content_type(folder_service: Service, kind: bytes) -> None:
    for prefix in (b"", b"multipart/form-data; boundary=", b"application/json;"):
        for route in ("/v1/audio", "/v1/separations"):
            headers = {b"Content-Type": (prefix + kind).strip()}
            answer = folder_service.client.post(route, content=b"x", headers=headers)
            if answer.status_code != 400 or answer.headers["content-type"] == "application/problem+json":
                assert_no_failure(folder_service, answer)  # otherwise uvicorn refused the header


@fuzz
@given(path=st.binary(min_size=1, max_size=20), text=TEXT)
def test_any_path_and_parameter(folder_service: Service, path: bytes, text: str) -> None:
    escaped = "".join(f"%{byte:02x}" for byte in path)
    for route in ("/v1/audio/", "/v1/separations/", "/v1/separations/sep_01HZZZZZZZZZZZZZZZZZZZZZZZ/stems/", "/"):
        assert_no_failure(folder_service, folder_service.client.get(route + escaped))
    query = "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "surrogatepass"))
    for name in ("q", "model", "limit", "askable"):
        assert_no_failure(folder_service, folder_service.client.get(f"/v1/separations?cursor={query}&{name}={query}"))
        answer = folder_service.client.get(f"/v1/labels?{name}={query}")
        if answer.status_code != 503:  # a model that no worker has announced
            assert_no_failure(folder_service, answer)


def test_any_header(folder_service: Service) -> None:
    urls = [folder_service.upload()["url"], f"/v1/separations/{folder_service.separate()['id']}"]
    folder_service.deps.jobs.cancel(urls[1].rpartition("/")[2])

    @fuzz
    @given(value=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
    @example("9" * 30 + "-")
    @example("-" + "9" * 30)
    def send(value: str) -> None:
        for name in ("Range", "If-Range", "If-None-Match", "X-Request-Id", "Accept", "Prefer"):
            header = f"bytes={value}" if name == "Range" else f"wait={value}" if name == "Prefer" else value
            for url in urls:
                assert_no_failure(folder_service, folder_service.client.get(url, headers={name: header.strip()}))

    send()


def test_text_with_lone_surrogates_is_refused(folder_service: Service) -> None:
    for body in (
        r'{"\ud800": 1}',
        r'{"mixture": {"audio_id": "\ud800"}, "targets": [{"name": "x", "label": "\udfff"}]}',
        r'{"metadata": {"a\ud800": "b"}, "targets": [{"\ud800": 1}]}',
    ):
        answer = folder_service.client.post(
            "/v1/separations", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 422
        assert_no_failure(folder_service, answer)


def exchange(service: Service, request: bytes) -> bytes:
    """Send bytes; return all that the server sends until it closes the connection."""
    with socket.create_connection(service.address, timeout=60) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET /livez\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/audio HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n",
    ],
    ids=["TLS", "path", "chunk"],
)
def test_what_is_not_http_is_refused_with_a_problem(folder_service: Service, request_bytes: bytes) -> None:
    *_, answer = exchange(folder_service, request_bytes).rpartition(b"HTTP/1.1 400 ")
    head, _, body = answer.decode().partition("\r\n\r\n")
    problem = json.loads(body)
    assert (problem["status"], problem["code"]) == (400, "request_invalid")
    assert "\r\ncontent-type: application/problem+json" in head and f"x-request-id: {problem['request_id']}" in head


def test_what_is_not_http_is_not_answered_before_an_earlier_request(folder_service: Service) -> None:
    events = folder_service.separate()["events_url"]
    answer = exchange(folder_service, f"GET {events} HTTP/1.1\r\nHost: x\r\n\r\nG=T / HTTP/1.1\r\n\r\n".encode())
    assert b"HTTP/1.1 400" not in answer
