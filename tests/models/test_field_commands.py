"""Files as phones, recorders, editors and damage make them, on the command line and in the engine, as mixtures and as
examples: each against FFmpeg's own decode."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from models.audio import Waveform
from models.engine import Engine
from models.media import open_audio
from models.queries.query import Query
from tests.end_to_end.small_model import save_small_model
from tests.ffmpeg_files import Folder
from tests.field_truth import CONTAINERS, FAULTS, assert_heard, expected
from tests.media_files import Samples
from tests.models.test_commands import run

SOAK = bool(os.environ.get("EARMARK_SOAK"))
SHORT = ("aac.avi", "5.1.ogg", "late.mp4", "dts-ac3.mkv")
NAMES = (*CONTAINERS, *FAULTS) if SOAK else SHORT

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("weights") / "small"
    save_small_model(folder)
    return str(folder)


@pytest.fixture
def files(field: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    return [field.make(name) for name in NAMES]


def samples(path: Path) -> tuple[Samples, int]:
    sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return np.asarray(sound.T, np.float32), rate


def test_stem_and_residual_of_every_mixture_are_what_ffmpeg_hears(
    field: Folder, files: list[Path], weights: str
) -> None:
    """One command for all of them; stem and residual add up to the mixture."""
    options = ("--label", "Dog", "--residual", "--format", "wav", "-o", "out", "--weights", weights, "--json")
    rows = json.loads(run("separate", *map(str, files), *options))
    assert [(row["status"], row["error"]) for row in rows] == [("done", "")] * len(files)
    for name, row in zip(NAMES, rows, strict=True):
        stem, rate = samples(Path("out", f"{row['output']}-dog.wav"))
        residual, _ = samples(Path("out", f"{row['output']}-residual.wav"))
        assert_heard(field, name, stem + residual, rate)


@pytest.mark.skipif(not SOAK, reason="takes long; mixtures are decoded in the same way")
def test_every_detection_is_as_long_as_what_ffmpeg_hears(field: Folder, files: list[Path], weights: str) -> None:
    rows = json.loads(run("detect", *map(str, files), "--top", "1", "-o", "out", "--weights", weights, "--json"))
    for name, row in zip(NAMES, rows, strict=True):
        with open_audio(field.make(name)) as reader:
            length = sum(block.shape[1] for block in reader)
        assert float(row["duration"]) == pytest.approx(length / reader.rate, abs=0.01), name


def test_every_example_is_heard_as_ffmpeg_hears_it(field: Folder, files: list[Path], weights: str) -> None:
    """In the engine one by one, and by one command all together."""
    engine = Engine.load(weights, "cpu", "exact")
    heard = []
    for name, path in zip(NAMES, files, strict=True):
        with open_audio(path) as reader:
            decoded = np.concatenate(list(reader), axis=1)
        assert_heard(field, name, decoded, reader.rate)
        sound = Waveform(torch.from_numpy(decoded), reader.rate)
        wanted = expected(field, name, reader.channels)[:, : decoded.shape[1]]
        heard.append(Waveform(torch.from_numpy(wanted.copy()), reader.rate))
        assert likeness(engine.embed([sound]), engine.embed([heard[-1]])) > 0.9999, name
    run("embed", *map(str, files), "-o", "all.safetensors", "--weights", weights)
    assert likeness(Query.load(Path("all.safetensors")), engine.embed(heard)) > 0.9999


def likeness(one: Query, other: Query) -> float:
    return float(torch.nn.functional.cosine_similarity(one.vector, other.vector, dim=0))
