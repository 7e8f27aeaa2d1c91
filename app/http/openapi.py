"""What the OpenAPI document says that FastAPI cannot infer: problems, forms, and bodies that are read as streams."""

import json
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.http import links
from app.http.problems import Problem

_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same for every attempt at one request: it is done once, and its answer repeated for a day.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$"},
}
FILE = {"type": "string", "format": "binary"}
_REFERENCE = "#/components/schemas/{model}"


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a route may answer."""
    schema = {"$ref": _REFERENCE.format(model="Problem")}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {"application/problem+json": {"schema": schema}}}
        for status in statuses
    }


def json_or_form(model: type[BaseModel], properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads either JSON, a model that `describe` adds, or a form with files."""
    form = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    content = {"application/json": reference(model), "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def reference(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of a body that `describe` adds to the document."""
    return {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}


def text(app: FastAPI) -> str:
    """The application's document, as it is kept beside the code."""
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


def describe(
    app: FastAPI, bodies: list[type[BaseModel]], upload_bodies: dict[str, dict[str, Any]] | None = None
) -> None:
    """Add to the application's document the models that routes only refer to, and links.

    upload_bodies: by path, the body of the POST that an upload leads to.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                openapi_version=app.openapi_version,
            )
            _, definitions = models_json_schema(
                [(model, "validation") for model in [Problem, *bodies]], ref_template=_REFERENCE
            )
            schemas = made.setdefault("components", {}).setdefault("schemas", {})
            _replace_validation_errors(made)
            _add_manners(made)
            links.add_links(made, upload_bodies or {})
            for name, schema in definitions["$defs"].items():
                schemas.setdefault(name, schema)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document


def _add_manners(made: dict[str, Any]) -> None:
    """What layers around the routes do with all of them: keys (where they are on), rates, `Idempotency-Key`."""
    made["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key, where the service asks for one."},
        "token": {"type": "apiKey", "in": "query", "name": "token", "description": "What signed addresses carry."},
    }
    for path, operations in made["paths"].items():
        if not path.startswith("/v1/"):
            continue
        for method, operation in operations.items():
            operation["security"] = [{"key": []}, *([{"token": []}] if method == "get" else []), {}]
            statuses = (401, 409, 422, 429) if method == "post" else (401, 429)
            for status, response in problems(*statuses).items():
                operation["responses"].setdefault(str(status), response)
            if method == "post":
                operation.setdefault("parameters", []).append(_IDEMPOTENCY_KEY)


def _replace_validation_errors(made: dict[str, Any]) -> None:
    """FastAPI promises its own kind of 422; ours are problems."""
    for operations in made["paths"].values():
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                operation["responses"]["422"] = problems(422)[422]
    for name in ("HTTPValidationError", "ValidationError"):
        made["components"]["schemas"].pop(name, None)
