"""Threads of computation: how many a process may use, and how they wait for each other. Imports no torch.

libgomp's threads spin while they wait, by default for milliseconds. On cores that another program needs, or under a
cgroup's quota, they burn the time of those that they wait for. Programs therefore call `prepare` before torch is
imported, which reads its variables once. numpy's matrix products here are small: of one thread, since OpenBLAS's
threads spin too, for milliseconds after each, and have no other setting.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

# Turns of a waiting thread's loop, a few microseconds, before it sleeps: long enough for most waits of a network's
# layers, too short to cost another program anything.
SPIN_COUNT = 1000
# For children that compute little: numeric libraries start threads when they are imported.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def prepare(threads: int = 0) -> None:
    """Set this process's variables, as `variables` returns them, and numpy's, for it and its children."""
    os.environ.update(variables(os.environ, threads))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def variables(
    environment: Mapping[str, str], threads: int = 0, processes: int = 1, root: Path = Path("/")
) -> dict[str, str]:
    """Return OpenMP's variables for one of `processes` that compute at the same time.

    threads: the number of each process's threads, 0: its share of the cores. What the user has set in `environment`
    stays, except for the number of threads, where it is given here.
    """
    chosen = {}
    if threads or "OMP_NUM_THREADS" not in environment:
        chosen["OMP_NUM_THREADS"] = str(threads or usable_cores(processes, root))
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        chosen |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(SPIN_COUNT)}
    return chosen


def usable_cores(processes: int = 1, root: Path = Path("/")) -> int:
    """Return how many cores each of `processes` may use: its share of the cores that this process is allowed to run on
    and that its cgroups pay for, at least 1. A quota of 1.5 cores counts as 2.

    root: the folder that holds `proc/self` and `sys/fs/cgroup`.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min([allowed, *(math.ceil(quota) for quota in _quotas(root))])
    return max(1, cores // processes)


def _quotas(root: Path) -> list[float]:
    """Return the quotas, in cores, of this process's cgroup and of those around it, in version 1 and 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    quotas = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            names, read = ("", "unified"), _quota_of_version_2
        elif "cpu" in controllers.split(","):
            names, read = (controllers, "cpu"), _quota_of_version_1
        else:
            continue
        # In a container the path may be the host's, and only the container's part mounted: then the root's holds.
        inside = PurePosixPath(path.lstrip("/"))
        for name in names:
            top = root / "sys/fs/cgroup" / name
            quotas += [read(top / folder) for folder in (inside, *inside.parents)]
    return [quota for quota in quotas if quota is not None]


def _quota_of_version_2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _quota_of_version_1(folder: Path) -> float | None:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
