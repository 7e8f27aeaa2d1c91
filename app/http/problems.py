"""Errors as answers: `application/problem+json` (RFC 9457) for ours, FastAPI's and Starlette's alike.

An answer holds sentences that were written for clients, and never a traceback, a file's path or a key of the store.
"""

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException

from app.errors import EarmarkError, FieldError, QueueUnavailable, RangeNotSatisfiable, RequestInvalid

log = logging.getLogger("earmark.http")

_FRAMEWORK_CODES = {
    400: "request_invalid",
    404: "not_found",
    405: "method_not_allowed",
    413: "upload_too_large",
    415: "media_type_unsupported",
    422: "request_invalid",
}
_MAX_ERRORS = 32  # faults listed in one answer


class FieldProblem(BaseModel):
    """One wrong field: a JSON pointer into the body, or the name of a parameter."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None


class Problem(BaseModel):
    """An error, by RFC 9457; `code` is a stable word to act on."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: list[FieldProblem] | None = None


class ProblemResponse(JSONResponse):
    """A `Problem` on the wire."""

    media_type = "application/problem+json"


def problem(
    request: Request,
    error: EarmarkError,
    *,
    headers: dict[str, str] | None = None,
    errors: list[dict[str, Any]] | None = None,
) -> ProblemResponse:
    """The answer to one of our errors."""
    headers = dict(headers or {})
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    told = errors or [{"pointer": fault.pointer, "detail": fault.detail} for fault in error.errors]
    return _response(request, error.status, error.code, error.title, error.detail, told, headers)


def internal(request: Request) -> ProblemResponse:
    """The answer to what nobody expected; what it was is in the log, under the request's id."""
    return problem(request, EarmarkError("Something went wrong on our side. Tell us the request_id."))


def install(app: FastAPI) -> None:
    """Answer every error of this application with a problem."""

    async def ours(request: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, EarmarkError)  # noqa: S101 (registered for this type below)
        if error.status >= 500:
            log.error("%s %s: %s: %s", request.method, request.url.path, error.code, error.detail)
        return problem(request, error)

    async def queue_down(request: Request, error: Exception) -> ProblemResponse:
        log.error("%s %s: queue: %s", request.method, request.url.path, error)
        return problem(request, QueueUnavailable())

    async def invalid(request: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        return problem(
            request, RequestInvalid("The request is not valid; see errors."), errors=field_errors(error.errors())
        )

    async def framework(request: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, HTTPException)  # noqa: S101
        title = HTTPStatus(error.status_code).phrase
        code = _FRAMEWORK_CODES.get(error.status_code, "internal" if error.status_code >= 500 else "request_invalid")
        return _response(request, error.status_code, code, title, f"{title}.", [], dict(error.headers or {}))

    app.add_exception_handler(EarmarkError, ours)
    app.add_exception_handler(RedisError, queue_down)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, framework)


def field_errors(errors: Sequence[Any]) -> list[dict[str, Any]]:
    """Pydantic's errors as pointers (`/targets/0/name`) and sentences; what was sent is not repeated."""
    told = []
    for error in list(errors)[:_MAX_ERRORS]:
        place, *rest = error["loc"] or ("body",)
        detail = "This field is not known." if error["type"] == "extra_forbidden" else f"{error['msg']}."
        if error["type"] == "json_invalid":
            told.append({"pointer": "", "detail": "The body is not JSON."})
        elif place == "body":
            told.append({"pointer": pointer(*rest), "detail": detail})
        else:
            told.append({"parameter": str(rest[0]) if rest else str(place), "detail": detail})
    return told


def pointer(*steps: str | int) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def field_error(detail: str, *steps: str | int) -> FieldError:
    """One wrong field of the body, by the way to it."""
    return FieldError(pointer(*steps), detail)


def _response(
    request: Request,
    status: int,
    code: str,
    title: str,
    detail: str,
    errors: list[dict[str, Any]],
    headers: dict[str, str],
) -> ProblemResponse:
    body: dict[str, Any] = {
        "type": f"urn:earmark:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": request.url.path,
        "code": code,
        "request_id": request.scope.get("earmark.request_id", ""),
    }
    if errors:
        body["errors"] = errors
    return ProblemResponse(body, status_code=status, headers=headers)
