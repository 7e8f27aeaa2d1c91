import asyncio
import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import psutil
import pytest

from app.media.priority import NICENESS
from app.media.sandbox import Outcome, Sandbox, SandboxLimits
from tests.conftest import REPOSITORY

GENEROUS = SandboxLimits(seconds=60, cpu_seconds=20, memory_bytes=1 << 30, file_bytes=1 << 20)
HUNG = "import time; time.sleep(600)"
SCRIPT = "tests.app.media.script"
SELECT_LIMIT = 1024  # FD_SETSIZE: select() takes no descriptor from here on


class Run(Protocol):
    """Run a script in the sandbox."""

    def __call__(self, text: str, limits: SandboxLimits = GENEROUS, /, **options: object) -> Outcome: ...


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with closing(Sandbox(SCRIPT)) as sandbox:
        yield sandbox


@pytest.fixture
def run(sandbox: Sandbox) -> Run:
    return lambda text, limits=GENEROUS, /, **options: sandbox.run(SCRIPT, [text], limits, **options)


def zygote() -> psutil.Process:
    """Return the zygote of the fixture `sandbox`."""
    [found] = [child for child in psutil.Process().children() if SCRIPT in child.cmdline()]
    return found


def test_the_child_yields_to_other_processes(run: Run) -> None:
    ours = os.nice(0)
    outcome = run("import os; print(os.nice(0))", replace(GENEROUS, niceness=3))
    assert int(outcome.output) == min(ours + 3, 19)


def test_children_share_a_session_in_which_their_niceness_counts_and_each_leads_a_group(run: Run) -> None:
    text = "import os; print(os.getsid(0), os.getpgid(0) == os.getpid())"
    first, second = run(text).output.split(), run(text).output.split()
    assert first == second == [str(os.getsid(zygote().pid)).encode(), b"True"]
    assert int(first[0]) != os.getsid(0)  # beside the caller, all of them together count as one


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="Linux does not group processes by session here")
def test_the_session_of_all_children_yields_to_the_callers(run: Run) -> None:
    outcome = run("print(open('/proc/self/autogroup').read())")
    assert outcome.output.split()[-2:] == [b"nice", str(NICENESS).encode()]


def test_a_program_that_succeeds(run: Run) -> None:
    outcome = run("print('done')")
    assert outcome.is_success
    assert (outcome.status, outcome.returncode, outcome.output) == ("exited", 0, b"done\n")
    assert outcome.seconds < GENEROUS.seconds


def test_a_program_that_fails_has_its_status_and_errors(run: Run) -> None:
    outcome = run("import sys; sys.stderr.write('no'); sys.exit(3)")
    assert not outcome.is_success
    assert (outcome.status, outcome.returncode, outcome.errors) == ("exited", 3, b"no")


def test_an_exception_has_its_trace(run: Run) -> None:
    outcome = run("raise ValueError('no')")
    assert (outcome.status, outcome.returncode) == ("exited", 1)
    assert outcome.errors.startswith(b"Traceback") and outcome.errors.endswith(b"ValueError: no\n")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_crash_has_its_signal_and_the_next_child_does_not_notice(run: Run, name: str) -> None:
    assert run("pass").is_success
    before = zygote().pid
    outcome = run(f"import os, signal; os.kill(os.getpid(), signal.{name})")
    assert (outcome.status, outcome.signal) == ("crashed", signal.Signals[name])
    assert run("print('done')").is_success and zygote().pid == before


def test_a_hanging_program_is_killed_after_its_time(run: Run) -> None:
    outcome = run(HUNG, SandboxLimits(0.5, 10, 1 << 30, 0))
    assert outcome.status == "timed_out"
    assert outcome.seconds >= 0.5


