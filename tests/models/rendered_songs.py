"""A few seconds of a small band, rendered from note lists: four stems that are music, in time and in tune together.

Two bars of 4/4 at 120 beats a minute are 4 s, so a bar is one of MUSDB's windows of 2 s. Everything is arithmetic with
a seeded generator for noise: the same song comes out on every machine, for any rate.

Letters: n samples, C channels (left, right).
"""

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

RATE = 44_100
BEAT = 0.5  # seconds
BAR = 4 * BEAT
STEMS = ("vocals", "drums", "bass", "other")

# Two bars that repeat. Times and lengths in beats, pitches as MIDI numbers.
CHORDS = ((0, 4, (57, 60, 64)), (4, 4, (55, 59, 62)))
BASS = tuple(
    (beat / 2, 0.5, pitch)
    for beat, pitch in enumerate((33, 33, 45, 33, 36, 36, 40, 40, 31, 31, 43, 31, 38, 38, 35, 35))
)
MELODY = ((0, 1, 69), (1, 0.5, 72), (1.5, 1.5, 71), (3, 1, 69), (4, 2, 67), (6, 1, 71), (7, 1, 74))
KICK, SNARE, HAT = (0, 1.5, 2, 4, 5.5, 6), (1, 3, 5, 7), tuple(np.arange(0, 8, 0.5))
FORMANTS = ((700, 110, 1.0), (1220, 120, 0.6), (2600, 160, 0.3))  # Hz, width in Hz, share: an open vowel
PAN = {"vocals": 0.0, "drums": 0.1, "bass": 0.0, "other": -0.3}  # -1 left, 1 right
PEAK = {"vocals": 0.28, "drums": 0.3, "bass": 0.22, "other": 0.2}  # below 1 together


def song(
    bars: int = 3, seed: int = 0, rate: int = RATE, rests: int = 0, stems: tuple[str, ...] = STEMS
) -> dict[str, np.ndarray]:
    """Stems (n, 2) by name. The seed chooses the key and the noise; the voice comes in after `rests` bars."""
    random = np.random.default_rng(seed)
    key = int(random.integers(-3, 4))
    parts = {"vocals": _voice, "drums": _drums, "bass": _bass, "other": _chords}
    rendered = {}
    for name in STEMS:
        track = np.zeros(round(bars * BAR * rate))
        for start, sound in parts[name](key, rate, bars, random):
            first = round(start * BEAT * rate)
            kept = sound[: max(len(track) - first, 0)]
            track[first : first + len(kept)] += kept
        if name == "vocals":
            track[: round(rests * BAR * rate)] = 0
        track *= PEAK[name] / max(np.abs(track).max(), 1e-9)
        angle = (PAN[name] + 1) * np.pi / 4
        rendered[name] = track[:, None] * [np.cos(angle), np.sin(angle)]
    return {name: rendered[name] for name in stems}


def mixture(stems: Mapping[str, np.ndarray]) -> np.ndarray:
    """The sum of stems, (n, C)."""
    return np.sum(list(stems.values()), axis=0)


def write_hq(root: Path, subset: str, title: str, stems: Mapping[str, np.ndarray], rate: int = RATE) -> Path:
    """One track as MUSDB18-HQ has it: a folder with mixture.wav and a 16-bit file for each stem."""
    folder = root / subset / title
    folder.mkdir(parents=True)
    for name, samples in {"mixture": mixture(stems), **stems}.items():
        soundfile.write(folder / f"{name}.wav", samples, rate, subtype="PCM_16")
    return folder


def write_stem_file(root: Path, subset: str, title: str, stems: Mapping[str, np.ndarray]) -> Path:
    """One track as MUSDB18 has it: an mp4 with five AAC streams, made by ffmpeg."""
    order = ("mixture", "drums", "bass", "other", "vocals")
    path = root / subset / f"{title}.stem.mp4"
    with tempfile.TemporaryDirectory() as folder:
        wavs = write_hq(Path(folder), subset, title, stems)
        inputs = [part for name in order for part in ("-i", str(wavs / f"{name}.wav"))]
        maps = [part for stream in range(len(order)) for part in ("-map", f"{stream}:a")]
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["ffmpeg", "-v", "error", *inputs, *maps, "-c:a", "aac", "-b:a", "256k", str(path)], check=True)
    return path


