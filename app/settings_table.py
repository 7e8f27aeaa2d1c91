"""Markdown table of the settings in `app/settings.py`: `python -m app settings`."""

from pathlib import Path

from pydantic.fields import FieldInfo

from app.settings import Settings

BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


def table() -> str:
    """Return a Markdown table with a row for each setting: variable, default, and meaning with its unit."""
    rows = [
        f"| `EARMARK_{name.upper()}` | {_default(field)} | {_cell(field)} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(("| variable | default | meaning |", "|---|---|---|", *rows))


def write_into(document: Path) -> bool:
    """Replace the text between the two marks of a document; return whether the document changed.

    Raises ValueError if a mark is missing.
    """
    text = document.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{document} has no marks {BEGIN} and {END}")
    updated = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if updated != text:
        document.write_text(updated, encoding="utf-8")
    return updated != text


def _default(field: FieldInfo) -> str:
    default = field.default
    if default is None or default == "":
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, float):
        return f"`{default:.10g}`"
    return f"`{default}`"


def _cell(field: FieldInfo) -> str:
    if not field.description:
        raise ValueError("a setting without a description")
    return field.description.replace("|", "\\|")
