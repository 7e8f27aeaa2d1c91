"""Figures as a JSON file."""

import json
import math
from pathlib import Path
from typing import Any


def write(report: dict[str, Any], path: Path, decimals: int = 3) -> None:
    """Write rounded figures; numbers that are not finite become null."""
    path.write_text(json.dumps(_plain(report, decimals), indent=1) + "\n")


def write_rows(figures: dict[str, Any], path: Path) -> None:
    """Write JSON with one line for each entry and, since they are long, for each of the rows' figures."""
    rows = figures.pop("rows", None)
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    if rows is not None:
        values = rows.pop("values")
        lines = [f"  {json.dumps(name)}: {json.dumps(of, separators=(',', ':'))}" for name, of in values.items()]
        parts = [f" {json.dumps(name)}: {json.dumps(of, separators=(',', ':'))}" for name, of in rows.items()]
        inner = ",\n".join([*parts, ' "values": {\n' + ",\n".join(lines) + "\n }"])
        text = text[:-2] + ',\n "rows": {\n' + inner + "\n }\n}"
    path.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any, decimals: int) -> Any:
    if isinstance(value, dict):
        return {key: _plain(some, decimals) for key, some in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(some, decimals) for some in value]
    if isinstance(value, float):
        return round(value, decimals) if math.isfinite(value) else None
    return value
