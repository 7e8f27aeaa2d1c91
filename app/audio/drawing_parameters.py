"""Query parameters and responses of the routes that draw a recording."""

from typing import Annotated, Any

from fastapi import Query

from app.http.openapi import FILE
from app.media.spectrogram import MAX_HEIGHT, MAX_WIDTH, MIN_HEIGHT

Start = Annotated[float, Query(ge=0, allow_inf_nan=False, description="of the section, in seconds")]
End = Annotated[
    float | None, Query(gt=0, allow_inf_nan=False, description="of the section, in seconds; default: the recording's")
]
Points = Annotated[int, Query(ge=1, le=8192, description="at most; a short recording has fewer")]
Width = Annotated[int, Query(ge=1, le=MAX_WIDTH, description="pixels")]
Height = Annotated[int, Query(ge=MIN_HEIGHT, le=MAX_HEIGHT, description="pixels")]
SPECTROGRAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": FILE}}},
    304: {"description": "Not changed"},
}
