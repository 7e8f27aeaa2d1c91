"""`GET /page/examples.json` and `/page/examples/FILE`: recordings to try, with licences and targets that are found."""

import json
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.staticfiles import StaticFiles

_FILES = Path(__file__).with_name("files")
_LIST = Path(__file__).with_name("examples.json")
_CACHE_CONTROL = "public, max-age=3600"


def install(app: FastAPI) -> None:
    """Add the routes, which must precede those of the page's other files."""
    samples = json.loads(_LIST.read_text(encoding="utf-8"))
    for sample in samples["data"]:
        sample["url"] = f"/page/examples/{sample['file']}"
        sample["bytes"] = (_FILES / sample["file"]).stat().st_size

    async def examples() -> JSONResponse:
        return JSONResponse(samples, headers={"Cache-Control": _CACHE_CONTROL})

    app.add_api_route("/page/examples.json", examples, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount("/page/examples", StaticFiles(directory=_FILES))
