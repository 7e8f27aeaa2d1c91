"""Query embeddings of all clips, made once: training asks for thousands a minute, and the ear does not change."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from models.corpus.clips import RATE, Clips
from models.errors import SilentQuery
from models.networks.yamnet import Yamnet
from models.query import BASE_RULES, cut
from models.training.variety import SPEEDS, at_speed, filter_curve

VERSIONS = 4  # the clip as it is, and as it might have been recorded elsewhere
BATCH = 64


def load(ear: Yamnet, clips: Clips, cache: Path, advance: Callable[[int], None] = lambda _: None) -> np.ndarray:
    """Embeddings (clips, VERSIONS, D) float16; version 0 is the clip unchanged. Read from `cache` if there."""
    if cache.exists():
        return np.load(cache)
    embeddings = np.zeros((len(clips.clips), VERSIONS, ear.embedding_size), np.float16)
    random = np.random.default_rng(0)
    waiting: list[tuple[int, int, torch.Tensor]] = []

    def hear() -> None:
        batch = torch.cat([windows for _, _, windows in waiting])
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            heard = torch.cat([ear.embed(part) for part in batch.split(BATCH)]).float().numpy()
        place = 0
        for index, version, windows in waiting:
            embeddings[index, version] = heard[place : place + len(windows)].mean(0)
            place += len(windows)
        waiting.clear()

    for index, clip in enumerate(clips.clips):
        for version in range(VERSIONS):
            samples = clips.waveform(clip) if version == 0 else _varied(clips.waveform(clip), random)
            try:
                waiting.append((index, version, cut(torch.from_numpy(samples), RATE, BASE_RULES).waveforms))
            except SilentQuery:  # shorter than a query may be, or a silent part: the clip as it is stands in
                embeddings[index, version] = embeddings[index, 0]
        if sum(len(windows) for _, _, windows in waiting) >= BATCH:
            hear()
            advance(index)
    if waiting:
        hear()
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.save(cache, embeddings)
    return embeddings


def _varied(samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
    frames = min(len(samples), int(random.uniform(0.5, 6) * RATE))
    start = random.integers(0, len(samples) - frames + 1)
    speed = random.uniform(*SPEEDS)
    played = at_speed(samples[start : start + frames], 0.0, int(frames / speed), speed)
    size = 1 << (len(played) - 1).bit_length()
    curve = filter_curve(size // 2 + 1, RATE, random)
    return np.fft.irfft(np.fft.rfft(played, size) * curve, size)[: len(played)].astype(np.float32)
