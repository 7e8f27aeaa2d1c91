"""The limits of this machine: what no program on it can exceed."""

import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

from models.compute.precision import has_bfloat16

_SIZE = 2048  # of square matrices: as large as the layers of large networks, and larger than the caches
_EMULATED_SIZE = 256  # where the processor has no bfloat16, whose product then takes a thousand times as long
_COPIED_BYTES = 1 << 28
_REPEATS = 5  # the fastest counts: other programs only slow a measurement down


def measure() -> dict:
    """Return processor, cores, matrix products in float32 and bfloat16 (GFLOP/s) and copied memory (GB/s, read and
    written bytes each counted once)."""
    half_size = _SIZE if has_bfloat16("cpu") else _EMULATED_SIZE
    matrix, half = torch.rand(_SIZE, _SIZE), torch.rand(half_size, half_size).bfloat16()
    block = torch.zeros(_COPIED_BYTES, dtype=torch.uint8)
    target = torch.empty_like(block)
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "float32_gflops": 2 * _SIZE**3 / _fastest(lambda: matrix @ matrix) / 1e9,
        "bfloat16_gflops": 2 * half_size**3 / _fastest(lambda: half @ half) / 1e9,
        "copy_gb_per_second": 2 * _COPIED_BYTES / _fastest(lambda: target.copy_(block)) / 1e9,
    }


def peak_mib() -> float:
    """Return the most memory that this process has had, in MiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux; in bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    # `getrusage` would count what the process had that started this one, too.
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


def _fastest(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
