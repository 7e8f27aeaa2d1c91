"""The allocator keeps the memory of freed tensors, so that the next ones need no new pages, or few huge ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from models.compute.allocator import keep_freed_memory, use_huge_pages, use_one_heap
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
    return printed_number(_COUNT, how, {"MALLOC_MMAP_THRESHOLD_": "131072"} if how == "returned" else {})


def printed_number(script: str, how: str, environment: dict[str, str]) -> int:
    """Return what a script prints in a process of its own; skip where mallopt is another allocator's, or none."""
    command = [sys.executable, "-c", script, how]
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
    assert not use_one_heap({name: "131072"})


_THREADS = """
import ctypes, sys, threading
from models.compute.allocator import use_one_heap
if sys.argv[1] == "one" and not use_one_heap({}):
    sys.exit("another allocator")
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
addresses = []
threads = [threading.Thread(target=lambda: addresses.append(libc.malloc(ctypes.c_size_t(1000)))) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
(heap,) = [line.split()[0].split("-") for line in open("/proc/self/maps") if "[heap]" in line]
print(sum(int(heap[0], 16) <= address < int(heap[1], 16) for address in addresses))
"""


def allocations_in_the_main_heap(how: str) -> int:
    """Return how many of three threads have allocated from the process's own heap."""
    return printed_number(_THREADS, how, {})


def test_threads_share_one_heap() -> None:
    assert allocations_in_the_main_heap("one") == 3
    assert allocations_in_the_main_heap("default") < 3


_HUGE = """
import os, resource, sys
from models.compute.allocator import use_huge_pages
if sys.argv[1] == "huge":
    use_huge_pages()
import torch
torch.ones(1 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(1 << 25)  # 128 MiB: 32,768 pages, 64 huge ones
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_large_tensors_lie_in_huge_pages() -> None:
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or "[madvise]" not in enabled.read_text():
        pytest.skip("this system does not leave huge pages to programs")

    def faults(how: str) -> int:
        command = [sys.executable, "-c", _HUGE, how]
        ran = subprocess.run(command, cwd=REPOSITORY, env={}, capture_output=True, text=True, check=True)
        return int(ran.stdout)

    # How many the system finds depends on what else runs.
    assert faults("huge") < 0.75 * faults("plain")


def test_the_users_choice_of_huge_pages_wins() -> None:
    environment = {"THP_MEM_ALLOC_ENABLE": "0"}
    use_huge_pages(environment)
    assert environment == {"THP_MEM_ALLOC_ENABLE": "0"}


_FREED = """
import numpy as np
from models.compute.allocator import keep_freed_memory, return_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) >> 8

keep_freed_memory({})
before = resident()
arrays = [np.ones(1 << 17) for _ in range(200)]
last = arrays[-1]
del arrays
kept = resident()
return_freed_memory()
print(kept - before, resident() - before)
"""


def test_memory_below_what_stays_is_returned_when_asked() -> None:
    ran = subprocess.run([sys.executable, "-c", _FREED], cwd=REPOSITORY, env={}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    kept, returned = map(int, ran.stdout.split())
    if kept < 150:
        pytest.skip("another allocator")
    assert returned < 20