def _repeat(notes: tuple, bars: int) -> list[tuple]:
    return [(start + 8 * turn, *rest) for turn in range((bars + 1) // 2) for start, *rest in notes]


def _hertz(pitch: float) -> float:
    return 440 * 2 ** ((pitch - 69) / 12)


def _times(beats: float, rate: int) -> np.ndarray:
    return np.arange(round(beats * BEAT * rate)) / rate


def _envelope(times: np.ndarray, attack: float, release: float) -> np.ndarray:
    return np.minimum(1, times / attack) * np.minimum(1, (times[-1] - times) / release)


def _voice(key: int, rate: int, bars: int, random: np.random.Generator):
    """A vowel: harmonics under three formants, with vibrato that sets in late, and breath."""
    for start, beats, pitch in _repeat(MELODY, bars):
        times = _times(beats * 0.95, rate)
        vibrato = 0.02 * np.minimum(1, times / 0.3) * np.sin(2 * np.pi * 5.5 * times)
        pitched = _hertz(pitch + key) * (1 + vibrato)
        phase = 2 * np.pi * np.cumsum(pitched) / rate
        sound = 0.01 * random.standard_normal(len(times))
        for harmonic in range(1, 16):
            frequency = harmonic * _hertz(pitch + key)
            shape = sum(share / (1 + ((frequency - at) / width) ** 2) for at, width, share in FORMANTS)
            sound += (shape + 0.02) / harmonic**0.5 * np.sin(harmonic * phase)
        yield start, sound * _envelope(times, 0.05, 0.08)


def _bass(key: int, rate: int, bars: int, random: np.random.Generator):
    """A plucked string: harmonics that die away, the higher the sooner."""
    for start, beats, pitch in _repeat(BASS, bars):
        times = _times(beats * 0.9, rate)
        harmonics = (
            np.exp(-times * (2 + 2 * harmonic)) / harmonic * np.sin(2 * np.pi * harmonic * _hertz(pitch + key) * times)
            for harmonic in range(1, 8)
        )
        yield start, sum(harmonics) * _envelope(times, 0.005, 0.02)


def _chords(key: int, rate: int, bars: int, random: np.random.Generator):
    """An electric piano by frequency modulation, struck on every beat but the first of each chord's second half."""
    for start, beats, pitches in _repeat(CHORDS, bars):
        for beat in (0, 1, 3):
            times = _times(min(beats - beat, 1.5), rate)
            sound = np.zeros(len(times))
            for pitch in pitches:
                angle = 2 * np.pi * _hertz(pitch + key + 12) * times
                sound += np.exp(-3 * times) * np.sin(angle + 2 * np.exp(-6 * times) * np.sin(angle))
            yield start + beat, sound * _envelope(times, 0.004, 0.05)


def _drums(key: int, rate: int, bars: int, random: np.random.Generator):
    """Kick (a falling sine), snare (noise over a tone) and hi-hat (bright noise)."""
    for start, kind in _repeat(
        tuple((at, kind) for kind, beats in enumerate((KICK, SNARE, HAT)) for at in beats), bars
    ):
        times = _times(0.5, rate)
        noise = random.standard_normal(len(times))
        if kind == 0:
            sound = 2 * np.exp(-14 * times) * np.sin(2 * np.pi * (50 * times - 6 * np.exp(-30 * times)))
        elif kind == 1:
            sound = np.exp(-18 * times) * (0.7 * noise + 0.5 * np.sin(2 * np.pi * 190 * times))
        else:
            sound = 0.4 * np.exp(-50 * times) * np.diff(noise, prepend=0)
        yield start, sound
