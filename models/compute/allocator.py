"""The memory allocator of programs that compute: it keeps what networks free between their layers.

By default glibc returns large blocks to the system, which clears their pages for the next layer: in a separation of
10 s 9,000 times, which takes a twentieth of its processor time. Imports no torch.
"""

import ctypes
import os
from collections.abc import Mapping

# Of glibc's malloc.h. With them blocks of up to 32 MiB come from the heap, of which up to 64 MiB stay when they are
# free: as it does by itself once a program has freed a block of 32 MiB.
_OPTIONS = {-3: 32 << 20, -1: 64 << 20}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Set this process's allocator; return whether it is: not another C library's, nor where the user has set it."""
    if "GLIBC_TUNABLES" in environment or any(name.startswith("MALLOC_") for name in environment):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    return set_option is not None and all(set_option(name, value) for name, value in _OPTIONS.items())
