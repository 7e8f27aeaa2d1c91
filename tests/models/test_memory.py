"""Memory is bounded by a window, however long the recording."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LONG = 600 if os.environ.get("EARMARK_SOAK") else 60  # seconds

PROGRAM = """
import resource, sys
from pathlib import Path
import numpy as np
import soundfile
import torch
from models.engine import Engine
from models.query import Query
from tests.models.bands import BANDS, bundle

folder, rate, random = Path(sys.argv[1]), 44100, np.random.default_rng(0)
model = Engine(bundle({"window_seconds": 0.5}), "cpu", "exact")
queries = {name: Query(torch.eye(BANDS)[number], "bands@1") for number, name in enumerate("ab")}
for seconds in (20, int(sys.argv[2])):
    with soundfile.SoundFile(folder / "mixture.wav", "w", rate, 2, "FLOAT") as file:
        for _ in range(seconds):
            file.write(random.standard_normal((rate, 2)).astype("f4") * 0.1)
    model.separate_file(folder / "mixture.wav", queries, folder / "stems")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.soak
def test_a_long_recording_takes_no_more_memory_than_a_short_one(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(LONG)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    short, long = (int(line) for line in ran.stdout.split())
    # Sixty seconds of the mixture and two stems are 60 MiB, ten minutes 600.
    assert long - short < 40, f"{short} MiB became {long} MiB"
