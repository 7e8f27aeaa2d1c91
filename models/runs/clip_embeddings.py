"""Cache of the query embeddings of all clips: training needs thousands a minute, and the query encoder is frozen."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.compute.precision import Arithmetic, device_of
from models.corpus.augmentation import SPEEDS, equalise, filter_points, play
from models.corpus.clips import RATE, Clip, Clips
from models.errors import SilentQuery
from models.networks import Detector
from models.queries.query import BASE_RULES, QueryRules, cut

VERSIONS = 4  # of each clip: unchanged, and augmented
LAYOUT = 2  # version of the cache: changes whenever the embeddings are computed differently
BATCH = 64
REPORT = 1000  # clips between two calls of `advance`


def load(
    query_encoder: Detector,
    clips: Clips,
    folder: Path,
    rules: QueryRules = BASE_RULES,
    advance: Callable[[int], None] = lambda _: None,
) -> np.ndarray:
    """Return queries (clips, VERSIONS, D) float16; version 0 is the clip unchanged, zeros where it is silent.

    Mapped from a file in `folder`, which is computed unless it holds the embeddings of these clips by this encoder and
    these rules: AudioSet's do not fit in memory."""
    path = folder / f"{fingerprint(query_encoder, clips, str(rules))}.npy"
    if path.exists():
        return np.load(path, mmap_mode="r")
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    shape = (len(clips.clips), VERSIONS, query_encoder.embedding_size)
    embeddings = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
    random = np.random.default_rng(0)
    waiting: list[tuple[int, int, Tensor]] = []
    silent: list[tuple[int, int]] = []
    for index, clip in enumerate(clips.clips):
        for version in range(VERSIONS):
            samples = torch.from_numpy(clips.waveform(clip)) if version == 0 else _vary(clips, clip, random)
            try:
                waiting.append((index, version, cut(samples, RATE, rules).waveforms))
            except SilentQuery:  # shorter than a query may be, or a silent part
                silent.append((index, version))
        if sum(len(windows) for _, _, windows in waiting) >= BATCH:
            _embed_waiting(query_encoder, waiting, embeddings)
        if index % REPORT == REPORT - 1:
            advance(index + 1)
    if waiting:
        _embed_waiting(query_encoder, waiting, embeddings)
    for index, version in silent:  # fall back to the unchanged clip
        embeddings[index, version] = embeddings[index, 0]
    embeddings.flush()
    partial.replace(path)
    return np.load(path, mmap_mode="r")


def have_embeddings(embeddings: np.ndarray) -> np.ndarray:
    """Return which clips (clips,) have an embedding, and can be queries; in parts, since not all need fit in memory."""
    parts = [embeddings[at : at + REPORT, 0].any(1) for at in range(0, len(embeddings), REPORT)]
    return np.concatenate([np.zeros(0, bool), *parts])


def keep_share(embeddings: np.ndarray, clips: Clips, share: float) -> np.ndarray:
    """Return the queries with zeros for all but a share of the source groups. The choice is deterministic, and a
    smaller share is a subset of a larger one."""
    if share >= 1:
        return embeddings

    def is_kept(group: str) -> bool:
        return int.from_bytes(hashlib.sha256(group.encode()).digest()[:4]) < share * 2**32

    return embeddings * np.array([is_kept(clip.group) for clip in clips.clips])[:, None, None]


def _embed_waiting(query_encoder: Detector, waiting: list[tuple[int, int, Tensor]], embeddings: np.ndarray) -> None:
    batch = torch.cat([windows for _, _, windows in waiting])
    device = device_of(query_encoder)  # pyright: ignore[reportArgumentType]  encoders are modules
    with torch.inference_mode(), Arithmetic.on(device).masks():
        vectors = torch.cat([query_encoder.embed(part.to(device)).float().cpu() for part in batch.split(BATCH)]).numpy()
    place = 0
    for index, version, windows in waiting:
        embeddings[index, version] = vectors[place : place + len(windows)].mean(0)
        place += len(windows)
    waiting.clear()


def _vary(clips: Clips, clip: Clip, random: np.random.Generator) -> Tensor:
    """Return a part of the clip at a random speed through a random equaliser."""
    frames = min(clip.frames, int(random.uniform(0.5, 6) * RATE))
    start = random.integers(0, clip.frames - frames + 1)
    speed = random.uniform(*SPEEDS)
    samples = torch.from_numpy(np.array(clips.samples[clip.start : clip.start + clip.frames]))
    place = torch.zeros(1, dtype=torch.long), torch.tensor([clip.frames])
    moving = torch.tensor([float(start)], dtype=torch.float64), torch.tensor([speed], dtype=torch.float64)
    played = play(samples, *place, *moving, int(frames / speed))
    return equalise(played, torch.from_numpy(filter_points(random))[None], RATE)[0]


def weights_digest(query_encoder: Any) -> str:
    """Return a digest of a query encoder's weights."""
    found = hashlib.sha256()
    for weights in query_encoder.state_dict().values():
        found.update(weights.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def fingerprint(query_encoder: Detector, clips: Clips, how: str) -> str:
    """Return a digest of what cached outputs depend on: the encoder's weights, the clips, and the method."""
    found = hashlib.sha256(f"{LAYOUT} {how} {weights_digest(query_encoder)}".encode())
    if getattr(query_encoder, "probabilities", False):  # the same weights, other outputs
        found.update(b"probabilities\n")
    for clip in clips.clips:
        found.update(f"{clip.key} {clip.start} {clip.frames}\n".encode())
    return found.hexdigest()[:16]
