"""`GET /` and `GET /page/...`: the web page with its styles and modules, without any third-party origin."""

import secrets
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

_PAGE = Path(__file__).with_name("index.html")  # outside _FILES: always sent with its policy
_FILES = Path(__file__).with_name("files")
# Only this origin; the nonce is for styles that wavesurfer.js inserts into its shadow tree.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def install(app: FastAPI) -> None:
    """Add the routes of the page and its files."""
    page = _PAGE.read_text(encoding="utf-8")

    async def index() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        headers = {
            "Content-Security-Policy": _POLICY.format(nonce=nonce),
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
        }
        return HTMLResponse(page.replace("NONCE", nonce), headers=headers)

    app.add_api_route("/", index, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount("/page", StaticFiles(directory=_FILES))
