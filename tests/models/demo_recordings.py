"""The demonstration's recordings: birds over a guitar, the birds alone, another bird."""

import soundfile
import torch

from models.audio import Waveform
from tests.conftest import REPOSITORY

RECORDINGS = REPOSITORY / "app" / "demo" / "recordings"


def recording(name: str) -> Waveform:
    samples, rate = soundfile.read(RECORDINGS / f"{name}.flac", dtype="float32", always_2d=True)
    return Waveform(torch.from_numpy(samples.T.copy()), rate)
