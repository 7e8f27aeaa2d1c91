"""`python -m models evaluate heard`: mixtures of sounds that a model was trained on, beside mixtures of others.

Both kinds are drawn in the same way, without augmentation. What is missing even on sounds that were trained on is for
the network's size, its resolution and the length of training; the gap between both is for the variety of the corpus.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import track
from torch import Tensor

from models.commands import Device
from models.console import console, progress_console
from models.corpus.clips import RATE, Clip, Clips
from models.corpus.decoded import load
from models.corpus.relations import are_related, with_descendants
from models.corpus.reserved import reserved_groups
from models.evaluation.arguments import Cache, Corpus
from models.evaluation.model_under_test import ModelUnderTest, load_bundle
from models.evaluation.reports.bootstrap import TwoLevel
from models.evaluation.reports.summaries import table_of, with_interval
from models.labels import find
from models.training.recipe import LASTING
from models.validation.metrics import improvements, si_sdr
from models.validation.rendering import Mix, Sounds, mix_sources, random_start, stack

SECONDS = 4.0
SAMPLES = int(SECONDS * RATE)
LEAST_SECONDS = 0.3
ANY = "Any sound"
# Scene: the target's class and those it is heard in, with all below them; none: all that are unrelated to the target.
SCENES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    ANY: ((), ()),
    "Speech in sounds that last": (("Speech",), LASTING),
    "An instrument and another": (("Musical instrument",), ("Musical instrument",)),
}
TRIES = 200


@dataclass(frozen=True)
class Case:
    """A mixture: target and interference at equal energy, and an example (n,) from another group of the class."""

    label: str
    group: str
    mix: Mix
    example: np.ndarray


class Drawing:
    """Draws the cases of a scene from clips: classes evenly, then groups."""

    def __init__(self, clips: Clips, seed: int) -> None:
        self._sounds, self._random = Sounds(clips), np.random.default_rng(seed)
        self._groups: dict[str, dict[str, list[Clip]]] = defaultdict(lambda: defaultdict(list))
        for clip in clips.clips:
            if clip.mids and clip.frames >= LEAST_SECONDS * RATE:
                self._groups[clip.mid][clip.group].append(clip)

    def cases(self, targets: Sequence[str], others: Sequence[str], count: int) -> list[Case]:
        """Return cases, fewer than `count` if hardly any classes are unrelated."""
        wanted = [mid for mid in self._within(targets) if len(self._groups[mid]) > 1]
        interfering = self._within(others)
        found: list[Case] = []
        for _ in range(count * TRIES if wanted and interfering else 0):
            if len(found) == count:
                break
            mid = wanted[self._random.integers(len(wanted))]
            other = interfering[self._random.integers(len(interfering))]
            if are_related(mid, other):
                continue
            target = self._clip(mid)
            case = self._case(target, self._clip(other), self._clip(mid, apart_from=target.group))
            if case is not None:
                found.append(case)
        return found

    def _case(self, target: Clip, other: Clip, example: Clip) -> Case | None:
        sounds = [self._segment(clip) for clip in (target, other)]
        if min(np.square(sound).sum() for sound in sounds) < 1e-3:
            return None
        return Case(target.label, target.group, mix_sources(*sounds), self._sounds.waveform(example.key))

    def _segment(self, clip: Clip) -> np.ndarray:
        start = random_start(self._sounds.waveform(clip.key), SAMPLES, self._random)
        return self._sounds.segment(clip.key, start, SAMPLES)

    def _clip(self, mid: str, apart_from: str | None = None) -> Clip:
        groups = [clips for name, clips in self._groups[mid].items() if name != apart_from]
        clips = groups[self._random.integers(len(groups))]
        return clips[self._random.integers(len(clips))]

    def _within(self, names: Sequence[str]) -> list[str]:
        """Return the clips' classes that are among `names` or below them; all without names."""
        chosen = with_descendants(find(name).mid for name in names)
        return [mid for mid in self._groups if not names or mid in chosen]


def evaluate_heard(
    corpus: Corpus,
    weights: Annotated[str, typer.Option(help="A shipped model's name, a model's folder, or a run.")] = "base",
    rows: Annotated[int, typer.Option(min=2, help="Mixtures of each scene and split.")] = 120,
    seed: Annotated[int, typer.Option(help="Of the mixtures.")] = 2033,
    cache: Cache = Path(".cache"),
    device: Device = "auto",
) -> None:
    """Compare the separation of sounds that the model was trained on with that of sounds that it never heard."""
    subject = ModelUnderTest(load_bundle(weights), device)
    table = table_of(
        f"{subject.model_id}: SI-SDR improvement, dB", "scene", "sounds", "n", "ideal mask", "own", "1 clip"
    )
    for split, name in (("train", "trained on"), ("valid", "never heard")):
        clips = load(corpus, split, cache, progress_console.print).without_groups(reserved_groups())
        drawing = Drawing(clips, seed)
        for scene, (targets, others) in SCENES.items():
            cases = drawing.cases(targets, others, rows)
            if not cases:
                progress_console.print(f"{scene}: no such sounds in the split {split}")
                continue
            measured = measure(subject, track(cases, f"{scene}, {name}", console=progress_console))
            bootstrap = TwoLevel([case.label for case in cases], [case.group for case in cases])
            figures = [with_interval(bootstrap.mean(values)) for values in measured.values()]
            table.add_row(scene, name, str(len(cases)), *figures)
    console.print(table)


def measure(subject: ModelUnderTest, cases: Iterable[Case]) -> dict[str, np.ndarray]:
    """Return SI-SDR improvements (N,) by the ideal mask, asked with the target itself, and with the example."""
    found: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        mixture, target, others = stack([case.mix])
        queries: list[Tensor] = [subject.embed(case.mix.target), subject.query(case.example)]
        estimates = subject.estimates(mixture, [query[None] for query in queries])
        found["ideal mask"].append(float(si_sdr(subject.oracle(mixture, target), target) - si_sdr(mixture, target)))
        for name, estimate in zip(("own", "example"), estimates, strict=True):
            found[name].append(float(improvements(estimate, mixture, target, others)["si_sdri"]))
    return {name: np.array(values) for name, values in found.items()}
