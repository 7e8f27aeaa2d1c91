"""The rooms of `models`: each may import only the rows before its own."""

import ast
from collections import Counter
from pathlib import Path

import models

ROWS = (
    {"errors"},
    {"formats", "spectrum"},
    {"networks"},
    {"compute", "encoding", "labels", "options"},
    {"media", "authors", "detection"},
    {"audio", "queries"},
    {"checkpoints", "own_recordings", "plots", "separation"},
    {"console", "named_queries", "short_detections"},
    {"corpus", "engine"},
    {"detected_targets", "runs", "validation"},
    {"many"},
    {"bench", "commands"},
    {"training", "evaluation"},  # neither imports the other
    {"experiments"},
    {"__main__"},
)
MOST_MODULES = 17  # of a folder, beside its packages
ROW = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
ROOT = Path(models.__file__).parent


def room_of(path: Path) -> str:
    """The package or module right inside `models` that a file belongs to; "" for `models/__init__.py`."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def rooms_imported_by(path: Path) -> set[str]:
    """The rooms that a file imports, inside functions too."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("models.")}
    return rooms


FILES = sorted(ROOT.rglob("*.py"))


def test_no_folder_has_too_many_modules() -> None:
    folders = Counter(path.parent for path in FILES if not path.stem.startswith("__"))
    assert {str(folder.relative_to(ROOT)): count for folder, count in folders.items() if count > MOST_MODULES} == {}


def test_every_file_is_in_a_listed_room() -> None:
    assert {room_of(path) for path in FILES} - {""} == set(ROW)


def test_rooms_import_only_the_rows_before_them() -> None:
    upward = [
        f"{path.relative_to(ROOT)} imports {room}"
        for path in FILES
        for room in rooms_imported_by(path)
        if room != room_of(path) and ROW[room] >= ROW[room_of(path)]
    ]
    assert upward == []


def test_nothing_below_training_and_evaluation_knows_them() -> None:
    above = {"training", "evaluation", "experiments"}
    below = [path for path in FILES if room_of(path) and ROW[room_of(path)] < ROW["training"]]
    assert [str(path) for path in below if rooms_imported_by(path) & above] == []
