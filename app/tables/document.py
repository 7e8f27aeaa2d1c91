"""Markdown tables of docker/README.md: `python -m app settings`."""

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


def write_into(document: Path) -> bool:
    """Replace the tables between their marks in a document; return whether the document changed.

    Raises ValueError if a mark is missing.
    """
    text = updated = document.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        begin, end = marks(name)
        before, found_begin, rest = updated.partition(begin)
        _, found_end, after = rest.partition(end)
        if not (found_begin and found_end):
            raise ValueError(f"{document} has no marks {begin} and {end}")
        updated = f"{before}{begin}\n{table()}\n{end}{after}"
    if updated != text:
        document.write_text(updated, encoding="utf-8")
    return updated != text


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
