"""Programs that are not Python's: nginx, promtool, wrk, from the system or from where `make tools` unpacks them."""

import os
import shutil
from pathlib import Path

from tests.conftest import REPOSITORY

UNPACKED = REPOSITORY / ".cache" / "tools" / "usr"


def found(name: str) -> Path | None:
    """Where a program is, if it is."""
    places = [os.environ.get("PATH", ""), "/usr/sbin", str(UNPACKED / "sbin"), str(UNPACKED / "bin")]
    program = shutil.which(name, path=os.pathsep.join(places))
    return Path(program) if program else None


def environment() -> dict[str, str]:
    """The environment in which an unpacked program finds its unpacked libraries."""
    libraries = [str(path.parent) for path in (UNPACKED / "lib").rglob("*.so.*")]
    return os.environ | ({"LD_LIBRARY_PATH": os.pathsep.join(sorted(set(libraries)))} if libraries else {})
