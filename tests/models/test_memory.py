"""Memory is bounded by a window, however long the recording and however many its channels and targets."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

LONG = 600 if os.environ.get("EARMARK_SOAK") else 180  # seconds

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
import soundfile
import torch
from models.bench.machine import peak_mib
from models.engine import Engine
from models.queries.query import Query
from tests.models.bands import BANDS, bundle

folder, rate, random = Path(sys.argv[1]), 44100, np.random.default_rng(0)
model = Engine(bundle({"window_seconds": 0.5}), "cpu", "exact")
queries = {name: Query(torch.eye(BANDS)[number], "bands@1") for number, name in enumerate("ab")}
for seconds in (60, int(sys.argv[2])):
    with soundfile.SoundFile(folder / "mixture.wav", "w", rate, 2, "FLOAT") as file:
        for _ in range(seconds):
            file.write(random.standard_normal((rate, 2)).astype("f4") * 0.1)
    model.separate_file(folder / "mixture.wav", queries, folder / "stems")
    print(round(peak_mib()))
"""


MANY = """
import sys
from pathlib import Path
import numpy as np
import soundfile
import torch
from models.bench.machine import peak_mib
from models.engine import Engine
from models.options import SeparationOptions
from models.queries.query import Query
from tests.models.bands import BANDS, bundle

torch.set_num_threads(1)
folder, rate, random = Path(sys.argv[1]), 32000, np.random.default_rng(0)
model = Engine(bundle({"window_seconds": 0.5}), "cpu", "exact")
soundfile.write(folder / "mixture.wav", random.standard_normal((11 * rate, 4)).astype("f4") * 0.1, rate, "FLOAT")
for count, joint in ((1, False), (16, False), (16, True)):
    queries = {f"t{number}": Query(torch.rand(BANDS), "bands@1") for number in range(count)}
    options = SeparationOptions(format="wav", batch=1, joint=joint)
    files = model.separate_file(folder / "mixture.wav", queries, folder / "stems", options)
    print(round(peak_mib()))
    for stem in files.stems:
        stem.path.unlink()
"""


# What is freed is given back at once: else a peak depends on which free memory the allocator uses again, by 100 MiB.
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def peaks(program: str, *arguments: str) -> list[int]:
    """Return the peak memory in MiB of a process, which prints it after each step."""
    command = [sys.executable, "-c", program, *arguments]
    environment = {**os.environ, **ALLOCATOR}
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environment)
    return [int(line) for line in ran.stdout.split()]


def test_channels_and_targets_take_little_memory(tmp_path):
    """A window of 4 channels is 5 MiB, of 16 targets 80; with `joint` all of its spectra are in memory, 135."""
    one, many, joint = peaks(MANY, str(tmp_path))
    assert many - one < 85, f"{one} MiB became {many} MiB"
    assert joint - one < 225, f"{one} MiB became {joint} MiB"


@pytest.mark.soak
def test_a_long_recording_takes_no_more_memory_than_a_short_one(tmp_path):
    short, long = peaks(PROGRAM, str(tmp_path), str(LONG))
    # Two minutes more of the mixture and two stems are 120 MiB, nine minutes 540.
    assert long - short < 40, f"{short} MiB became {long} MiB"
