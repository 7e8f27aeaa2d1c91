"""The allocator keeps the memory of tensors that are freed, so that the next ones need no new pages."""

import subprocess
import sys

import pytest

from models.compute.allocator import keep_freed_memory
from tests.conftest import REPOSITORY

_COUNT = """
import resource, sys
import numpy as np
from models.compute.allocator import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory({}):
    sys.exit("another allocator")
np.ones(1 << 21).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(1 << 21)  # 16 MiB: 4,096 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(how: str) -> int:
    """Return how many pages the system has cleared for ten arrays, one after the other."""
    environment = {"MALLOC_MMAP_THRESHOLD_": "131072"} if how == "returned" else {}
    command = [sys.executable, "-c", _COUNT, how]
    ran = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if "another allocator" in ran.stderr:
        pytest.skip("the C library is not glibc")
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


def test_freed_memory_is_used_again() -> None:
    assert pages("kept") < 400
    assert pages("returned") > 10 * pages("kept")


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_the_users_own_settings_win(name: str) -> None:
    assert not keep_freed_memory({name: "131072"})
