"""A small corpus whose right answers are known: every class is the tones of one band of `bands`."""

import csv
from pathlib import Path

import numpy as np
import soundfile

from models.corpus.clips import RATE, Clip, Clips
from models.labels import find
from tests.models.bands import CENTRES

LABELS = ("Speech", "Siren", "Dog", "Wind")  # of the bands, lowest first; no two are related
MIDS = tuple(find(label).mid for label in LABELS)
GROUPS, TAKES = (6, 6, 6, 4), 2  # of the last class a half has too few for four examples


def corpus(prefix: str = "v", groups: tuple[int, ...] = GROUPS, longest: float = 5.0) -> Clips:
    """Clips of 0.5 s to `longest`, keys and groups beginning with `prefix`; tones of a group are a little apart."""
    random = np.random.default_rng(len(prefix))
    samples, clips, start = [], [], 0
    for band, label in enumerate(LABELS):
        for group in range(groups[band]):
            for take in range(TAKES):
                frames = int(random.uniform(0.5, longest) * RATE)
                frequency = CENTRES[band] * (1 + 0.02 * group + 0.005 * take)
                sound = random.uniform(0.05, 0.3) * np.sin(2 * np.pi * frequency * np.arange(frames) / RATE)
                key, name = f"{prefix}{label}{group}{take}", f"{prefix}/{label}/{group}"
                clips.append(Clip(key, start, frames, (MIDS[band],), name, "effect", {}))
                samples.append((sound * 32767).astype(np.int16))
                start += frames
    return Clips(np.concatenate(samples), clips)


def write(folder: Path, longest: float = 5.0) -> None:
    """Both splits as wav files in a folder, with a CSV of their labels."""
    with (folder / "all.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "labels", "group", "split"])
        for split in ("valid", "train"):
            clips = corpus(split, longest=longest)
            for clip in clips.clips:
                soundfile.write(folder / f"{clip.key}.wav", clips.waveform(clip), RATE)
                writer.writerow([f"{clip.key}.wav", clip.mid, clip.group, split])
