"""Figures as a JSON file."""

import json
from pathlib import Path
from typing import Any

from models.evaluation.reports.summaries import plain


def write(report: dict[str, Any], path: Path) -> None:
    """Write rounded figures; numbers that are not finite become null."""
    path.write_text(json.dumps(plain(report), indent=1) + "\n")


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
