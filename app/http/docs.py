"""`/docs`: Swagger's page with its own script and style, served from here, so that it works without a network."""

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

_FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")


def install(app: FastAPI) -> None:
    """Serve the page and its three files."""

    def page() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=app.openapi_url or "/openapi.json",
            title=f"{app.title} {app.version}",
            swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css",
            swagger_favicon_url="/docs/favicon.png",
        )

    app.add_api_route("/docs", page, include_in_schema=False)
    for name in _FILES:
        app.add_api_route(f"/docs/{name}", _file(_folder() / name), include_in_schema=False)


def _file(path: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def answer() -> FileResponse:
        return FileResponse(path, headers={"Cache-Control": "public, max-age=86400"})

    return answer


def _folder() -> Path:
    """Where fastapi-offline keeps Swagger's files; the package itself is not run."""
    spec = find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        raise RuntimeError("fastapi-offline is not installed")
    return Path(spec.origin).with_name("static")
