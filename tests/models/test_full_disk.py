"""A full disk is an error of the system, whichever library writes the file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from app.errors import DiskFull
from models.encoding import open_writer
from models.formats import FORMATS
from models.options import SeparationOptions
from models.separation import Source
from models.stems import Spool, SpooledStems, write
from tests.full_disk import full_disk


@pytest.fixture(name="full_disk")
def _full_disk() -> Iterator[None]:
    with full_disk():
        yield


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("format", FORMATS)
def test_a_writer_on_a_full_disk_raises_what_the_system_says(format: str, tmp_path: Path):
    noise = np.random.default_rng(0).uniform(-1, 1, (2, 48000)).astype(np.float32)
    with pytest.raises(OSError) as raised, open_writer(tmp_path / "noise", format, 48000, 2) as writer:
        for _ in range(60):
            writer.write(noise)
    assert raised.value.errno in DiskFull.errnos
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("format", FORMATS)
def test_stems_on_a_full_disk_leave_no_files(format: str, tmp_path: Path):
    mixture = torch.rand(2, 6 * 48000, generator=torch.Generator().manual_seed(0)) - 0.5
    source = Source(48000, 2, mixture.shape[1], lambda: mixture.split(65536, dim=1))
    with Spool(tmp_path, 2, 2, file_bytes=4096) as spool:
        for block in mixture.split(4800, dim=1):
            for stem in range(2):
                spool.append(stem, block / 2)
        separated = SpooledStems(source, spool, [None] * 2)
        with pytest.raises(OSError) as raised:
            write(separated, ["a", "b"], tmp_path, SeparationOptions(format=format), lambda frames: None)
    assert raised.value.errno in DiskFull.errnos
    assert list(tmp_path.iterdir()) == []
