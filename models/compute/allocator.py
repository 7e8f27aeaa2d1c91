"""The memory allocator of programs that compute: it keeps what networks free between their layers, in huge pages.

By default glibc returns large blocks to the system, which clears their pages for the next layer: in a separation of
10 s 9,000 times, which takes a twentieth of its processor time. Blocks above 32 MiB, such as the images of the paper's
separator, are returned in any case; in huge pages they cost a sixteenth of the faults. Imports no torch.
"""

import ctypes
import os
from collections.abc import Mapping, MutableMapping

# Of glibc's malloc.h. With them blocks of up to 32 MiB come from the heap, of which up to 64 MiB stay when they are
# free: as it does by itself once a program has freed a block of 32 MiB.
_OPTIONS = {-3: 32 << 20, -1: 64 << 20}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
_ONE_HEAP = {-8: 1}  # M_ARENA_MAX


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Set this process's allocator; return whether it is: not another C library's, nor where the user has set it."""
    return _set(_OPTIONS, environment)


def use_one_heap(environment: Mapping[str, str] = os.environ) -> bool:
    """Let all threads that start from now on allocate from one heap; return as `keep_freed_memory` does.

    By default each has one of its own, and keeps what it frees: two that compute hold a quarter more.
    """
    return _set(_ONE_HEAP, environment)


def _set(options: Mapping[int, int], environment: Mapping[str, str]) -> bool:
    if "GLIBC_TUNABLES" in environment or any(name.startswith("MALLOC_") for name in environment):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    return set_option is not None and all(set_option(name, value) for name, value in options.items())


def return_freed_memory() -> None:
    """Return what is free to the system now, wherever in the heap it lies; by itself only its end is returned."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc's
        trim(0)


def use_huge_pages(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let torch ask for transparent huge pages for tensors of 2 MiB and more, unless the user has set whether: call it
    before torch is imported, which reads the variable once. Elsewhere than on Linux, or where the system has them
    switched off, it changes nothing."""
    environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")
