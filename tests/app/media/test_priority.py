"""Priorities of decoder processes."""

import os
import subprocess
import sys

from tests.conftest import REPOSITORY

WORK = """
import os, time
from app.media import priority
priority.lower_after(0.2)
levels = [os.nice(0)]
while time.process_time() < 5 and levels[-1] == levels[0]:
    levels.append(os.nice(0))
print(levels[0], levels[-1], time.process_time() > 0.2)
"""


def test_long_work_yields_to_short_work() -> None:
    ours = os.nice(0)
    output = subprocess.check_output([sys.executable, "-c", WORK], cwd=REPOSITORY, text=True)
    assert output.split() == [str(ours), str(min(ours + 5, 19)), "True"]
