"""The default preset's query encoder against the outputs of the published network."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
from safetensors.torch import load_file

from models.labels import find
from models.networks.yamnet import HOP_FRAMES, PATCH_FRAMES, Yamnet, from_teacher, htk_mel_matrix
from models.runs import teacher


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "teacher" / "golden.npz"))


def patches(detector: Yamnet, waveforms: torch.Tensor) -> torch.Tensor:
    return detector.log_mel(waveforms).unfold(1, PATCH_FRAMES, HOP_FRAMES).transpose(2, 3).flatten(0, 1)


@torch.inference_mode()
def test_scores_and_embeddings_are_the_published_ones(shared: Path, golden: dict[str, np.ndarray]) -> None:
    detector = teacher.load(shared / "teacher", rate=16_000)
    scores, embedding = detector.score_patches(patches(detector, torch.from_numpy(golden["waveform_16k"])[None]))
    assert np.abs(scores.numpy() - golden["scores"]).max() < 1e-5
    assert np.abs(embedding.numpy() - golden["embedding"]).max() < 1e-5 * np.abs(golden["embedding"]).max()


@torch.inference_mode()
def test_embeddings_are_the_same_at_32_khz_without_resampling(shared: Path) -> None:
    low, high = (teacher.load(shared / "teacher", rate) for rate in (16_000, 32_000))
    times = torch.arange(32_000) / 16_000
    # Harmonics up to 3 kHz: far below where the resampler's filter begins.
    tone = sum(torch.sin(2 * torch.pi * 220 * n * times) / n for n in range(1, 14))
    waveform = 0.1 * torch.as_tensor(tone)[None]
    doubled = torchaudio.functional.resample(waveform, 16_000, 32_000)
    heard_low, heard_high = low.score_patches(patches(low, waveform))[1], high.score_patches(patches(high, doubled))[1]
    assert torch.cosine_similarity(heard_low, heard_high[: len(heard_low)]).min() > 0.98


def test_mel_bands_are_the_published_ones(shared: Path) -> None:
    published = load_file(shared / "teacher" / "yamnet.safetensors")["mel"]
    assert torch.allclose(htk_mel_matrix(), published, atol=1e-6)


@torch.inference_mode()
def test_class_of_the_teacher_lands_in_its_row_of_the_527(shared: Path) -> None:
    detector = teacher.load(shared / "teacher")
    row = find("Silence").index
    heard = detector(torch.zeros(1, 32_000))
    assert heard.clipwise.shape == (1, 527)
    assert heard.clipwise.argmax().item() == row


@torch.inference_mode()
@pytest.mark.parametrize("samples", [1, 3_200, 30_720, 32_000, 320_000])
def test_any_length_gives_rows_of_480_ms(samples: int) -> None:
    detector = Yamnet(list(range(521))).eval()
    heard = detector(torch.randn(2, samples) * 0.1)
    assert heard.framewise.shape == (2, -(-samples // 15_360), 527)
    assert heard.embedding.shape == (2, 1024)
    assert torch.equal(heard.clipwise, heard.framewise.amax(1))
    assert not heard.clipwise[:, 521:].any(), "classes that the network does not know stay at 0"


def test_folding_keeps_every_layer(shared: Path) -> None:
    folded = from_teacher(load_file(shared / "teacher" / "yamnet.safetensors"))
    assert set(folded) == set(Yamnet(list(range(521))).state_dict())
