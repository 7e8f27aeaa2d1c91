"""The exception tree drawn in app/errors.py matches the classes."""

import re

from app import errors
from app.errors import EarmarkError

_LINE = re.compile(r"( *)([A-Z]\w+) +([a-z_]+) +(\d{3})\b")

Row = tuple[int, str, str, int]  # depth, class, code, status


def drawn() -> list[tuple[Row, str]]:
    """Return the rows of the drawing, each with the name of the class above it."""
    rows, ancestors = [], [""]
    for line in (errors.__doc__ or "").splitlines():
        if match := _LINE.match(line):
            indent, name, code, status = match.groups()
            depth = len(indent) // 2
            ancestors[depth + 1 :] = [name]
            rows.append(((depth, name, code, int(status)), ancestors[depth]))
    return rows


def defined(error: type[EarmarkError] = EarmarkError, parent: str = "", depth: int = 0) -> list[tuple[Row, str]]:
    """Return the same rows for the classes of the module."""
    rows = [((depth, error.__name__, error.code, error.status), parent)]
    for child in error.__subclasses__():
        if child.__module__ == errors.__name__:
            rows += defined(child, error.__name__, depth + 1)
    return rows


def test_the_drawn_tree_shows_every_class_with_its_code_status_and_parent() -> None:
    assert sorted(drawn()) == sorted(defined())


def test_the_drawn_tree_shows_each_class_once() -> None:
    names = [row[1] for row, _ in drawn()]
    assert len(names) == len(set(names)) > 30


def test_an_error_without_a_detail_says_its_title() -> None:
    for name in (row[1] for row, _ in drawn()):
        error = getattr(errors, name)
        if error.__init__ is EarmarkError.__init__:
            assert str(error()) == error().detail == error.title
