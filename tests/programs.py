"""Native programs for tests: nginx, promtool and wrk, installed or unpacked by `make tools`."""

import os
import shutil
from pathlib import Path

from tests.conftest import REPOSITORY

UNPACKED = REPOSITORY / ".cache" / "tools" / "usr"


def find(name: str) -> Path | None:
    """Return the path of a program, or None."""
    folders = [os.environ.get("PATH", ""), "/usr/sbin", str(UNPACKED / "sbin"), str(UNPACKED / "bin")]
    program = shutil.which(name, path=os.pathsep.join(folders))
    return Path(program) if program else None


def environment() -> dict[str, str]:
    """Return the environment in which an unpacked program finds its unpacked libraries."""
    libraries = [str(path.parent) for path in (UNPACKED / "lib").rglob("*.so.*")]
    return os.environ | ({"LD_LIBRARY_PATH": os.pathsep.join(sorted(set(libraries)))} if libraries else {})
