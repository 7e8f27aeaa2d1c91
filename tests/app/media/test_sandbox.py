import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from app.media.sandbox import SandboxLimits, python_command, run, run_async

GENEROUS = SandboxLimits(seconds=60, cpu_seconds=20, memory_bytes=1 << 30, file_bytes=1 << 20)
HUNG = "import time; time.sleep(600)"


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_the_child_yields_to_other_processes() -> None:
    ours = os.nice(0)
    outcome = run(script("import os; print(os.nice(0))"), replace(GENEROUS, niceness=3))
    assert int(outcome.output) == min(ours + 3, 19)


def test_a_program_that_succeeds() -> None:
    outcome = run(script("print('done')"), GENEROUS)
    assert outcome.is_success
    assert (outcome.status, outcome.returncode, outcome.output) == ("exited", 0, b"done\n")
    assert outcome.seconds < GENEROUS.seconds


def test_a_program_that_fails_has_its_status_and_errors() -> None:
    outcome = run(script("import sys; sys.stderr.write('no'); sys.exit(3)"), GENEROUS)
    assert not outcome.is_success
    assert (outcome.status, outcome.returncode, outcome.errors) == ("exited", 3, b"no")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_crash_has_its_signal(name: str) -> None:
    outcome = run(script(f"import os, signal; os.kill(os.getpid(), signal.{name})"), GENEROUS)
    assert (outcome.status, outcome.signal) == ("crashed", signal.Signals[name])


def test_a_hanging_program_is_killed_after_its_time() -> None:
    outcome = run(script(HUNG), SandboxLimits(0.5, 10, 1 << 30, 0))
    assert outcome.status == "timed_out"
    assert 0.5 <= outcome.seconds < 30


def test_reading_a_pipe_without_a_writer_times_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    outcome = run(["/bin/cat", str(tmp_path / "pipe")], SandboxLimits(0.3, 10, 1 << 30, 0))
    assert outcome.status == "timed_out"


def test_cpu_time_is_limited() -> None:
    outcome = run(script("while True: pass"), SandboxLimits(120, 1, 1 << 30, 0))
    assert outcome.status == "timed_out"
    assert outcome.seconds < 100


def test_memory_is_limited() -> None:
    outcome = run(script("x = bytearray(2 << 30); print('got it')"), GENEROUS)
    assert outcome.returncode == 1
    assert b"MemoryError" in outcome.errors
    assert not outcome.output


def test_the_size_of_files_is_limited(tmp_path: Path) -> None:
    text = "import itertools\nwith open('bomb', 'wb') as f:\n    for _ in itertools.count(): f.write(bytes(65536))"
    outcome = run(script(text), GENEROUS, folder=tmp_path)
    assert outcome.returncode == 1
    assert b"File too large" in outcome.errors
    assert (tmp_path / "bomb").stat().st_size <= 1 << 20


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_is_limited(stream: str) -> None:
    outcome = run(script(f"import sys\nwhile True: sys.{stream}.write('x' * 1000)"), GENEROUS)
    assert outcome.status == "flooded"
    assert len(outcome.output) + len(outcome.errors) == GENEROUS.output_bytes


def test_the_child_gets_neither_our_environment_nor_our_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARMARK_STORE_SECRET_KEY", "sesame")
    outcome = run(script("import os; print(os.environ, os.listdir(), os.getcwd()); input()"), GENEROUS)
    assert b"sesame" not in outcome.output
    assert b" [] " in outcome.output
    assert b"EOFError" in outcome.errors
    folder = outcome.output.decode().split()[-1]
    assert not Path(folder).exists()


def test_modules_in_the_working_folder_are_not_imported(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("print('stolen')")
    (tmp_path / "av.py").write_text("print('stolen')")
    outcome = run(python_command("app.media.probe", "nothing"), GENEROUS, folder=tmp_path)
    assert outcome.returncode == 1
    assert b"stolen" not in outcome.output


def test_core_dumps_are_off_and_only_the_standard_streams_are_open() -> None:
    text = (
        "import os, resource; print(resource.getrlimit(resource.RLIMIT_CORE), sorted(os.listdir('/proc/self/fd'))[:-1])"
    )
    with Path(__file__).open():
        assert run(script(text), GENEROUS).output == b"(0, 0) ['0', '1', '2']\n"


def test_a_caller_can_cancel_it() -> None:
    stop = threading.Event()
    threading.Timer(0.4, stop.set).start()
    outcome = run(script(HUNG), GENEROUS, cancelled=stop.is_set)
    assert outcome.status == "cancelled", "and not timed out"


def test_the_childs_own_children_are_killed(tmp_path: Path) -> None:
    text = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', '{HUNG}']).pid)"
    outcome = run(script(text), GENEROUS)
    assert outcome.is_success
    assert outcome.seconds < GENEROUS.seconds
    assert _has_ended(int(outcome.output))


def test_the_child_is_killed_with_its_parent(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    hung = f"import os, pathlib, time; pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(600)"
    call = f"run([{sys.executable!r}, '-c', {hung!r}], SandboxLimits(600, 60, 1 << 30, 1000))"
    text = f"from app.media.sandbox import SandboxLimits, run; {call}"
    parent = subprocess.Popen([sys.executable, "-c", text], cwd=Path(__file__).parents[3])
    while not note.exists() or not note.read_text():
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    assert _has_ended(int(note.read_text()))


def test_a_missing_program_fails() -> None:
    assert run(["/nonexistent"], GENEROUS).returncode == 1


def test_the_event_loop_is_not_blocked(tmp_path: Path) -> None:
    """The child ends only after the loop has gone on ten times."""
    sign = tmp_path / "sign"
    waits = f"import pathlib, time\nwhile not pathlib.Path({str(sign)!r}).exists(): time.sleep(0.01)"

    async def run_beside_other_tasks() -> str:
        running = asyncio.create_task(run_async(script(waits), GENEROUS))
        for _ in range(10):
            await asyncio.sleep(0.01)
            assert not running.done()
        sign.touch()
        return (await running).status

    assert asyncio.run(run_beside_other_tasks()) == "exited"


def test_a_cancelled_task_leaves_no_process() -> None:
    async def cancel() -> float:
        running = asyncio.create_task(run_async(script(HUNG), GENEROUS))
        await asyncio.sleep(0.3)
        start = time.monotonic()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return time.monotonic() - start

    assert asyncio.run(cancel()) < GENEROUS.seconds / 2
    assert not [child for child in psutil.Process().children() if HUNG in " ".join(child.cmdline())]


def _has_ended(pid: int) -> bool:
    end = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_children_do_not_wait_for_the_threads_of_other_calls() -> None:
    async def run_beside_a_long_call() -> None:
        loop, ends = asyncio.get_running_loop(), threading.Event()
        loop.set_default_executor(ThreadPoolExecutor(1))
        long = asyncio.create_task(asyncio.to_thread(ends.wait))
        try:
            outcomes = await asyncio.gather(*(run_async(script("print('done')"), GENEROUS) for _ in range(2)))
            assert [outcome.output for outcome in outcomes] == [b"done\n"] * 2 and not long.done()
        finally:
            ends.set()
            await long

    asyncio.run(asyncio.wait_for(run_beside_a_long_call(), 60))
