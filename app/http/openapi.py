"""Parts of the OpenAPI document that FastAPI cannot infer: problems, forms, streamed bodies, effects of middleware."""

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.http import links
from app.http.problems import Problem

_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Identifies all attempts at one request: it is processed once, and its response replayed for a day.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$"},
}
_WEBHOOK_HEADERS = {
    "webhook-id": "Identifies the message: the same in each attempt to deliver it.",
    "webhook-timestamp": "Seconds since 1970 of this attempt.",
    "webhook-signature": "`v1,` and the base64 of HMAC-SHA256 over id, timestamp and body, with dots between them.",
}
FILE = {"type": "string", "format": "binary"}
_REFERENCE = "#/components/schemas/{model}"


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route for these error statuses."""
    schema = {"$ref": _REFERENCE.format(model="Problem")}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {"application/problem+json": {"schema": schema}}}
        for status in statuses
    }


def json_or_form(model: type[BaseModel], properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that reads JSON (a model that `describe` adds) or a form with files."""
    form = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    content = {"application/json": reference(model), "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def reference(model: type[BaseModel]) -> dict[str, Any]:
    """Return a reference to the schema of a body that `describe` adds to the document."""
    return {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}


def operation_id(route: APIRoute) -> str:
    """Return the id of an operation, such as `separations_create`, after which generators of clients name functions."""
    return "_".join((*map(str, route.tags), route.name))


def to_json(app: FastAPI) -> str:
    """Return the OpenAPI document of the application as JSON, as `openapi.json` holds it."""
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


def describe(
    app: FastAPI,
    bodies: list[type[BaseModel]],
    upload_bodies: dict[str, dict[str, Any]] | None = None,
    webhooks: dict[str, type[BaseModel]] | None = None,
    endings: Sequence[str] = (),
) -> None:
    """Extend the OpenAPI document of the application.

    bodies: the models that routes only refer to. upload_bodies: by path, an example of the body that creates a job from
    an upload. webhooks: by kind of job, the model of what is posted when one has finished. endings: the statuses in
    which a job may finish.
    """

    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                openapi_version=app.openapi_version,
            )
            _, definitions = models_json_schema(
                [(model, "validation") for model in [Problem, *bodies]], ref_template=_REFERENCE
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            _replace_validation_errors(document)
            _describe_middleware(document)
            links.add_links(document, upload_bodies or {})
            document["webhooks"] = {
                kind: {"post": _webhook(kind, model, endings)} for kind, model in (webhooks or {}).items()
            }
            for name, schema in definitions["$defs"].items():
                schemas.setdefault(name, schema)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = build


def _describe_middleware(document: dict[str, Any]) -> None:
    """Describe what middleware adds to every operation: authentication, rate limits, budgets, `Idempotency-Key`."""
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "API key, where authentication is on."},
        "token": {"type": "apiKey", "in": "query", "name": "token", "description": "Token of a signed URL."},
    }
    for path, operations in document["paths"].items():
        if not path.startswith("/v1/"):
            continue
        for method, operation in operations.items():
            operation["security"] = [{"key": []}, *([{"token": []}] if method == "get" else []), {}]
            statuses = (401, 409, 422, 429, 503) if method == "post" else (401, 429, 503)
            for status, response in problems(*statuses).items():
                operation["responses"].setdefault(str(status), response)
            if method == "post":
                operation.setdefault("parameters", []).append(_IDEMPOTENCY_KEY)


def _webhook(kind: str, model: type[BaseModel], endings: Sequence[str]) -> dict[str, Any]:
    """Return the request that a webhook's URL gets about a finished job: the job in an envelope, and a signature."""
    envelope = {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": [f"{kind}.{ending}" for ending in endings]},
            "timestamp": {"type": "string", "format": "date-time", "description": "when the job finished"},
            "data": reference(model)["schema"],
        },
        "required": ["type", "timestamp", "data"],
    }
    return {
        "operationId": f"{kind}_finished",
        "summary": f"A {kind} has finished",
        "description": "Posted to the webhook of a request, signed by Standard Webhooks. Any 2xx accepts it, and "
        "410 refuses it for good; otherwise it comes again, for a day.",
        "parameters": [
            {"name": name, "in": "header", "required": True, "description": text, "schema": {"type": "string"}}
            for name, text in _WEBHOOK_HEADERS.items()
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": envelope}}},
        "responses": {"2XX": {"description": "Received"}},
    }


def _replace_validation_errors(document: dict[str, Any]) -> None:
    """Replace the 422 responses that FastAPI describes by problems."""
    for operations in document["paths"].values():
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                operation["responses"]["422"] = problems(422)[422]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
