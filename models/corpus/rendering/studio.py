"""From rendered parts to a mix that is their sum: levels, a room, compression, peaks.

Letters: n samples at 32 kHz.
"""

import numpy as np
import torch

from models.corpus.augmentation import in_rooms, rooms
from models.corpus.clips import RATE

FRAME = RATE // 100  # samples over which loudness is measured
SOUNDING_DB = -40.0  # of a frame below a part's loudest one
AUDIBLE_DB = -35.0  # lowest level of a part, relative to the mix
LEAST_SECONDS = 0.8  # that a part sounds
# Of a part where it sounds, in dB relative to each other, by role in the song; and how much it varies.
ROLE_DB = {"drums": 0.0, "bass": -3.0, "comping": -5.0, "melody": -2.0, "pad": -10.0, "colour": -6.0, "vocals": 0.0}
SPREAD_DB = 3.0
ROOM_SHARE, COMPRESSED_SHARE = 0.45, 0.5
PEAKS = (0.3, 0.95)
MOST = 0.98  # of any part
ATTACK, RELEASE = 0.01, 0.2  # seconds

Parts = dict[str, np.ndarray]


def powers(sound: np.ndarray) -> np.ndarray:
    """Return the mean power of each frame of a sound (n,)."""
    return np.square(sound[: len(sound) // FRAME * FRAME], dtype=np.float64).reshape(-1, FRAME).mean(1)


def sounding_frames(sound: np.ndarray) -> np.ndarray:
    """Return which frames of a sound (n,) sound."""
    frames = powers(sound)
    return frames > frames.max(initial=0.0) * 10 ** (SOUNDING_DB / 10)


def at_level(sound: np.ndarray, decibels: float) -> np.ndarray:
    """Return a sound at a level relative to full scale where it sounds; silence stays as it is."""
    heard = sounding_frames(sound)
    if not heard.any():
        return sound
    return sound * np.float32(10 ** (decibels / 20) / np.sqrt(powers(sound)[heard].mean()))


def audible(parts: Parts) -> Parts:
    """Return the parts that do not hardly sound."""
    whole = float(powers(np.sum(list(parts.values()), axis=0)).mean()) if parts else 0.0
    return {
        name: sound
        for name, sound in parts.items()
        if powers(sound).mean() > whole * 10 ** (AUDIBLE_DB / 10)
        and sounding_frames(sound).sum() * FRAME / RATE >= LEAST_SECONDS
    }


def in_room(parts: Parts, random: np.random.Generator) -> Parts:
    """Put the parts in one room, each as far into it as drawn; some stay outside."""
    response = rooms(1, RATE, random)
    sends = {name: float(random.uniform(0.2, 1.0)) if random.random() < 0.75 else 0.0 for name in parts}
    return {
        name: in_rooms(torch.from_numpy(sound)[None], response * sends[name])[0].numpy() if sends[name] else sound
        for name, sound in parts.items()
    }


def compression(mix: np.ndarray, threshold_db: float, ratio: float) -> np.ndarray:
    """Return the gain (n,) of a compressor at a mix (n,). Applied to its parts, it keeps their sum the compressed mix.

    threshold_db: relative to the mix's root mean square."""
    levels = np.sqrt(powers(mix))
    followed, level = np.empty(len(levels)), 0.0
    up, down = (float(np.exp(-FRAME / RATE / seconds)) for seconds in (ATTACK, RELEASE))
    for at, now in enumerate(levels.tolist()):
        keep = up if now > level else down
        level = keep * level + (1 - keep) * now
        followed[at] = level
    over = 20 * np.log10(np.maximum(followed, 1e-9) / np.sqrt(np.square(levels).mean() + 1e-18)) - threshold_db
    decibels = -np.maximum(over, 0) * (1 - 1 / ratio)
    times = (np.arange(len(levels)) + 0.5) * FRAME
    return (10 ** (np.interp(np.arange(len(mix)), times, decibels) / 20)).astype(np.float32)


def produce(parts: Parts, random: np.random.Generator) -> tuple[Parts, bool]:
    """Return the audible parts of a mix as it is produced, and whether they are in a room.

    No part and no mix clips. At most one part may be left."""
    parts = audible(parts)
    roomy = bool(random.random() < ROOM_SHARE)
    if roomy:
        parts = in_room(parts, random)
    squeezed, threshold, ratio = random.random() < COMPRESSED_SHARE, random.uniform(-9, 0), random.uniform(1.5, 5)
    peak = random.uniform(*PEAKS)
    if not parts:
        return parts, roomy
    if squeezed:
        gain = compression(_sum(parts), threshold, ratio)
        parts = {name: sound * gain for name, sound in parts.items()}
    highest = max(
        float(np.abs(_sum(parts)).max()) / peak, *(float(np.abs(part).max()) / MOST for part in parts.values())
    )
    return {name: sound * np.float32(1 / highest) for name, sound in parts.items()}, roomy


def _sum(parts: Parts) -> np.ndarray:
    return np.stack(list(parts.values())).sum(axis=0, dtype=np.float32)
