"""What is done to be fast changes nothing that can be heard: against `exact`, one at a time, in one pass."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from models import checkpoints
from models.audio import Waveform
from models.detection import Detection, framewise
from models.engine import Engine, SeparatedFiles
from models.media import AudioUndecodable
from models.options import SeparationOptions
from models.separation.short_recordings import RecordingFile
from models.validation.metrics import sdr, si_sdr
from tests.models.demo_recordings import RECORDINGS, recording

WAV = SeparationOptions(format="wav", gate=False)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Clips of 1.4 s of a real mixture."""
    folder = tmp_path_factory.mktemp("clips")
    samples, rate = soundfile.read(RECORDINGS / "mixture.flac", dtype="float32", always_2d=True)
    paths = []
    for number in range(4):
        paths.append(folder / f"{number}.wav")
        start = round(number * 1.4 * rate)
        soundfile.write(paths[-1], samples[start : start + round(1.4 * rate)], rate, "FLOAT")
    return paths


def separate_many(
    engine: Engine, clips: list[Path], folder: Path, options: SeparationOptions = WAV
) -> list[SeparatedFiles]:
    files = [RecordingFile(path, folder, path.stem) for path in clips]
    made = dict(engine.separate_files(files, {"bird": engine.label("Bird")}, options))
    answers = [made[file] for file in files]
    assert all(isinstance(answer, SeparatedFiles) for answer in answers)
    return answers  # pyright: ignore[reportReturnType]


def samples(files: list[SeparatedFiles]) -> list[torch.Tensor]:
    return [torch.from_numpy(soundfile.read(made.stems[0].path, dtype="float32")[0].T.copy()) for made in files]


def test_batches_of_short_recordings_are_close_to_exact_ones(
    exact: Engine, auto: Engine, clips: list[Path], tmp_path: Path
) -> None:
    def alone(engine: Engine, folder: str) -> list[SeparatedFiles]:
        bird = {"bird": engine.label("Bird")}
        return [engine.separate_file(path, bird, tmp_path / folder / path.stem, WAV) for path in clips]

    exactly, one_by_one, many = (
        samples(files)
        for files in (alone(exact, "exact"), alone(auto, "auto"), separate_many(auto, clips, tmp_path / "many"))
    )
    reference, single, batched = (torch.cat(stems, dim=1) for stems in (exactly, one_by_one, many))
    target = recording("target").samples[:, : reference.shape[1]]
    quality = [si_sdr(stem, target).mean() for stem in (reference, single, batched)]
    assert abs(quality[2] - quality[1]) <= 0.05, "by batches"
    assert quality[0] - quality[2] <= 0.05, "by precision; test_base holds whole recordings to it both ways"
    assert sdr(batched, reference).min() > 30
    for one, other in zip(exactly, samples(separate_many(exact, clips, tmp_path / "batches")), strict=True):
        assert (one - other).abs().max() < 1e-5


def test_the_same_computation_gives_the_same_bytes(auto: Engine, clips: list[Path], tmp_path: Path) -> None:
    options = SeparationOptions(format="flac")
    first, again = (separate_many(auto, clips, tmp_path / name, options) for name in ("first", "again"))
    assert [one.computation for one in first] == [one.computation for one in again]
    assert set(first[0].computation) == {"threads", "batch", "bits", "speeds"}
    for one, other in zip(first, again, strict=True):
        assert one.stems[0].path.read_bytes() == other.stems[0].path.read_bytes()


@pytest.mark.parametrize(("precision", "ratio"), [("exact", 100), ("auto", 50)])
def test_the_batch_does_not_matter(precision: str, ratio: float, exact: Engine, auto: Engine, tmp_path: Path) -> None:
    """Beyond rounding: in float32 by 1e-5 at most."""
    engine = exact if precision == "exact" else auto
    queries = {name: engine.label(name) for name in ("Bird", "Siren", "Dog")}
    mixture = recording("mixture")
    one, more = (
        engine.separate(mixture, queries, SeparationOptions(window=4, batch=batch)).stems["Bird"].samples
        for batch in (1, 5)
    )
    assert sdr(more, one).min() > ratio
    assert precision == "auto" or (more - one).abs().max() < 1e-5


