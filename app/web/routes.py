"""`/` and `/page/`: one page, its style and its modules, all from here, so that it works without a network."""

import secrets
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

_PAGE = Path(__file__).with_name("index.html")  # not among the files: it goes nowhere without its policy
_FILES = Path(__file__).with_name("files")
# Nothing but what this server sends; styles that wavesurfer.js writes into its own tree carry the page's nonce.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def install(app: FastAPI) -> None:
    """Serve the page and its files."""
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
