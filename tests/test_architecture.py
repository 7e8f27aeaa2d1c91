"""The architecture: rooms in order, each importing only what stands before it; and what the front end may load.

Read from the source. Architecture tests inside `models` are in `tests/models`.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

OURS = {"app", "models", "worker"}
# The rooms of the front end: modules and packages of `app`. Rooms of one row do not import each other.
APP_ROWS = (
    {"settings", "errors", "metrics", "supervisor", "web", "sample_recordings"},
    {"redis_client"},
    {"budgets", "logs", "storage", "outbound", "media", "model_registry", "records", "embedded"},
    {"jobs", "http", "local_copies", "storage_probe", "console"},
    {"keys"},
    {"dependencies", "idempotency"},
    {"audio", "labels", "limits", "usage", "model_catalogue", "health"},
    {"job_api"},
    {"detections", "queries"},
    {"separations"},
    {"resources"},
    {"main", "housekeeping"},
    {"tables", "check", "job_admin"},
    {"__main__", "command", "demo"},
)
# The rooms of the worker, and the rooms of the front end that it may use.
WORKER_ROWS = (
    {
        *("metrics", "scratch", "stage_timer", "decode", "redis_retries", "store_access", "job_heartbeat"),
        "registry_heartbeat",
    },
    {"rq_worker", "shared_threads"},
    {"context", "thread_worker"},
    {"execution", "short_jobs"},
    {"saved_queries"},
    {"target_queries", "detecting", "embedding"},
    {"separating"},
    {"job_run"},
    {"tasks"},
    {"process", "pool"},
    {"__main__"},
)
APP_ROOMS_OF_WORKERS = {
    *("settings", "errors", "logs", "metrics", "supervisor", "storage", "media", "redis_client", "model_registry"),
    *("records", "jobs", "keys.quotas"),
}
# Packages that the front end must not need: its image has none of them.
HEAVY = {"torch", "torchaudio", "numpy", "soundfile", "soxr", "safetensors", "matplotlib", "lightning"}
MOST_MODULES = 16  # at the root of `app`
TOP_LEVEL = {
    *("app", "worker", "models", "tests", "docker", ".ci", ".git", ".gitignore", ".venv", ".dockerignore"),
    *("docker-compose.yml", "pyproject.toml", "constraints.txt", "README.md", "Makefile", "LICENSE"),
    "openapi.json",
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it, as dotted names; relative ones made absolute."""
    found = set()
    package = path.relative_to(REPOSITORY).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__"):
            found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return found


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def arrows(package: str) -> list[tuple[Path, str]]:
    """Every import in a package, with its file."""
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files
    return [(path.relative_to(REPOSITORY), name) for path in files for name in sorted(imports(path))]


def test_app_imports_nothing_else_of_ours_and_nothing_heavy() -> None:
    def forbidden(path: Path, name: str) -> bool:
        package = name.split(".")[0]
        # The demo is a client that measures and draws; it runs where the embedded worker's packages are.
        measures = path.parts[:2] == ("app", "demo") and package not in ("torch", "torchaudio")
        return package in OURS - {"app"} or (package in HEAVY and not measures)

    assert [arrow for arrow in arrows("app") if forbidden(*arrow)] == []


def test_the_front_end_does_not_import_its_demo() -> None:
    assert [arrow for arrow in arrows("app") if arrow[1].startswith("app.demo") and "demo" not in arrow[0].parts] == []


def test_models_import_nothing_else_of_ours() -> None:
    assert [arrow for arrow in arrows("models") if arrow[1].split(".")[0] in OURS - {"models"}] == []


