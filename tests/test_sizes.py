"""What the front end and the worker estimate covers what the engine writes."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from app.records.separations import OutputRecord
from app.records.sizes import SeparationSize
from models.engine import Engine
from models.options import SeparationOptions
from models.queries.query import Query
from tests.models.bands import BANDS, bundle

SECONDS = 3


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(bundle({"window_seconds": 0.5}), "cpu", "exact")


@pytest.mark.parametrize(
    ("format", "bit_depth", "rate", "channels", "residual"),
    [
        ("wav", None, 192000, 2, True),
        ("wav", 16, 44100, 3, False),
        ("flac", None, 44100, 2, True),
        ("flac", 16, 8000, 1, True),
        ("mp3", None, 8000, 2, True),
        ("ogg", None, 192000, 1, True),
        ("ogg", None, 44100, 2, False),
        ("opus", None, 8000, 2, True),
        ("m4a", None, 96000, 2, True),
    ],
)
def test_files_of_noise_are_no_larger_than_was_estimated(
    engine: Engine, format, bit_depth, rate, channels, residual, tmp_path: Path
):
    """Noise over the full scale: no encoder takes more for any sound."""
    mixture = np.random.default_rng(0).uniform(-1, 1, (SECONDS * rate, channels)).astype(np.float32)
    soundfile.write(tmp_path / "mixture.wav", mixture, rate, "FLOAT")
    queries = {name: Query(torch.ones(BANDS), engine.model_id) for name in "abc"}
    most = 0

    def measure(*_: object) -> None:
        nonlocal most
        most = max(most, sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()))

    options = SeparationOptions(format=format, bit_depth=bit_depth, residual=residual)
    files = engine.separate_file(tmp_path / "mixture.wav", queries, tmp_path / "stems", options, progress=measure)
    measure()
    output = OutputRecord(format=format, bit_depth=bit_depth, residual=residual)
    size = SeparationSize(rate, channels, SECONDS, len(queries), output)
    assert sum(stem.path.stat().st_size for stem in files.stems) <= size.stored_bytes
    assert mixture.nbytes * (1 + len(queries)) <= most <= size.scratch_bytes
