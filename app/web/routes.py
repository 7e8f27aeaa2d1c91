"""`GET /` and `GET /page/...`: the web page with its styles and program, without any third-party origin.

`source/` holds the page's sources and `make page` builds `files/` from them, which are committed: serving the page
needs no Node.
"""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

_PAGE = Path(__file__).with_name("index.html")  # outside _FILES: always sent with its policy
_FILES = Path(__file__).with_name("files")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}


def install(app: FastAPI) -> None:
    """Add the routes of the page and its files."""
    page = _PAGE.read_text(encoding="utf-8")

    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=_HEADERS)

    app.add_api_route("/", index, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount("/page", StaticFiles(directory=_FILES))
