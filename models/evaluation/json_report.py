"""Figures as a JSON file."""

import json
import math
from pathlib import Path
from typing import Any


def write(report: dict[str, Any], path: Path, decimals: int = 3) -> None:
    """Write figures rounded; what is no finite number, such as a figure of nothing, becomes null."""
    path.write_text(json.dumps(_plain(report, decimals), indent=1) + "\n")


def _plain(value: Any, decimals: int) -> Any:
    if isinstance(value, dict):
        return {key: _plain(some, decimals) for key, some in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(some, decimals) for some in value]
    if isinstance(value, float):
        return round(value, decimals) if math.isfinite(value) else None
    return value