@pytest.mark.parametrize(("package", "rows"), [("app", APP_ROWS), ("worker", WORKER_ROWS)])
def test_rooms_import_only_the_rows_before_them(package: str, rows: tuple[set[str], ...]) -> None:
    row_of = {room: number for number, row in enumerate(rows) for room in row}

    def points_up(path: Path, name: str) -> bool:
        room, other = path.parts[1].removesuffix(".py"), name.split(".")[1:2]
        if name.split(".")[0] != package or not other or room in ("__init__", other[0]):
            return False
        return row_of[other[0]] >= row_of[room]

    assert [arrow for arrow in arrows(package) if points_up(*arrow)] == []


@pytest.mark.parametrize(("package", "rows"), [("app", APP_ROWS), ("worker", WORKER_ROWS)])
def test_every_room_stands_in_the_order(package: str, rows: tuple[set[str], ...]) -> None:
    tracked = subprocess.run(["git", "ls-files", package], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    rooms = {Path(line).parts[1].removesuffix(".py") for line in tracked.stdout.splitlines()} - {"__init__"}
    assert rooms == set().union(*rows)


def test_the_root_of_the_front_end_is_small() -> None:
    assert len(list((REPOSITORY / "app").glob("*.py"))) <= MOST_MODULES


def test_workers_use_only_what_both_programs_share() -> None:
    def forbidden(name: str) -> bool:
        steps = name.split(".")
        return (
            steps[0] == "app"
            and len(steps) > 1
            and not {steps[1], ".".join(steps[1:3])} & APP_ROOMS_OF_WORKERS
            and name not in ("app.keys",)
        )

    assert [arrow for arrow in arrows("worker") if forbidden(arrow[1])] == []


def test_both_sides_match_texts_by_the_same_rule() -> None:
    """Neither may import the other, so each has the files; whoever edits one copies it over the other."""
    for name in ("matching.py", "wording.py"):
        one, other = REPOSITORY / "app" / "labels" / name, REPOSITORY / "models" / "queries" / name
        assert one.read_text() == other.read_text().replace("from models.queries import", "from app.labels import")
        ours = {module for module in imports(one) if module.split(".")[0] in OURS}
        assert ours == ({"app.labels", "app.labels.wording"} if name == "matching.py" else set())


def test_nothing_of_ours_imports_tests() -> None:
    assert [arrow for package in sorted(OURS) for arrow in arrows(package) if arrow[1].split(".")[0] == "tests"] == []


@pytest.mark.parametrize("code", ["import models", "from worker.tasks import x", "import_module('torch')"])
def test_the_reader_of_imports_sees_forbidden_arrows(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "REPOSITORY", tmp_path)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "hidden.py").write_text(f"def late():\n    {code}\n")
    with pytest.raises(AssertionError):
        test_app_imports_nothing_else_of_ours_and_nothing_heavy()


def test_the_front_end_loads_no_torch_and_no_decoder() -> None:
    code = "import sys, app.main; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not set(loaded) & (HEAVY | {"av", "models", "worker"})


def test_programs_written_as_text_import_modules_that_exist() -> None:
    """Tests start programs from strings, and documents show some: none imports a module that has moved."""
    statement = re.compile(r"^\s*(?:from|import) ((?:app|models|worker|tests)(?:\.\w+)+)\b", re.MULTILINE)
    found = {
        (path, module)
        for path in tracked_files("*.py", "*.md")
        for module in statement.findall((REPOSITORY / path).read_text())
    }
    assert len(found) > 1000

    def exists(module: str) -> bool:
        path = REPOSITORY.joinpath(*module.split("."))
        return path.is_dir() or path.with_suffix(".py").exists()

    assert sorted((path, module) for path, module in found if not exists(module)) == []


def tracked_files(*patterns: str) -> list[str]:
    ran = subprocess.run(["git", "ls-files", *patterns], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()


def test_the_top_level_is_closed() -> None:
    assert {path.split("/")[0] for path in tracked_files()} <= TOP_LEVEL


def test_no_file_is_named_for_nothing() -> None:
    names = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert [
        path for package in sorted(OURS) for path in (REPOSITORY / package).rglob("*.py") if path.stem in names
    ] == []
