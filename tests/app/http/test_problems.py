"""Problems: bounded in size, whatever a client sends and they repeat."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from app.errors import EarmarkError, FieldError, LabelUnknown, NotFound, RequestInvalid
from app.http.problems import MAX_TEXT, ProblemResponse, problem
from app.http.validation import validate
from app.media import input_formats
from app.separations.schemas import SeparationCreate
from tests.app.conftest import Service, wav
from tests.app.conftest import problem as problem_in

MOST_ERRORS = 32
MOST_BYTES = 80_000  # 32 errors of two texts of 200 characters that JSON writes with six bytes, and the rest
TEXTS = st.builds(lambda text, times: text * times, st.text(max_size=5), st.sampled_from((1, 50, 100_000)))


def request(path: str = "/v1/separations") -> Request:
    return Request({"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""})


def assert_bounded(response: ProblemResponse) -> None:
    body = bytes(response.body)
    assert len(body) <= MOST_BYTES
    document = json.loads(body)
    texts = [document["detail"], document["instance"], document["title"]]
    texts += [text for error in document.get("errors", []) for text in error.values()]
    assert all(len(text) <= MAX_TEXT for text in texts)
    assert len(document.get("errors", [])) <= MOST_ERRORS


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from((RequestInvalid, LabelUnknown, NotFound, EarmarkError)),
    detail=TEXTS,
    path=TEXTS,
    errors=st.lists(st.builds(FieldError, TEXTS, TEXTS), max_size=40),
)
def test_any_error_is_bounded(kind: type[EarmarkError], detail: str, path: str, errors: list[FieldError]) -> None:
    assert_bounded(problem(request(path), kind(detail, errors)))


# JSON near to what a separation is, with long texts anywhere, as keys too.
JSON = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("mixture", "targets", "output", "metadata", "model", "auto", "webhook", "name", "label", "spans", "audio_id")


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS) | TEXTS, JSON, max_size=4), st.dictionaries(TEXTS, JSON, max_size=2))
def test_any_refused_document_is_bounded(document: dict[str, Any], target: dict[str, Any]) -> None:
    for body in (document, {"targets": [target], "metadata": target} | document):
        try:
            validate(SeparationCreate, body)
        except RequestInvalid as error:
            assert_bounded(problem(request(), error))
        except RequestValidationError as error:
            assert_bounded(handle(error))


def handle(error: Exception) -> ProblemResponse:
    """Return what the application's own handler answers."""
    from fastapi import FastAPI

    from app.http import problems

    app = FastAPI()
    problems.install(app)
    handler: Any = app.exception_handlers[type(error)]
    return asyncio.run(handler(request(), error))


def test_many_errors_are_cut_and_frameworks_errors_bounded() -> None:
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(list[int]).validate_python(["x" * 1000] * 200)
    answer = handle(RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in raised.value.errors()]))
    assert_bounded(answer)
    assert len(json.loads(bytes(answer.body))["errors"]) == MOST_ERRORS
    assert_bounded(handle(HTTPException(404, "x" * 100_000)))


LONG = "é" * 4000
JSON_TYPE = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "send",
    [
        lambda client, audio: client.post("/v1/separations", json={LONG: 1}),
        lambda client, audio: client.post("/v1/separations", json={"metadata": {LONG: "x"}}),
        lambda client, audio: client.post("/v1/separations", json={"mixture": audio, "targets": [{"label": LONG}]}),
        lambda client, audio: client.post("/v1/separations", json={"mixture": audio, "targets": [{"name": LONG}]}),
        lambda client, audio: client.post("/v1/separations", json={"mixture": audio, "model": LONG}),
        lambda client, audio: client.post("/v1/separations", files={LONG: ("a.wav", wav())}),
        lambda client, audio: client.post("/v1/separations", files={"label": (None, "x" * 2000)}),
        lambda client, audio: client.post("/v1/audio", files={LONG: ("a.wav", wav())}),
        lambda client, audio: client.post("/v1/audio", json={"url": f"http://{LONG}"}),
        lambda client, audio: client.post("/v1/audio", json={"url": f"http://127.0.0.1/{LONG[:900]}"}),
        lambda client, audio: client.get("/v1/labels", params={"q": LONG, "model": LONG}),
        lambda client, audio: client.get("/v1/separations", params={"status": LONG, "cursor": LONG}),
        lambda client, audio: client.get(f"/v1/separations/{LONG}"),
        lambda client, audio: client.get(f"/{LONG}"),
        lambda client, audio: client.post("/v1/audio", content=LONG.encode(), headers={"Content-Type": "text/x" * 99}),
        lambda client, audio: client.request("X" * 200, "/v1/audio"),
    ],
)
def test_answers_to_long_texts_are_bounded(
    folder_service: Service, send: Callable[[httpx.Client, dict[str, str]], httpx.Response]
) -> None:
    answer = send(folder_service.client, {"audio_id": folder_service.recording()["id"]})
    assert answer.status_code >= 400 and len(answer.content) < 2500
    assert sum(len(name) + len(value) for name, value in answer.headers.items()) < 1000


