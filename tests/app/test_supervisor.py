"""Programs are started again when they die, stopped in order, and never outlive whoever started them."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from app.supervisor import Program, ProgramFailed, Supervisor

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
]


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_a_dead_program_is_started_again_after_a_wait():
    program = Program("sleeper", SLEEPER)
    supervisor = Supervisor()
    supervisor.add(program)
    try:
        assert program.process is not None
        first = program.process.pid
        program.process.kill()
        assert eventually(lambda: (supervisor.restart_dead(), program.deaths == 1)[1])
        assert program.process is None, "not at once: a program that cannot start must not spin"
        assert eventually(lambda: (supervisor.restart_dead(), program.process is not None)[1])
        assert program.process.pid != first
    finally:
        supervisor.stop()


def test_starting_gives_up_on_a_program_that_keeps_dying():
    supervisor = Supervisor()
    supervisor.add(Program("broken", [sys.executable, "-c", "raise SystemExit(2)"]))
    with pytest.raises(ProgramFailed, match="broken died 3 times"):
        supervisor.wait_until(lambda: False, lambda: False)
    supervisor.stop()


def test_a_program_that_ignores_sigterm_is_killed_after_its_patience(tmp_path: Path):
    program = Program("stubborn", STUBBORN, patience=0.3)
    program.start()
    process = program.process
    assert process is not None
    time.sleep(0.5)  # until it ignores SIGTERM
    program.terminate()
    program.wait()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_children_end_with_a_parent_that_is_killed():
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                """
                import sys, time
                from app.supervisor import Program
                program = Program("sleeper", [sys.executable, "-c", "import time; time.sleep(60)"])
                program.start()
                print(program.process.pid, flush=True)
                time.sleep(60)
                """
            ),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        os.kill(parent.pid, signal.SIGKILL)
        assert eventually(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie")
