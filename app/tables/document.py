"""Markdown tables of the manual in docker/: `python -m app settings`."""

from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic.fields import FieldInfo

from app.settings import Settings
from app.tables.shared_things import shared_things


def settings_table() -> str:
    """Return a table with a row for each setting: variable, default, and meaning with its unit."""
    rows = [(f"`{variable(name)}`", _default(field), _meaning(field)) for name, field in Settings.model_fields.items()]
    return _table(("variable", "default", "meaning"), rows)


def budgets_table() -> str:
    """Return a table with a row for each thing that clients share, with the values of the default settings."""
    columns = ("what is shared", "of one key", "in all", "settings", "metric", "alert", "answer when it is used up")
    rows = [
        (
            thing.what,
            thing.share,
            thing.total,
            ", ".join(f"`{variable(name)}`" for name in thing.settings) or "none",
            f"`{thing.metric}`" if thing.metric else "none",
            f"`{thing.alert}`" if thing.alert else "none",
            thing.answer,
        )
        for thing in shared_things(Settings.model_construct())
    ]
    return _table(columns, rows)


TABLES: dict[str, Callable[[], str]] = {"settings": settings_table, "budgets": budgets_table}


def marks(name: str) -> tuple[str, str]:
    """Return the lines of a document between which a table stands."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def find_document(place: Path, name: str) -> Path:
    """Return the document that has a table's marks: `place`, or one of the Markdown files in that folder.

    Raises ValueError if a mark is missing.
    """
    begin, end = marks(name)
    for document in sorted(place.glob("*.md")) if place.is_dir() else [place]:
        if end in document.read_text(encoding="utf-8").partition(begin)[2]:
            return document
    raise ValueError(f"{place} has no marks {begin} and {end}")


def write_into(place: Path) -> bool:
    """Replace the tables between their marks in a document, or in those of a folder; return whether one changed.

    Raises ValueError if a mark is missing.
    """
    documents = {name: find_document(place, name) for name in TABLES}
    changed = False
    for name, table in TABLES.items():
        begin, end = marks(name)
        text = documents[name].read_text(encoding="utf-8")
        before, _, rest = text.partition(begin)
        updated = f"{before}{begin}\n{table()}\n{end}{rest.partition(end)[2]}"
        if updated != text:
            documents[name].write_text(updated, encoding="utf-8")
            changed = True
    return changed


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"EARMARK_{name.upper()}"


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (columns, ("---",) * len(columns), *rows)
    rule = "|".join(lines[1])
    return "\n".join(f"|{rule}|" if line is lines[1] else f"| {' | '.join(line)} |" for line in lines)


def _default(field: FieldInfo) -> str:
    default = field.default
    if default is None or default == "":
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, float):
        return f"`{default:.10g}`"
    return f"`{default}`"


def _meaning(field: FieldInfo) -> str:
    if not field.description:
        raise ValueError("a setting without a description")
    return field.description.replace("|", "\\|")
