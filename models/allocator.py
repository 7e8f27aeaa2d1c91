"""The memory allocator of programs that compute: glibc's, with huge pages, and without giving memory back all the time.

Networks read and write tensors of megabytes. In pages of 4 KiB the processor looks up their addresses all the time, and
by default glibc returns most of them to the system after each layer, which fills them with zeros for the next one: of a
separation of 10 s 9,000, and both together make it a tenth slower. What glibc keeps beyond what is in use is 64 MiB, as
by default once a program has freed a tensor of 32 MiB.

The system must allow huge pages to those that ask (`/sys/kernel/mm/transparent_hugepage/enabled`: `madvise`, or
`always`). Other C libraries, and glibc before 2.35, ignore the variable or a part of it. Imports no torch.
"""

import os
import sys
from collections.abc import Mapping

_HELD = 32 << 20  # bytes: larger blocks come from the system, and go back to it
_TUNABLES = {"hugetlb": 1, "mmap_threshold": _HELD, "trim_threshold": 2 * _HELD}


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a program must be started with; none where the user has set any of the allocator."""
    if "GLIBC_TUNABLES" in environment or any(name.startswith("MALLOC_") for name in environment):
        return {}
    return {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in _TUNABLES.items())}


def restart() -> None:
    """Start this program again with these variables, in the same process, unless it has them: glibc reads them once.

    To be called before anything is imported that takes time. Linux only.
    """
    missing = variables(os.environ)
    if missing and sys.platform == "linux":
        words = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, words, {**os.environ, **missing})  # noqa: S606 - this very program
