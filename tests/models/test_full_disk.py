"""A full disk is an error of the system, whichever library writes the file."""

import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.errors import DiskFull
from models.encoding import FORMATS, open_writer

LIMIT = 64 * 1024


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond LIMIT, so that writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("format", FORMATS)
def test_a_writer_on_a_full_disk_raises_what_the_system_says(format: str, tmp_path: Path):
    noise = np.random.default_rng(0).uniform(-1, 1, (2, 48000)).astype(np.float32)
    with pytest.raises(OSError) as raised, open_writer(tmp_path / "noise", format, 48000, 2) as writer:
        for _ in range(60):
            writer.write(noise)
    assert raised.value.errno in DiskFull.errnos
    assert list(tmp_path.iterdir()) == []
