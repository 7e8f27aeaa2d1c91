"""The load script runs completely; its figures are meaningful only on an idle machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import programs
from tests.conftest import REPOSITORY

SMALL = ["--seconds", "1", "--uploads", "3", "--megabytes", "4", "--jobs", "2"]


@pytest.mark.soak
@pytest.mark.skipif(not os.environ.get("EARMARK_SOAK"), reason="takes a minute: make soak")
def test_the_table_is_written(tmp_path: Path, small_model: Path) -> None:
    if programs.find("wrk") is None:
        pytest.skip("wrk is not installed, and `make tools` could not fetch it")
    document = tmp_path / "README.md"
    document.write_text("# Load\n<!-- load: begin -->\n<!-- load: end -->\nafter\n")
    command = [sys.executable, "-m", "tests.load", *SMALL, "--model", str(small_model), "--into", str(document)]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=280)
    text = document.read_text()
    assert text.endswith("<!-- load: end -->\nafter\n")
    for row in (
        "polls a second",
        "running job that changes",
        "new jobs a second",
        "3 uploads of 4 MiB",
        "memory meanwhile",
        "a worker's start",
        "its first job",
        "a job of 10 s",
        "4 worker processes",
    ):
        assert row in text
    assert "failed requests" not in text
