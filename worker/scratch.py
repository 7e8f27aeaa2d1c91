"""Private temporary folders for jobs, which outlive neither the job nor the worker.

Each worker process has one folder under a root, locked for as long as the process lives. The kernel drops the
lock whatever the process dies of, so the next worker to start can tell what was left behind and removes it.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_LOCK = "lock"
_PREFIX = "worker-"
_JOB = "job-"


class Scratch:
    """A worker process's own folder under `root`; raises OSError if it cannot be made."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / _LOCK):
            _remove_abandoned(root)
            self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
            self._alive = os.open(self.folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._alive, fcntl.LOCK_EX)

    @contextlib.contextmanager
    def job(self) -> Iterator[Path]:
        """A fresh folder that only this user can read, removed whatever happens inside. One at a time."""
        for interrupted in self.folder.glob(f"{_JOB}*"):  # a timeout may strike while a folder is being removed
            shutil.rmtree(interrupted, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=_JOB, dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Removes the worker's folder; no job may be running."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._alive)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove_abandoned(root: Path) -> None:
    """The root's lock is held, so a folder that nobody has locked belongs to the dead."""
    for folder in root.glob(f"{_PREFIX}*"):
        if not _is_alive(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
