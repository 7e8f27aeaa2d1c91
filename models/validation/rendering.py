"""Rendering of listed mixtures: segments of clips, where they sound, and sources at equal energy.

Clips are named by key, segments by their first sample at 32 kHz (negative: the clip begins later in the segment).
"""

from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.corpus.clips import RATE, Clip, Clips
from models.corpus.decoded import decode
from models.corpus.sources.recordings import Recording, Source

FRAME = RATE // 100
SOUNDING_RANGE = 1e-4  # a frame sounds if its power is within 40 dB of the loudest one
PEAK = 0.99
SHORTEST = 0.1  # seconds of a clip
LEAST_ENERGY = 1e-2  # of a clip, sum of squares

Groups = dict[str, dict[str, list[Clip]]]  # clips by group by class


class Sounds:
    """Clips of one or several splits by key. Raises ValueError for duplicate keys."""

    def __init__(self, *splits: Clips) -> None:
        self._places: dict[str, tuple[Clips, Clip]] = {}
        for split in splits:
            for clip in split.clips:
                if clip.key in self._places:
                    raise ValueError(f"two clips have the key {clip.key}: they cannot be listed by it")
                self._places[clip.key] = (split, clip)

    def clip(self, key: str) -> Clip:
        """Return the clip with a key. Raises ValueError if there is none: the list is of another corpus."""
        if key not in self._places:
            raise ValueError(f"the corpus has no clip {key}: the listed mixtures are another corpus's")
        return self._places[key][1]

    def waveform(self, key: str) -> np.ndarray:
        """Return the whole clip, float32."""
        clip = self.clip(key)
        return self._places[key][0].waveform(clip)

    def segment(self, key: str, start: int, samples: int) -> np.ndarray:
        """Return `samples` of a clip from `start`, with silence outside the clip."""
        sound = np.zeros(samples, np.float32)
        taken = self.waveform(key)[max(0, start) : max(0, start + samples)]
        place = max(0, -start)
        sound[place : place + len(taken)] = taken[: samples - place]
        return sound


def decode_clips(source: Source, keys: Set[str]) -> Clips:
    """Decode some clips of a split, without caching the whole split."""
    samples, clips, start = [np.zeros(0, np.int16)], [], 0
    for row in source:
        if not isinstance(row, Recording) or row.key not in keys:
            continue
        recording, waveform, _ = decode(row)
        if recording is not None:
            samples.append(waveform)
            clips.append(Clip(row.key, start, len(waveform), row.mids, row.group, row.kind, row.source))
            start += len(waveform)
    return Clips(np.concatenate(samples), clips)


def usable(clips: Clips) -> Groups:
    """Return the clips that are long and loud enough for a source or an example."""
    groups: Groups = defaultdict(lambda: defaultdict(list))
    for clip in clips.clips:
        if clip.frames >= SHORTEST * RATE and np.square(clips.waveform(clip)).sum() > LEAST_ENERGY:
            groups[clip.mid][clip.group].append(clip)
    return groups


def random_start(clip: np.ndarray, samples: int, random: np.random.Generator) -> int:
    """Draw the start of a segment of a clip (n,): the loudest of eight, since a segment of a sparse clip may be silent;
    a shorter clip is placed anywhere in the segment."""
    spare = len(clip) - samples
    if spare <= 0:
        return -int(random.integers(-spare + 1))
    power = np.concatenate([[0.0], np.square(clip, dtype=np.float64).cumsum()])
    return int(max(random.integers(0, spare + 1, 8), key=lambda first: power[first + samples] - power[first]))


def sounding(sound: np.ndarray) -> np.ndarray:
    """Return where a segment sounds, (samples,) bool, in frames of 10 ms, which must divide the segment."""
    power = np.square(sound, dtype=np.float64).reshape(-1, FRAME).sum(1)
    return (power > SOUNDING_RANGE * power.max()).repeat(FRAME)


@dataclass(frozen=True)
class Mix:
    """A mixture (samples,) and its two sources, whose sum it is."""

    mixture: np.ndarray
    target: np.ndarray
    interference: np.ndarray


def stack(mixes: Sequence[Mix]) -> tuple[Tensor, Tensor, Tensor]:
    """Return mixtures, targets and interferences of mixes of one length, (B, samples) each."""
    parts = zip(*((mix.mixture, mix.target, mix.interference) for mix in mixes), strict=True)
    mixtures, targets, others = (torch.from_numpy(np.stack(part)) for part in parts)
    return mixtures, targets, others


def mix_sources(target: np.ndarray, interference: np.ndarray, over: np.ndarray | None = None) -> Mix:
    """Mix two sources at equal energy over the samples `over` (bool; None: all), attenuated together if they clip."""
    part = slice(None) if over is None else over
    energies = [np.square(sound[part], dtype=np.float64).sum() for sound in (target, interference)]
    interference = interference * np.float32(np.sqrt(energies[0] / energies[1]))
    gain = np.float32(min(1.0, PEAK / np.abs(target + interference).max()))
    target, interference = target * gain, interference * gain
    return Mix(target + interference, target, interference)


def add_third(mix: Mix, third: np.ndarray) -> Mix:
    """Add a third source with the target's energy over the segment to the interference."""
    energies = [np.square(sound, dtype=np.float64).sum() for sound in (mix.target, third)]
    others = mix.interference + third * np.float32(np.sqrt(energies[0] / energies[1]))
    gain = np.float32(min(1.0, PEAK / np.abs(mix.target + others).max()))
    return Mix((mix.target + others) * gain, mix.target * gain, others * gain)


def loudest_start(clip: np.ndarray, samples: int) -> int:
    """Return the start of the segment with the most energy, to 10 ms; a shorter clip is placed in the middle."""
    spare = len(clip) - samples
    if spare <= 0:
        return -(-spare // 2)
    power = np.concatenate([[0.0], np.square(clip, dtype=np.float64).cumsum()])
    starts = np.arange(0, spare + 1, FRAME)
    return int(starts[(power[starts + samples] - power[starts]).argmax()])
