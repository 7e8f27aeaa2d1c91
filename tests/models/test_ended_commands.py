"""Commands that a signal ends: what they have decoded is removed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.ffmpeg_files import Folder

# One process imports torch; each case is a fork of it.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from models.many.decoded import DecodedAhead
from models.many.inputs import find
from models.own_recordings import open_recording

def say(word):
    os.write(1, f"{word}\\n".encode())  # whole lines: two processes write to one pipe

def wait():
    while True:
        time.sleep(0.05)  # a signal just before a sleep is handled after it only

def one(path, near):
    with open_recording(path, near=near) as recording:
        say(recording.path)
        wait()

def many(path, near):
    with DecodedAhead(find([str(path)], near), near).running() as ahead:
        for _, recording in ahead:
            say(recording.path)
        wait()

for line in sys.stdin:
    command, path, near, ignored = line.split()
    child = os.fork()
    if child == 0:
        # A shell starts what runs in the background with SIGINT ignored, and nohup anything with SIGHUP.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        if ignored != "none":
            signal.signal(signal.Signals[ignored], signal.SIG_IGN)
        try:
            {"one": one, "many": many}[command](Path(path), Path(near))
        finally:
            os._exit(1)
    say(child)
    os.waitpid(child, 0)
    say("ended")
"""

Start = Callable[..., tuple[int, Path]]


@pytest.fixture(scope="module")
def program() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=REPOSITORY, bufsize=1) as process:
        yield process
        process.kill()


@pytest.fixture
def start(program: subprocess.Popen[str], field: Folder, tmp_path: Path) -> Start:
    """Return a function that starts a command; it returns the process's id and the decoded recording."""

    def start_command(command: str, ignored: str = "none") -> tuple[int, Path]:
        assert program.stdin is not None and program.stdout is not None
        program.stdin.write(f"{command} {field.make('stereo.wav')} {tmp_path} {ignored}\n")
        words = [program.stdout.readline().strip() for _ in range(2)]
        child = next(int(word) for word in words if word.isdigit())
        return child, next(Path(word) for word in words if not word.isdigit())

    return start_command


def end(program: subprocess.Popen[str], child: int, number: signal.Signals) -> None:
    assert program.stdout is not None
    os.kill(child, number)
    assert program.stdout.readline() == "ended\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["one", "many"])
def test_what_is_decoded_is_removed_when_a_signal_ends_a_command(
    program: subprocess.Popen[str], start: Start, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    child, recording = start(command)
    assert recording.is_file() and recording.is_relative_to(tmp_path)
    end(program, child, number)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["one", "many"])
def test_a_signal_that_is_ignored_stays_ignored(program: subprocess.Popen[str], start: Start, command: str) -> None:
    """As `nohup` has SIGHUP ignored."""
    child, recording = start(command, "SIGHUP")
    mask = next(line for line in Path(f"/proc/{child}/status").read_text().splitlines() if line.startswith("SigIgn"))
    assert int(mask.split()[1], 16) >> (signal.SIGHUP - 1) & 1
    end(program, child, signal.SIGTERM)
    assert not recording.exists()
