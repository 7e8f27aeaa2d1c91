"""Native programs for tests: nginx, promtool and wrk, installed or unpacked by `make tools`."""

import os
import shutil
from pathlib import Path

from tests.conftest import REPOSITORY

UNPACKED = REPOSITORY / ".cache" / "tools" / "usr"
_FOLDERS = (Path("/usr/sbin"), UNPACKED / "sbin", UNPACKED / "bin")


def find(name: str) -> Path | None:
    """Return the path of a program, or None."""
    program = shutil.which(name, path=_search_path())
    return Path(program) if program else None


def environment() -> dict[str, str]:
    """Return an environment in which unpacked programs are found, and find their unpacked libraries."""
    libraries = [str(path.parent) for path in (UNPACKED / "lib").rglob("*.so.*")]
    changed = {"LD_LIBRARY_PATH": os.pathsep.join(sorted(set(libraries)))} if libraries else {}
    return os.environ | {"PATH": _search_path()} | changed


def _search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), *map(str, _FOLDERS)])
