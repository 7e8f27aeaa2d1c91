"""`/docs`: Swagger UI, its script and style served by this process, so that it works without a network."""

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

_FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")


def install(app: FastAPI) -> None:
    """Add the routes of the page and of its files."""

    def swagger_page() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=app.openapi_url or "/openapi.json",
            title=f"{app.title} {app.version}",
            swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css",
            swagger_favicon_url="/docs/favicon.png",
        )

    app.add_api_route("/docs", swagger_page, include_in_schema=False)
    for name in _FILES:
        app.add_api_route(f"/docs/{name}", _file_endpoint(_swagger_folder() / name), include_in_schema=False)


def _file_endpoint(path: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def send_file() -> FileResponse:
        return FileResponse(path, headers={"Cache-Control": "public, max-age=86400"})

    return send_file


def _swagger_folder() -> Path:
    """Return the folder of Swagger UI's files in fastapi-offline, without importing that package."""
    spec = find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        raise RuntimeError("fastapi-offline is not installed")
    return Path(spec.origin).with_name("static")
