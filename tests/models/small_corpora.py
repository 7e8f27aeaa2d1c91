"""Small corpora of every kind, made on the spot."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import soundfile

from models.labels import CLASSES, find

RATE = 32_000


def tone(hertz: float, seconds: float = 0.5, rate: int = RATE, level: float = 0.3) -> np.ndarray:
    """A sine (n,) that fades out, so that its start can be told from its end."""
    times = np.arange(round(seconds * rate)) / rate
    return level * np.sin(2 * np.pi * hertz * times) * np.linspace(1, 0.2, len(times))


def noise(seed: int, seconds: float = 0.5, level: float = 0.1) -> np.ndarray:
    """Noise (n,) at 32 kHz below 4 kHz, the same for the same seed, that swells and fades in its own way."""
    count = round(seconds * RATE)
    random = np.random.default_rng(seed)
    spectrum = np.fft.rfft(random.standard_normal(count))
    spectrum[len(spectrum) // 4 :] = 0
    envelope = np.interp(np.linspace(0, 7, count), np.arange(8), random.uniform(0.1, 1, 8))
    sound = np.fft.irfft(spectrum, count) * envelope
    return level * sound / np.abs(sound).max()


def encode(sound: np.ndarray, format: str = "FLAC", rate: int = RATE, subtype: str | None = None) -> bytes:
    """An audio file's bytes by libsndfile; `sound` is (n,) or (n, channels)."""
    target = io.BytesIO()
    soundfile.write(target, sound, rate, subtype=subtype, format=format)
    return target.getvalue()


def write_shard(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A tar of files by name."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def pair(key: str, sound: np.ndarray, label: str, **fields: Any) -> list[tuple[str, bytes]]:
    """The two members of a clip."""
    described = {"mids": [find(label).mid], "group": key} | fields
    return [(f"{key}.flac", encode(sound)), (f"{key}.json", json.dumps(described).encode())]


def write_hdf5(
    path: Path,
    names: list[str],
    waveforms: np.ndarray,
    labels: list[list[str]],
    rate: int | None = None,
) -> None:
    """The field's HDF5 layout; waveforms int16 (N, samples)."""
    targets = np.zeros((len(names), CLASSES), bool)
    for row, of_row in enumerate(labels):
        for label in of_row:
            index = find(label).index
            assert index is not None
            targets[row, index] = True
    with h5py.File(path, "w") as file:
        file["audio_name"] = [name.encode() for name in names]
        file["waveform"] = waveforms
        file["target"] = targets
        if rate is not None:
            file.attrs["sample_rate"] = rate


def write_musdb_hq(root: Path, tracks: Mapping[str, Iterable[str]], seconds: float = 0.5) -> None:
    """MUSDB18-HQ's folders: stereo at 44.1 kHz, another tone for each stem."""
    stems = {"mixture": 440, "vocals": 500, "drums": 1_000, "bass": 2_000, "other": 4_000}
    for split, titles in tracks.items():
        for title in titles:
            folder = root / split / title
            folder.mkdir(parents=True)
            for stem, hertz in stems.items():
                sound = tone(hertz, seconds, 44_100)
                soundfile.write(folder / f"{stem}.wav", np.stack([sound, 0.5 * sound], 1), 44_100)


def pitch(samples: np.ndarray) -> float:
    """Hz of the strongest partial of samples (n,) at 32 kHz."""
    return float(np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples))
