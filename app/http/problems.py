"""Error responses as `application/problem+json` (RFC 9457), for exceptions of this service, FastAPI and Starlette.

They hold sentences written for clients, and never a traceback, a file path or a key of the object store. What repeats a
client's text is cut, so that a problem is at most some kilobytes, whatever was sent.
"""

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.errors import (
    EarmarkError,
    FieldError,
    MediaTypeUnsupported,
    NotFound,
    QueueUnavailable,
    RangeNotSatisfiable,
    RequestInvalid,
    TusVersionUnsupported,
    UploadTooLarge,
)
from app.records import ids

log = logging.getLogger("earmark.http")

_FRAMEWORK_ERRORS: dict[int, type[EarmarkError]] = {  # whose code and title an error of FastAPI's has
    400: RequestInvalid,
    404: NotFound,
    413: UploadTooLarge,
    415: MediaTypeUnsupported,
    422: RequestInvalid,
}
UNKNOWN_FIELD = "extra_forbidden"  # types of Pydantic's errors
NOT_AN_OBJECT = ("model_type", "model_attributes_type", "dict_type")
_SENTENCES = {  # of Pydantic's errors by type, where its own has Python's words
    UNKNOWN_FIELD: "Unknown field.",
    **dict.fromkeys(NOT_AN_OBJECT, "Input should be an object."),
}
_ID = "Input should be the id of {what}: {prefix}_ and 26 characters, from the answer to POST {path}."
_IDS = {  # what is said of a text that lacks an id's pattern
    ids.pattern(prefix): _ID.format(prefix=prefix, what=what, path=path)
    for prefix, what, path in ((ids.AUDIO, "an upload", "/v1/audio"), (ids.QUERY, "a saved query", "/v1/queries"))
}
_MAX_ERRORS = 32  # field errors listed in one response
MAX_TEXT = 200  # characters of a detail, a pointer, a parameter and the path: they may repeat what a client sent


class FieldProblem(BaseModel):
    """A field error: a JSON pointer into the body, or the name of a parameter."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None


class Problem(BaseModel):
    """An error by RFC 9457; `code` is stable, for programs."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: list[FieldProblem] | None = None


class ProblemResponse(JSONResponse):
    """Response with the body of a `Problem`."""

    media_type = "application/problem+json"


def problem(
    request: Request,
    error: EarmarkError,
    *,
    headers: dict[str, str] | None = None,
    errors: list[dict[str, str]] | None = None,
) -> ProblemResponse:
    """Return the response to an error; `errors` replaces its field errors."""
    headers = dict(headers or {})
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    if isinstance(error, TusVersionUnsupported):
        headers["Tus-Version"] = error.supported
    errors = errors or [{"pointer": each.pointer, "detail": each.detail} for each in error.errors]
    return _response(*_subject(request), error.status, error.code, error.title, error.detail, errors, headers)


def internal_error(request: Request) -> ProblemResponse:
    """Return the response to an unexpected exception, which the log has under the request id."""
    return problem(request, EarmarkError("The server failed. Report the request_id."))


def malformed_request(request_id: str) -> ProblemResponse:
    """Return the response to what is not an HTTP request; it has no path, and ends its connection."""
    detail = "The request is not valid HTTP."
    headers = {"Connection": "close", "X-Request-Id": request_id}
    kind = RequestInvalid
    return _response("", request_id, HTTPStatus.BAD_REQUEST, kind.code, kind.title, detail, [], headers)


