"""Scratch folders: private temporary folders of jobs, removed with the job or after the worker's death.

Each worker process has one folder under a root and holds a lock on it while it lives. The kernel releases the lock
however the process ends, so the next worker that starts finds abandoned folders and removes them.
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
    """The scratch folder of one worker process, under `root`. Raises OSError if it cannot be created."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        with _lock_file(root / _LOCK):
            _remove_abandoned_folders(root)
            self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
            self._lock = os.open(self.folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    @contextlib.contextmanager
    def job(self) -> Iterator[Path]:
        """Create a folder that only this user can read, and remove it at the end of the block. One at a time."""
        for leftover in self.folder.glob(f"{_JOB}*"):  # a timeout can interrupt the removal of a folder
            shutil.rmtree(leftover, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=_JOB, dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove the worker's folder; no job may be running."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


@contextlib.contextmanager
def _lock_file(path: Path) -> Iterator[None]:
    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove_abandoned_folders(root: Path) -> None:
    """Remove the folders of dead workers. The caller holds the root's lock, so no new folder is still unlocked."""
    for folder in root.glob(f"{_PREFIX}*"):
        if not _is_in_use(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_in_use(folder: Path) -> bool:
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
