"""Soundscapes composed of labelled clips, for corpora without the times of events.

Each is 10 s of two to four clips of unrelated classes at random places over quiet noise. The times of events follow
from each clip's envelope before mixing, exact to a frame of 10 ms.

Letters: n samples, F frames.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from models.corpus.clips import RATE, Clip, Clips
from models.corpus.relations import are_related
from models.labels import ontology

SCENES = 200
SEED = 2026
SECONDS = 10.0
LONGEST_SECONDS = 4.0  # of a clip; a longer one is cut to its loudest part
SHORTEST_SECONDS = 0.1
RANGE_DB = 40.0  # a clip sounds where it is within this of its loudest frame
PAUSE_SECONDS = 0.5  # a longer pause ends an event
FRAME_SECONDS = 0.01
LEVELS_DB = (-30.0, -18.0)  # RMS of a clip where it sounds, drawn evenly
BACKGROUND_DB = -66.0  # RMS of the noise: where quiet clips fade out
_FADE_SECONDS = 0.005


@dataclass(frozen=True)
class KnownEvent:
    """A reference event: a class present from `start` to `end` seconds."""

    mid: str
    start: float
    end: float


@dataclass(frozen=True)
class Scene:
    """A mono recording (n,) float32 at `rate` Hz, and its reference events."""

    name: str
    samples: np.ndarray
    rate: int
    events: list[KnownEvent]

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def compose(clips: Clips, count: int = SCENES, seed: int = SEED) -> Iterator[Scene]:
    """Compose scenes: classes are drawn evenly, then source groups, then clips; the same for the same clips and seed.

    Only classes among the 527 are used. Raises ValueError if there are no two unrelated classes.
    """
    random = np.random.default_rng(seed)
    by_class = _by_class(clips)
    if not any(not are_related(first, second) for first in by_class for second in by_class):
        raise ValueError("soundscapes need clips of two unrelated classes at least")
    for number in range(count):
        yield _scene(f"scene {number}", clips, by_class, random)


def _by_class(clips: Clips) -> dict[str, dict[str, list[Clip]]]:
    """Return the clips that are not silent, by class and source group."""
    found: dict[str, dict[str, list[Clip]]] = defaultdict(lambda: defaultdict(list))
    for clip in clips.clips:
        if clip.frames >= SHORTEST_SECONDS * RATE and clips.waveform(clip).any():
            for mid in clip.mids:
                if ontology()[mid].index is not None:
                    found[mid][clip.group].append(clip)
    return found


def _scene(name: str, clips: Clips, by_class: dict[str, dict[str, list[Clip]]], random: np.random.Generator) -> Scene:
    wanted = int(random.integers(2, 5))
    samples = _background(round(SECONDS * RATE), random)
    events: list[KnownEvent] = []
    there: list[str] = []
    drawn: Sequence[str] = random.permutation(sorted(by_class)).tolist()
    for mid in drawn:
        groups = by_class[mid]
        group = groups[str(random.choice(sorted(groups)))]
        clip = group[random.integers(len(group))]
        mids = [one for one in clip.mids if ontology()[one].index is not None]
        if any(are_related(one, other) for one in mids for other in there):
            continue
        sound = _part(clips.waveform(clip))
        spans = sounding_spans(sound, RATE)
        mask = np.concatenate([sound[round(start * RATE) : round(end * RATE)] for start, end in spans])
        level = 10 ** (random.uniform(*LEVELS_DB) / 20)
        first = int(random.integers(len(samples) - len(sound) + 1))
        samples[first : first + len(sound)] += sound * (level / np.sqrt(np.mean(np.square(mask))))
        events += [KnownEvent(one, first / RATE + start, first / RATE + end) for start, end in spans for one in mids]
        there += mids
        wanted -= 1
        if not wanted:
            break
    samples *= min(1.0, 0.99 / np.abs(samples).max())
    return Scene(name, samples.astype(np.float32), RATE, sorted(events, key=lambda event: event.start))


def _part(sound: np.ndarray) -> np.ndarray:
    """Return the clip, or the loudest part of a long one, with short fades."""
    length = round(LONGEST_SECONDS * RATE)
    if len(sound) > length:
        energy = np.concatenate([[0.0], np.square(sound, dtype=np.float64).cumsum()])
        first = int((energy[length:] - energy[:-length]).argmax())
        sound = sound[first : first + length]
    fade = round(_FADE_SECONDS * RATE)
    edges = np.ones(len(sound))
    edges[:fade] = np.linspace(0, 1, fade)
    edges[-fade:] = np.linspace(1, 0, fade)
    return sound * edges


def sounding_spans(sound: np.ndarray, rate: int) -> list[tuple[float, float]]:
    """Return the spans, in seconds, where (n,) is within `RANGE_DB` of its loudest 10 ms; short pauses are bridged."""
    size = round(FRAME_SECONDS * rate)
    padded = np.pad(sound.astype(np.float64), (0, -len(sound) % size))
    power = np.square(padded).reshape(-1, size).mean(axis=1)
    loud = np.flatnonzero((power > 0) & (power >= power.max() * 10 ** (-RANGE_DB / 10)))
    if not len(loud):
        return []
    gaps = np.flatnonzero(np.diff(loud) > PAUSE_SECONDS / FRAME_SECONDS + 1)
    firsts, lasts = loud[np.append(0, gaps + 1)], loud[np.append(gaps, len(loud) - 1)]
    return [
        (first * size / rate, min((last + 1) * size, len(sound)) / rate)
        for first, last in zip(firsts, lasts, strict=True)
    ]


def _background(length: int, random: np.random.Generator) -> np.ndarray:
    """Return pink noise: equal power in every octave, like the noise of rooms and recorders."""
    spectrum = np.fft.rfft(random.standard_normal(length))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, length)
    return noise * 10 ** (BACKGROUND_DB / 20) / np.sqrt(np.mean(np.square(noise)))
