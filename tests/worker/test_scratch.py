"""Scratch folders are removed after the job, and after the worker however it ends."""

import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from worker.scratch import Scratch


def test_a_jobs_folder_is_private_and_removed_after_a_failure(tmp_path: Path):
    scratch = Scratch(tmp_path)
    with pytest.raises(RuntimeError), scratch.job() as folder:
        (folder / "mixture").write_bytes(b"x")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        raise RuntimeError
    assert not folder.exists()
    scratch.close()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_the_next_worker_removes_the_folders_of_dead_workers_only(tmp_path: Path):
    program = f"""
import sys, time
from pathlib import Path
from worker.scratch import Scratch
scratch = Scratch(Path({str(tmp_path)!r}))
with scratch.job() as folder:
    print(folder, flush=True)
    time.sleep(60)
"""
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=root) as killed:
        assert killed.stdout is not None
        abandoned = Path(killed.stdout.readline().strip())
        living = Scratch(tmp_path)
        assert abandoned.is_dir(), "its worker lives"
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert abandoned.is_dir()
        another = Scratch(tmp_path)
        assert not abandoned.parent.exists()
        assert living.folder.is_dir()
    another.close()
    living.close()