def test_the_difference_to_one_pass_has_nothing_at_the_seams_of_windows(exact: Engine) -> None:
    """Steps of the difference at seams, compared with those elsewhere: a click would be one. Without context and
    overlap it is."""
    parts = [recording(name).samples.mean(dim=0) for name in ("mixture", "example", "target")]
    mixture, rate = Waveform(torch.cat(parts * 2)[None], 44100), 44100
    query = {"bird": exact.label("Bird")}

    def separated(options: SeparationOptions) -> np.ndarray:
        return exact.separate(mixture, query, options).stems["bird"].samples[0].numpy()

    one_pass = separated(SeparationOptions(window=mixture.duration + 2, gate=False))

    def steps_at_seams(context: float, overlap: float) -> float:
        options = SeparationOptions(window=3, context=context, overlap=overlap, gate=False)
        steps = np.abs(np.diff(separated(options) - one_pass))
        stride = 3 - 2 * context - overlap
        seams = np.arange(3 - 2 * context - overlap / 2, mixture.duration - 3, stride)
        elsewhere = np.random.default_rng(0).uniform(3, mixture.duration - 3, 2000)
        near = [np.mean([steps[int(at * rate) - 8 :][:16].max() for at in places]) for places in (seams, elsewhere)]
        return float(near[0] / near[1])

    assert steps_at_seams(0.5, 0.25) < 1.5 < 3 < steps_at_seams(0, 0)


def test_batches_of_short_recordings_are_detected_as_one_at_a_time(
    exact: Engine, clips: list[Path], tmp_path: Path
) -> None:
    """Curves differ by rounding, whatever the length; one that fails, and one that is longer, do not stop others."""
    whole, rate = soundfile.read(RECORDINGS / "mixture.flac", dtype="float32", always_2d=True)
    tiny, long, broken = (tmp_path / name for name in ("tiny.wav", "long.wav", "broken.wav"))
    soundfile.write(tiny, whole[: rate // 100], rate, "FLOAT")
    soundfile.write(long, np.concatenate([whole] * 3), rate, "FLOAT")
    broken.write_text("no audio")
    paths = [*clips[:2], broken, tiny, long, *clips[2:]]
    found = dict(exact.detect_files(paths, threshold=0.1))
    assert found.keys() == set(paths)
    assert isinstance(found.pop(broken), AudioUndecodable)
    for path, many in found.items():
        alone = exact.detect_file(path, threshold=0.1)
        assert isinstance(many, Detection)
        assert many.framewise.shape == alone.framewise.shape
        assert (many.framewise - alone.framewise).abs().max() < 1e-5
        assert many.duration == alone.duration
        assert [tag.label for tag in many.tags] == [tag.label for tag in alone.tags]
        assert [(event.label, event.start, event.end) for event in many.events] == [
            (event.label, event.start, event.end) for event in alone.events
        ]


@pytest.mark.parametrize("seconds", [0.3, 2.0, 10.0, 14.4, 14.5, 31.0])
def test_windows_of_a_timeline_are_as_one_pass_over_the_recording(seconds: float) -> None:
    detector = checkpoints.load("base").detector
    noise = torch.randn(round(seconds * detector.rate), generator=torch.Generator().manual_seed(0))
    recording_ = 0.1 * noise * torch.linspace(0, 6 * seconds, len(noise)).sin()
    with torch.inference_mode():
        curve, _ = framewise(detector, recording_.split(65536), lambda windows: detector(windows).framewise)
        assert (curve - detector(recording_[None]).framewise[0]).abs().max() < 1e-5