def test_a_pointer_that_was_cut_ends_with_an_ellipsis(folder_service: Service) -> None:
    answer = folder_service.client.post("/v1/separations", json={LONG: 1})
    pointers = [error["pointer"] for error in problem_in(answer, 422, "request_invalid")["errors"]]
    assert f"/{LONG[:198]}…" in pointers


@pytest.mark.parametrize(
    ("send", "detail"),
    [
        (
            lambda client, audio: client.post("/v1/separations", json={"mixture": audio, "targets": [{"nam": "x"}]}),
            "/targets/0/nam: Unknown field; those here are name, examples, label, text, spans, query_id, embedding, ",
        ),
        (
            lambda client, audio: client.post("/v1/separations", json={"mixture": audio["audio_id"], "targets": [1]}),
            "/mixture: Input should be an object; its fields are audio_id, track. More in errors.",
        ),
        (  # the field that is missing is there under another name
            lambda client, audio: client.post("/v1/separations", json={"mixture_id": audio["audio_id"], "auto": {}}),
            "/mixture_id: Unknown field; those here are model, webhook, metadata, output, auto, mixture, targets.",
        ),
        (
            lambda client, audio: client.post(
                "/v1/separations",
                json={"mixture": audio, "targets": [{"name": "x", "examples": [audio["audio_id"]]}]},
            ),
            "/targets/0/examples/0: Input should be an object; its fields are audio_id, track.",
        ),
        (
            lambda client, audio: client.post("/v1/separations", json={"mixture": audio, "auto": {}, "output": "wav"}),
            "/output: Input should be an object; its fields are format, bit_depth, residual, joint, gate, quality.",
        ),
        (
            lambda client, audio: client.post("/v1/separations", json={"mixture": audio, "auto": {}, "metadata": "x"}),
            "/metadata: Input should be an object.",
        ),
        (
            lambda client, audio: client.post(
                "/v1/separations",
                files={"mixture": wav(), "label": (None, "Dog"), "options": (None, '{"format": "wav"}')},
            ),
            "/options/format: Unknown field; those here are model, webhook, metadata, output, auto.",
        ),
        (
            lambda client, audio: client.post("/v1/separations", json={"mixture": audio, "targets": []}),
            "/targets: List should have at least 1 item, not 0.",
        ),
        (
            lambda client, audio: client.post(
                "/v1/separations", json={"mixture": audio, "targets": [{"label": "Dog"}, {"label": "dog"}]}
            ),
            "Two targets are named dog; give one another name",
        ),
        (lambda client, audio: client.post("/v1/audio", content=b"{url}", headers=JSON_TYPE), "The body is not JSON: "),
        (lambda client, audio: client.get("/v1/audio"), "This path takes POST."),
        (lambda client, audio: client.get("/v1/separate"), "There is nothing at this path: /docs lists"),
    ],
)
def test_the_detail_alone_says_what_is_wrong(
    folder_service: Service, send: Callable[[httpx.Client, dict[str, str]], httpx.Response], detail: str
) -> None:
    """Many clients show nothing else of an error."""
    answer = send(folder_service.client, {"audio_id": folder_service.recording()["id"]})
    assert answer.json()["detail"].startswith(detail)


@pytest.mark.parametrize("start", [b"<html>", b"%PDF-1.7", b"[playlist]", b"PK\3\4", b"\x89PNG", b"no sound at all"])
def test_the_list_of_accepted_files_is_told_whole(folder_service: Service, start: bytes) -> None:
    answer = folder_service.client.post("/v1/audio", files={"file": ("a.wav", start * 100)})
    assert answer.json()["detail"].endswith(f"Accepted are {input_formats.ACCEPTED}.")