def install(app: FastAPI) -> None:
    """Register exception handlers that answer every error with a problem."""

    async def answer_earmark_error(request: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, EarmarkError)  # noqa: S101 (registered for this type below)
        if error.status >= 500:
            log.error("%s %s: %s: %s", request.method, request.url.path, error.code, error.detail)
        return problem(request, error)

    async def answer_redis_error(request: Request, error: Exception) -> ProblemResponse:
        log.error("%s %s: queue: %s", request.method, request.url.path, error)
        return problem(request, QueueUnavailable())

    async def answer_validation_error(request: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        errors = field_errors(error.errors())
        return problem(request, RequestInvalid(_summary(errors)), errors=errors)

    async def answer_http_exception(request: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, HTTPException)  # noqa: S101
        kind = _FRAMEWORK_ERRORS.get(error.status_code, EarmarkError if error.status_code >= 500 else RequestInvalid)
        code, title = kind.code, kind.title
        headers = dict(error.headers or {})
        detail = f"{HTTPStatus(error.status_code).phrase}."
        if error.status_code == 404:
            detail = "There is nothing at this path: /docs lists those of the API."
        if error.status_code == 405:
            code, title = "method_not_allowed", "The method is not allowed here"
            headers["Allow"] = ", ".join(_allowed_methods(request)) or headers.get("Allow", "")
            detail = f"This path takes {headers['Allow']}."
        return _response(*_subject(request), error.status_code, code, title, detail, [], headers)

    app.add_exception_handler(EarmarkError, answer_earmark_error)
    app.add_exception_handler(RedisError, answer_redis_error)
    app.add_exception_handler(RequestValidationError, answer_validation_error)
    app.add_exception_handler(HTTPException, answer_http_exception)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes at the request's path; the framework names those of the first one only."""
    at_path = (each for each in iter_route_contexts(request.app.routes) if each.matches(request.scope)[0] != Match.NONE)
    return sorted(
        {method for each in at_path for method in each.methods or ()} - {"OPTIONS"}
    )  # for tus's clients alone


def field_errors(errors: Sequence[Any]) -> list[dict[str, str]]:
    """Convert Pydantic's errors to pointers (`/targets/0/name`) and sentences, without the values that were sent."""
    problems = []
    for error in list(errors)[:_MAX_ERRORS]:
        location, *rest = error["loc"] or ("body",)
        detail = _sentence(error)
        if error["type"] == "json_invalid":
            problems.append({"pointer": "", "detail": "The body is not JSON."})
        elif location == "body":
            problems.append({"pointer": pointer(*rest), "detail": detail})
        else:
            problems.append({"parameter": str(rest[0]) if rest else str(location), "detail": detail})
    return problems


def _sentence(error: Any) -> str:
    """Return one of Pydantic's errors as a sentence."""
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] in _IDS:
        return _IDS[error["ctx"]["pattern"]]
    return _SENTENCES.get(error["type"]) or f"{error['msg'].replace(' after validation', '')}."


def _summary(errors: list[dict[str, str]]) -> str:
    """Return the first field error as a sentence, since many clients show the detail alone."""
    first = errors[0]
    where = first.get("pointer") or first.get("parameter")
    sentence = f"{where}: {first['detail']}" if where else first["detail"]
    return f"{sentence} More in errors." if len(errors) > 1 else sentence


def pointer(*steps: str | int) -> str:
    """Return a JSON pointer (RFC 6901), whose steps end where a response cuts it anyway."""
    return "".join("/" + str(step)[: MAX_TEXT + 1].replace("~", "~0").replace("/", "~1") for step in steps)


def field_error(detail: str, *steps: str | int) -> FieldError:
    """Return the error of the field of the body at the end of these steps."""
    return FieldError(pointer(*steps), detail)


def _subject(request: Request) -> tuple[str, str]:
    """Return the path and the id of a request."""
    return request.url.path, request.scope.get("earmark.request_id", "")


def _response(
    path: str,
    request_id: str,
    status: int,
    code: str,
    title: str,
    detail: str,
    errors: list[dict[str, str]],
    headers: dict[str, str],
) -> ProblemResponse:
    body: dict[str, Any] = {
        "type": f"urn:earmark:problem:{code}",
        "title": title,
        "status": status,
        "detail": _cut(detail),
        "instance": _cut(path),
        "code": code,
        "request_id": request_id,
    }
    if errors:
        body["errors"] = [
            {name: _cut(text) for name, text in each.items()}  # a pointer that was cut ends with an ellipsis
            for each in errors[:_MAX_ERRORS]
        ]
    return ProblemResponse(body, status_code=status, headers=headers)


def _cut(text: str) -> str:
    """Return a text of at most `MAX_TEXT` characters; lone surrogates, which no response can hold, are replaced."""
    cut = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
    return cut.encode("utf-8", "replace").decode()