def test_reading_a_pipe_without_a_writer_times_out(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    outcome = run(f"open({str(tmp_path / 'pipe')!r})", SandboxLimits(0.3, 10, 1 << 30, 0))
    assert outcome.status == "timed_out"


def test_cpu_time_is_limited(run: Run) -> None:
    outcome = run("while True: pass", SandboxLimits(600, 1, 1 << 30, 0))
    assert (outcome.status, outcome.signal) == ("timed_out", signal.SIGXCPU)


def test_memory_is_limited(run: Run) -> None:
    outcome = run("x = bytearray(2 << 30); print('got it')")
    assert outcome.returncode == 1
    assert b"MemoryError" in outcome.errors
    assert not outcome.output


def test_the_size_of_files_is_limited(run: Run, tmp_path: Path) -> None:
    text = "import itertools\nwith open('bomb', 'wb') as f:\n    for _ in itertools.count(): f.write(bytes(65536))"
    outcome = run(text, folder=tmp_path)
    assert outcome.returncode == 1
    assert b"File too large" in outcome.errors
    assert (tmp_path / "bomb").stat().st_size <= 1 << 20


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_is_limited(run: Run, stream: str) -> None:
    outcome = run(f"import sys\nwhile True: sys.{stream}.write('x' * 1000)")
    assert outcome.status == "flooded"
    assert len(outcome.output) + len(outcome.errors) == GENEROUS.output_bytes


def test_the_child_gets_neither_our_environment_nor_our_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even in the memory of the process that it is a copy of, where its first environment stays."""
    monkeypatch.setenv("EARMARK_STORE_SECRET_KEY", "sesame")
    text = "import os; print(open('/proc/self/environ').read(), os.environ, os.listdir(), os.getcwd()); input()"
    with closing(Sandbox()) as sandbox:
        outcome = sandbox.run(SCRIPT, [text], GENEROUS)
    assert b"sesame" not in outcome.output
    assert b" [] " in outcome.output
    assert b"EOFError" in outcome.errors
    folder = outcome.output.decode().split()[-1]
    assert not Path(folder).exists()


def test_modules_in_the_working_folder_are_not_imported(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("print('stolen')")
    (tmp_path / "av.py").write_text("print('stolen')")
    outcome = sandbox.run("app.media.probe", ["nothing"], GENEROUS, folder=tmp_path)
    assert outcome.returncode == 1
    assert b"stolen" not in outcome.output


def test_core_dumps_are_off_and_only_the_standard_streams_are_open(run: Run) -> None:
    text = (
        "import os, resource; print(resource.getrlimit(resource.RLIMIT_CORE), sorted(os.listdir('/proc/self/fd'))[:-1])"
    )
    with Path(__file__).open():
        assert run(text).output == b"(0, 0) ['0', '1', '2']\n"


def test_children_at_the_same_time_have_neither_descriptors_nor_output_of_each_other(run: Run) -> None:
    text = "import os, time; time.sleep(0.3); print(sorted(os.listdir('/proc/self/fd'))[:-1], arguments)"
    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(run, [f"{text}; print({number})" for number in range(4)]))
    assert [outcome.output.decode().splitlines()[-1] for outcome in outcomes] == ["0", "1", "2", "3"]
    assert all(outcome.output.startswith(b"['0', '1', '2'] ") for outcome in outcomes)
    assert not zygote().children()


def test_a_child_leaves_nothing_to_the_next(run: Run) -> None:
    """Each is a new copy of the zygote, which no file has touched."""
    assert run("import os, builtins; builtins.secret = 1; os.environ['SECRET'] = os.environ['HOME']").is_success
    assert run("import os, builtins; print(hasattr(builtins, 'secret'), 'SECRET' in os.environ)").output == (
        b"False False\n"
    )


def test_a_caller_can_cancel_it(run: Run) -> None:
    stop = threading.Event()
    threading.Timer(0.4, stop.set).start()
    outcome = run(HUNG, cancelled=stop.is_set)
    assert outcome.status == "cancelled", "and not timed out"


def test_a_caller_that_raises_leaves_no_child(run: Run) -> None:
    def fail() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(HUNG, cancelled=fail)
    assert not zygote().children()


def test_the_childs_own_children_are_killed(run: Run) -> None:
    outcome = run(f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', '{HUNG}']).pid)")
    assert outcome.is_success
    assert outcome.seconds < GENEROUS.seconds
    assert _has_ended(int(outcome.output))


def test_a_killed_zygote_ends_its_child_which_a_new_one_runs_again(run: Run, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    again = f"import pathlib; print('again') if pathlib.Path({str(note)!r}).exists() else exec({_noting(note)!r})"
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run, again)
        child = _noted(note)
        first = zygote()
        first.kill()
        assert (running.result().status, running.result().output) == ("exited", b"again\n")
    assert _has_ended(child)
    assert zygote().pid != first.pid


def test_a_child_whose_zygotes_die_is_an_error_of_this_machine(run: Run, tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    count = f"open({str(tries)!r}, 'a').write('x')"
    with pytest.raises(OSError, match="zygote") as raised:
        run(f"import os, signal; {count}; os.kill(os.getppid(), signal.SIGKILL); {HUNG}")
    assert raised.value.errno == errno.EAGAIN, "clients are told 503, and jobs run again"
    assert 1 < tries.stat().st_size < 10
    assert run("print('done')").is_success


def test_a_zygote_that_does_not_end_a_child_is_killed(tmp_path: Path) -> None:
    note, stop = tmp_path / "pid", threading.Event()
    with closing(Sandbox(SCRIPT, stuck_seconds=0.5)) as sandbox, ThreadPoolExecutor(1) as threads:
        running = threads.submit(sandbox.run, SCRIPT, [_noting(note)], GENEROUS, cancelled=stop.is_set)
        child = _noted(note)
        zygote = psutil.Process(child).parent()
        assert zygote is not None
        zygote.suspend()
        assert sandbox.run(SCRIPT, [HUNG], replace(GENEROUS, seconds=0.0)).status == "timed_out"
        stop.set()
        assert running.result().status == "cancelled"
        assert _has_ended(child) and _has_ended(zygote.pid)
        assert sandbox.run(SCRIPT, ["print('done')"], GENEROUS).is_success


def test_a_suspended_zygote_does_not_outlive_its_sandbox() -> None:
    sandbox, before = Sandbox(stuck_seconds=0.2), set(psutil.Process().children())
    sandbox.start()
    [zygote] = set(psutil.Process().children()) - before
    zygote.suspend()
    sandbox.close()
    assert not zygote.is_running()


def test_a_zygote_that_has_died_unnoticed_is_replaced(run: Run) -> None:
    """Also where its death is noticed only because it does not answer."""
    run("pass")
    first = zygote()
    first.suspend()
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run, "print('done')")
        time.sleep(0.2)
        assert not running.done()
        first.kill()
        assert running.result().is_success


def test_a_zygote_may_start_while_a_thousand_files_are_open() -> None:
    """As in a server with as many connections, whose zygote has died."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(2048, hard)), hard))
        while opened.enter_context(Path(os.devnull).open()).fileno() <= SELECT_LIMIT:
            pass
        sandbox = opened.enter_context(closing(Sandbox(SCRIPT)))
        assert sandbox.run(SCRIPT, ["print('done')"], GENEROUS).output == b"done\n"


def test_a_zygote_that_cannot_start_is_an_error_of_this_machine() -> None:
    with closing(Sandbox("tests.app.media.ending_module")) as sandbox, pytest.raises(OSError, match="zygote"):
        sandbox.run(SCRIPT, ["pass"], GENEROUS)


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_and_the_zygote_end_with_their_owner(tmp_path: Path, way: signal.Signals) -> None:
    note = tmp_path / "pid"
    text = (
        "from app.media.sandbox import Sandbox, SandboxLimits\n"
        f"Sandbox().run({SCRIPT!r}, [{_noting(note)!r}], SandboxLimits(60, 60, 1 << 30, 1000))"
    )
    owner = subprocess.Popen([sys.executable, "-c", text], cwd=REPOSITORY)
    child = psutil.Process(_noted(note))
    zygote = child.parent()
    assert zygote is not None and zygote.ppid() == owner.pid
    owner.send_signal(way)
    owner.wait()
    assert _has_ended(child.pid) and _has_ended(zygote.pid)


def test_a_process_that_exits_leaves_no_zygote() -> None:
    text = (
        "from app.media.sandbox import Sandbox; import psutil; sandbox = Sandbox(); sandbox.start()\n"
        "print(psutil.Process().children()[0].pid)"
    )
    ended = subprocess.run([sys.executable, "-W", "error", "-c", text], cwd=REPOSITORY, capture_output=True)
    assert ended.returncode == 0 and not ended.stderr
    assert not psutil.pid_exists(int(ended.stdout))


def test_a_missing_module_fails(sandbox: Sandbox) -> None:
    assert sandbox.run("tests.missing", [], GENEROUS).returncode == 1


def test_the_event_loop_is_not_blocked(sandbox: Sandbox, tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    waits = f"import pathlib, time\nwhile not pathlib.Path({str(sign)!r}).exists(): time.sleep(0.01)"

    async def run_beside_other_tasks() -> str:
        running = asyncio.create_task(sandbox.run_async(SCRIPT, [waits], GENEROUS))
        for _ in range(10):
            await asyncio.sleep(0.01)
            assert not running.done()
        sign.touch()
        return (await running).status

    assert asyncio.run(run_beside_other_tasks()) == "exited"


def test_a_cancelled_task_leaves_no_process(sandbox: Sandbox) -> None:
    async def cancel() -> None:
        running = asyncio.create_task(sandbox.run_async(SCRIPT, [HUNG], replace(GENEROUS, seconds=600)))
        await asyncio.sleep(0.3)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancel())
    assert not zygote().children()


def test_children_do_not_wait_for_the_threads_of_other_calls(sandbox: Sandbox) -> None:
    async def run_beside_a_long_call() -> None:
        loop, ends = asyncio.get_running_loop(), threading.Event()
        loop.set_default_executor(ThreadPoolExecutor(1))
        long = asyncio.create_task(asyncio.to_thread(ends.wait))
        try:
            call = partial(sandbox.run_async, SCRIPT, ["print('done')"], GENEROUS)
            outcomes = await asyncio.gather(*(call() for _ in range(2)))
            assert [outcome.output for outcome in outcomes] == [b"done\n"] * 2 and not long.done()
        finally:
            ends.set()
            await long

    asyncio.run(asyncio.wait_for(run_beside_a_long_call(), 60))


def test_threads_that_wait_for_children_stay_for_the_next(sandbox: Sandbox) -> None:
    """An event loop that starts a thread waits until it runs."""

    async def run_one_after_another(count: int) -> None:
        for _ in range(count):
            await sandbox.run_async(SCRIPT, ["print('done')"], GENEROUS)

    before = set(threading.enumerate())
    asyncio.run(run_one_after_another(12))
    started = {thread for thread in threading.enumerate() if thread.name.startswith("earmark-child")} - before
    assert len(started) < 6  # one has not always gone back to wait when the next child is asked for


def _noting(note: Path) -> str:
    """Return a script that writes its process id into a file and hangs."""
    return f"import os, pathlib; pathlib.Path({str(note)!r}).write_text(str(os.getpid())); {HUNG}"


def _noted(note: Path) -> int:
    while not note.exists() or not note.read_text():
        time.sleep(0.02)
    return int(note.read_text())


def _has_ended(pid: int) -> bool:
    """Wait for the end of a process, which its new parent may not reap; return False if it does not end."""
    end = time.monotonic() + 60
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
    return True
