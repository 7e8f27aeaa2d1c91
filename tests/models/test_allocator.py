"""The allocator's variables: of programs that start themselves again, and of users who have set their own."""

import os
import subprocess
import sys

import pytest

from models.allocator import variables
from tests.conftest import REPOSITORY

_SHOW = (
    "import os, sys\nfrom models.allocator import restart\nrestart()\n"
    "print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.flags.no_user_site, *sys.argv[1:])"
)


def run(**settings: str) -> list[str]:
    """Return the words that a program prints, with its process in place of the number."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_", "MALLOC_"))}
    command = [sys.executable, "-s", "-c", _SHOW, "a b", "--c"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment | settings, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        pid, *words = program.stdout.read().split(maxsplit=3)
        assert program.wait() == 0
        assert int(pid) == program.pid
        return words


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_program_goes_on_in_the_same_process_with_the_variables() -> None:
    assert run() == [variables({})["GLIBC_TUNABLES"], "1", "a b --c\n"]


@pytest.mark.parametrize(
    ("name", "value"), [("GLIBC_TUNABLES", "glibc.malloc.check=0"), ("MALLOC_TRIM_THRESHOLD_", "131072")]
)
def test_the_users_own_settings_win(name: str, value: str) -> None:
    assert variables({name: value}) == {}
    assert run(**{name: value})[0] == (value if name == "GLIBC_TUNABLES" else "None")
