"""The practical list: what people ask for most, as mixtures drawn once and listed in `practical.csv`.

Speech in weather, fire, engines, crowds and music; singing, drums, bass, piano and guitar in bands; animals, footsteps,
sirens and water in noise and in music. A row names its target and its interference as sounds (`PracticalSounds`), and
the clip that is its example. All clips are of the corpus's validation split or reserved from its training split
(`models.corpus.reserved`); `heard` names the models that heard a reserved clip before it was reserved. Bands are
rendered from scores and a sound bank that neither the training corpus nor `evaluate bands` uses.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.corpus.clips import RATE, Clip
from models.corpus.relations import are_related
from models.evaluation.band_mixtures import Bands, askable
from models.evaluation.reporting_mixtures import HALVES
from models.labels import find
from models.validation import row_lists
from models.validation.rendering import PEAK, Mix, Sounds, mix_sources, random_start, sounding

PRACTICAL = Path(__file__).with_name("practical.csv")
# Scores of Debian's packages mma and freedink-data, unpacked by `make evaluate`.
PACKAGES = Path(".cache/scores/usr/share")
SCORES = (
    *(PACKAGES / "doc/mma/examples" / name for name in ("aria", "midi-inc/mid2seq", "simple", "tutorial")),
    PACKAGES / "games/dink/dink/Sound",
)
SEED = 2031
SECONDS = 4.0
SAMPLES = int(SECONDS * RATE)
VOICES = 12  # of a crowd
OVERLAP = 0.7  # share of the target's sounding part in which the interference must sound too
HEARD = "base@1 to base@3"  # had trained on the clips that are reserved since

NOISES = ("Rain", "Wind", "Fire", "Engine")
# Scene: target, what it is heard in, its levels above that in dB, and how many rows of each.
SCENES: tuple[tuple[str, tuple[str, ...], tuple[float, ...], int], ...] = (
    ("Speech", (*NOISES, "crowd", "Music", "other"), (0.0, 5.0), 12),
    ("Singing", ("band",), (0.0,), 24),
    ("Dog", ("noise", "Music"), (0.0,), 12),
    ("Bird vocalization, bird call, bird song", ("noise", "Music"), (0.0,), 12),
    ("Walk, footsteps", ("noise", "Music"), (0.0,), 12),
    ("siren", ("noise", "Music"), (0.0,), 12),
    ("Water", ("noise", "Music"), (0.0,), 12),
)
# Instruments that are asked for in bands, at the score's own levels, and how many rows of each.
PLAYED = {
    "drums": ("Drum kit",),
    "bass": ("Bass guitar", "Double bass"),
    "piano": ("Piano", "Electric piano"),
    "guitar": ("Acoustic guitar", "Electric guitar"),
}
BAND_ROWS = 16


@dataclass(frozen=True)
class PracticalRow:
    """One row. scene: such as "Speech in Rain"; target, interference: sounds by name; starts in samples of a clip;
    query: the example, of another source group than the target."""

    half: str
    scene: str
    label: str
    level: float
    target: str
    target_start: int
    interference: str
    interference_start: int
    query: str
    heard: str


class PracticalSounds:
    """Sounds by name:

    `clip KEY`: of a clip; `crowd KEY KEY ...`: voices that talk at once, each repeated to the end; `siren SEED`: a
    synthesised siren; `part SCORE SECOND LABEL`, `rest ...`, `all SCORE SECOND`: an instrument of a rendered score, the
    band without it, the whole band.
    """

    def __init__(self, clips: Sounds, bands: Bands) -> None:
        self.clips, self._bands = clips, bands

    def segment(self, name: str, start: int) -> np.ndarray:
        """Return a sound (SAMPLES,), float32."""
        kind, _, rest = name.partition(" ")
        if kind == "clip":
            return self.clips.segment(rest, start, SAMPLES)
        if kind == "crowd":
            return crowd([self.clips.waveform(key) for key in rest.split()])
        if kind == "siren":
            return siren(int(rest))
        score, second, *label = rest.split(" ", 2)
        parts = self._bands.parts(score, float(second))
        chosen = {"part": label, "all": list(parts), "rest": [name for name in parts if name not in label]}[kind]
        return np.stack([parts[name] for name in chosen]).sum(axis=0, dtype=np.float32)

    def example(self, row: PracticalRow) -> np.ndarray:
        """Return the whole example (n,) of a row."""
        kind, _, rest = row.query.partition(" ")
        return self.clips.waveform(rest) if kind == "clip" else self.segment(row.query, 0)

    def render(self, row: PracticalRow) -> Mix:
        """Render a row."""
        target = self.segment(row.target, row.target_start)
        interference = self.segment(row.interference, row.interference_start)
        if row.target.startswith("part "):  # at the score's levels
            gain = np.float32(min(1.0, PEAK / np.abs(target + interference).max()))
            return Mix((target + interference) * gain, target * gain, interference * gain)
        mix = mix_sources(target, interference, sounding(target))
        quiet = mix.interference * np.float32(10 ** (-row.level / 20))
        return Mix(mix.target + quiet, mix.target, quiet)

    def group(self, name: str) -> str:
        """Return the source group of a sound: rows of one group are alike."""
        kind, _, rest = name.partition(" ")
        return self.clips.clip(rest).group if kind == "clip" else rest.split(" ")[0]


def crowd(voices: Sequence[np.ndarray]) -> np.ndarray:
    """Return voices (n,) that talk at once, at equal energy, each repeated to the end: (SAMPLES,)."""
    looped = [np.resize(voice, SAMPLES).astype(np.float64) for voice in voices]
    talk = np.sum([voice / np.sqrt(np.square(voice).mean() + 1e-9) for voice in looped], axis=0)
    return (talk * 0.1 / np.sqrt(len(voices))).astype(np.float32)


def siren(seed: int) -> np.ndarray:
    """Return a synthesised siren (SAMPLES,) that wails, yelps or alternates between two tones, with harmonics."""
    random = np.random.default_rng([SEED, seed])
    time = np.arange(SAMPLES) / RATE
    low = random.uniform(450, 700)
    high = low * random.uniform(1.3, 2.2)
    rate = random.choice([random.uniform(0.2, 0.5), random.uniform(2.5, 4.0)])  # wails; yelps
    swing = 0.5 - 0.5 * np.cos(2 * np.pi * (rate * time + random.random()))
    if random.random() < 1 / 3:
        swing = (swing > 0.5).astype(float)
    phase = 2 * np.pi * np.cumsum(low + (high - low) * swing) / RATE
    tone = sum(np.sin(number * phase) / number**1.5 for number in range(1, 8))
    return (0.2 * np.tanh(np.asarray(tone))).astype(np.float32)


def read_rows(path: Path = PRACTICAL) -> list[PracticalRow]:
    """Return the listed rows. Raises ValueError for another kind of file."""
    return row_lists.read(path, PracticalRow)


def write_rows(rows: list[PracticalRow], path: Path = PRACTICAL) -> None:
    """Write rows as CSV."""
    row_lists.write(rows, path, PracticalRow)


def draw(
    valid: Sequence[Clip], reserved: Sequence[Clip], sounds: PracticalSounds, bands: Bands, seed: int = SEED
) -> list[PracticalRow]:
    """Draw the list: of each scene, groups in turn. Raises ValueError if a class has no other group for the example."""
    return list(_Drawer(valid, reserved, sounds, bands, np.random.default_rng(seed)).rows())


class _Drawer:
    def __init__(
        self,
        valid: Sequence[Clip],
        reserved: Sequence[Clip],
        sounds: PracticalSounds,
        bands: Bands,
        random: np.random.Generator,
    ) -> None:
        self._sounds, self._bands, self._random = sounds, bands, random
        self._clips = [clip for clip in (*valid, *reserved) if sounds.clips.waveform(clip.key).any()]
        self._reserved = {clip.key for clip in reserved}
        self._turns: dict[str, list[str]] = {}

    def rows(self) -> Iterator[PracticalRow]:
        for label, places, levels, count in SCENES:
            for place in places:
                for level in levels:
                    for _ in range(count):
                        yield self._row(label, place, level)
        yield from self._band_rows()

    def _row(self, label: str, place: str, level: float) -> PracticalRow:
        if label == "siren":
            target, query = (f"siren {number}" for number in self._random.choice(1000, 2, replace=False))
            start, label = 0, "Siren"
        else:
            clip = self._one(label, lambda clip: clip.label == label)
            target, start = f"clip {clip.key}", random_start(self._waveform(clip), SAMPLES, self._random)
            example = self._one(f"{label} examples", lambda other: other.label == label and other.group != clip.group)
            query = f"clip {example.key}"
        there = sounding(self._sounds.segment(target, start))
        scene = f"{label} in {place if place != 'other' else 'another sound'}"
        while True:
            interference, first = self._interference(place, label, target)
            if sounding(self._sounds.segment(interference, first))[there].mean() >= OVERLAP:
                return self._made(PracticalRow("", scene, label, level, target, start, interference, first, query, ""))

    def _made(self, row: PracticalRow) -> PracticalRow:
        half = HALVES[hashlib.sha256(self._sounds.group(row.target).encode()).digest()[0] % 2]
        used = {name.removeprefix("clip ") for name in (row.target, row.interference, row.query)}
        return replace(row, half=half, heard=HEARD if used & self._reserved else "")

    def _interference(self, place: str, label: str, target: str) -> tuple[str, int]:
        """Draw an interference and its start."""
        if place == "band":
            return self._band(), 0
        if place == "crowd":
            group = self._sounds.group(target)
            voices = [
                self._one("voices", lambda clip: clip.label == "Speech" and clip.group != group) for _ in range(VOICES)
            ]
            return "crowd " + " ".join(voice.key for voice in voices), 0
        if place == "other":
            mid = find(label).mid
            clip = self._one("others", lambda clip: not any(are_related(mid, other) for other in clip.mids))
        else:
            noise = NOISES[int(self._random.integers(len(NOISES)))] if place == "noise" else place
            clip = self._one(noise, lambda clip: clip.label == noise)
        return f"clip {clip.key}", random_start(self._waveform(clip), SAMPLES, self._random)

    def _one(self, turn: str, wanted: Callable[[Clip], bool]) -> Clip:
        """Draw a clip, every group once before one is used again."""
        clips = [clip for clip in self._clips if wanted(clip)]
        if not clips:
            raise ValueError(f"the corpus has no clip for {turn}")
        groups = sorted({clip.group for clip in clips})
        left = [group for group in self._turns.get(turn, []) if group in groups]
        if not left:
            left = self._random.permutation(groups).tolist()
        group = left.pop()
        self._turns[turn] = left
        of_group = [clip for clip in clips if clip.group == group]
        return of_group[int(self._random.integers(len(of_group)))]

    def _waveform(self, clip: Clip) -> np.ndarray:
        return self._sounds.clips.waveform(clip.key)

    def _excerpts(self) -> Iterator[tuple[str, float]]:
        names = [(name, score.seconds) for name, score in self._bands.scores()]
        while True:
            for at in self._random.permutation(len(names)):
                name, seconds = names[at]
                yield name, round(float(self._random.uniform(0, max(0.0, min(seconds, 200.0) - SECONDS))), 3)

    def _band(self) -> str:
        for name, start in self._excerpts():
            if len(self._bands.parts(name, start)) >= 3:
                return f"all {name} {start}"
        raise AssertionError

    def _band_rows(self) -> Iterator[PracticalRow]:
        left = dict.fromkeys(PLAYED, BAND_ROWS)
        for tried, (name, start) in enumerate(self._excerpts()):
            if not any(left.values()) or tried > 600:
                return
            labels = askable(self._bands.parts(name, start))
            for scene, wanted in PLAYED.items():
                for label in sorted(set(labels) & set(wanted)):
                    if left[scene]:
                        left[scene] -= 1
                        place = f"{name} {start}"
                        own = [label] if any(clip.label == label for clip in self._clips) else wanted
                        example = self._one(f"{own} examples", lambda clip, own=own: clip.label in own)
                        part, rest = f"part {place} {label}", f"rest {place} {label}"
                        query = f"clip {example.key}"
                        row = PracticalRow("", f"{scene} in a band", label, 0.0, part, 0, rest, 0, query, "")
                        yield self._made(row)
