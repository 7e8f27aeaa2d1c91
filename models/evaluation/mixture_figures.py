"""A model's figures on the reporting mixtures, row by row, for each scene and kind of query.

Scenes, the first three as in the paper (arXiv 2112.07891): *mixture*, A from A + B with A's query; *clean*, A from A;
*silence*, A's query on B alone, where 10 log10(E_in / E_out) measures the attenuation; *three*, A from A + B + C;
*absent*, the query of a class that is not in the mixture. Each kind of query is a row of every table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from models.evaluation.model_under_test import ModelUnderTest
from models.evaluation.reporting_mixtures import MixtureRow, render
from models.labels import find
from models.validation.metrics import attenuation, improvements, sdr, si_sdr
from models.validation.rendering import Mix, Sounds, add_third, loudest_start, stack

# Kinds of query: the target's own segment (as the paper trains), one, two or four other clips of the class from other
# source groups, the class's label, a training clip of the class.
QUERIES = ("own", "example", "two_examples", "four_examples", "label", "trained")
MAIN_QUERIES = ("own", "example", "label")
COUNTS = {"example": 1, "two_examples": 2, "four_examples": 4}
# The scenes clean, silence and three need further mixtures, so they are computed for every fifth pair of rows only.
SPARSE = 5


@dataclass(frozen=True)
class MixtureFigures:
    """`values`: figures by "scene/query/figure", each (rows,), NaN where a row has none."""

    rows: list[MixtureRow]
    numbers: list[int]  # the rows' places in the list
    groups: list[str]  # the targets' source groups
    values: dict[str, np.ndarray]

    @property
    def labels(self) -> list[str]:
        return [row.label for row in self.rows]


def in_sparse(number: int) -> bool:
    """Return whether all scenes are computed for a row; true for a fifth of both halves and lengths."""
    return number // 2 % SPARSE == 0


def measure(
    subject: ModelUnderTest,
    listed: dict[int, MixtureRow],
    sounds: Sounds,
    trained: Sounds | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> MixtureFigures:
    """Return figures of rows by their places in the list. trained: training clips, if available.

    advance: called with the number of rows of each batch.
    """
    numbers = sorted(listed)
    measuring = _Measurement(subject, sounds, trained)
    for seconds in sorted({row.seconds for row in listed.values()}):
        of_length = [number for number in numbers if listed[number].seconds == seconds]
        size = subject.rows_at_once(seconds)
        for sparse in (True, False):
            some = [number for number in of_length if in_sparse(number) == sparse]
            for at in range(0, len(some), size):
                batch = some[at : at + size]
                measuring.batch({number: listed[number] for number in batch}, sparse)
                advance(len(batch))
    rows = [listed[number] for number in numbers]
    values = {
        name: np.array([of_row.get(number, np.nan) for number in numbers]) for name, of_row in measuring.found.items()
    }
    values = {name: array for name, array in values.items() if not np.isnan(array).all()}
    return MixtureFigures(rows, numbers, [sounds.clip(row.target).group for row in rows], values)


@dataclass
class _Measurement:
    subject: ModelUnderTest
    sounds: Sounds
    trained: Sounds | None
    found: dict[str, dict[int, float]] = field(default_factory=dict)
    embedded: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def batch(self, listed: dict[int, MixtureRow], sparse: bool) -> None:
        """Compute all figures of rows of one length."""
        rows = list(listed.values())
        mixes = [render(row, self.sounds) for row in rows]
        mixtures, targets, others = stack(mixes)
        queries = self._queries(rows, mixes)
        numbers = list(listed)
        absent = torch.stack([self._examples(self.sounds, [row.absent]) for row in rows])
        left = self._separation("mixture", numbers, mixtures, targets, others, queries, absent)
        self._keep(numbers, "absent/example/attenuation", attenuation(left[0], mixtures))
        before, bound = si_sdr(mixtures, targets), self.subject.oracle(mixtures, targets)
        self._keep(numbers, "input/si_sdr", before)
        self._keep(numbers, "input/sdr", sdr(mixtures, targets))
        # Of the unprocessed mixture: it may be closer to the interference if that is longer than the target.
        self._keep(numbers, "input/wrong", (si_sdr(mixtures, others) > before).float())
        self._keep(numbers, "oracle/si_sdri", si_sdr(bound, targets) - before)
        self._keep(numbers, "oracle/sdri", sdr(bound, targets) - sdr(mixtures, targets))
        if not sparse:
            return
        main = {name: queries[name] for name in MAIN_QUERIES}
        for name, estimate in zip(main, self.subject.estimates(targets, list(main.values())), strict=True):
            self._keep(numbers, f"clean/{name}/sdr", sdr(estimate, targets))
        for name, estimate in zip(main, self.subject.estimates(others, list(main.values())), strict=True):
            self._keep(numbers, f"silence/{name}/attenuation", attenuation(estimate, others))
        thirds = [self.sounds.waveform(row.absent) for row in rows]
        samples = mixtures.shape[1]
        places = [(row.absent, loudest_start(third, samples)) for row, third in zip(rows, thirds, strict=True)]
        of_three = [
            add_third(mix, self.sounds.segment(key, start, samples))
            for mix, (key, start) in zip(mixes, places, strict=True)
        ]
        self._separation("three", numbers, *stack(of_three), main)

    def _separation(
        self,
        scene: str,
        numbers: list[int],
        mixtures: Tensor,
        targets: Tensor,
        others: Tensor,
        queries: dict[str, Tensor],
        *further: Tensor,
    ) -> list[Tensor]:
        """Store the figures of each kind of query; return the estimates for further queries (B, D) of the mixtures."""
        estimates = self.subject.estimates(mixtures, [*queries.values(), *further])
        for name, estimate in zip(queries, estimates, strict=False):
            for figure, values in improvements(estimate, mixtures, targets, others).items():
                self._keep(numbers, f"{scene}/{name}/{figure}", values)
        return estimates[len(queries) :]

    def _queries(self, rows: list[MixtureRow], mixes: list[Mix]) -> dict[str, Tensor]:
        """Return the queries (B, D) of each kind; NaN where a row has none."""
        missing = torch.full((self.subject.query_size,), float("nan"))
        query_vectors = {"own": [self.subject.embed(mix.target) for mix in mixes]}
        for name, count in COUNTS.items():
            query_vectors[name] = [
                self._examples(self.sounds, row.examples[:count]) if len(row.examples) >= count else missing
                for row in rows
            ]
        embeddings = self.subject.bundle.class_embeddings
        query_vectors["label"] = [embeddings.get(find(row.label).mid, missing).float() for row in rows]
        query_vectors["trained"] = [
            self._examples(self.trained, [row.trained]) if self.trained and row.trained else missing for row in rows
        ]
        return {name: torch.stack(vectors) for name, vectors in query_vectors.items()}

    def _examples(self, sounds: Sounds, keys: Sequence[str]) -> Tensor:
        for key in keys:
            if (id(sounds), key) not in self.embedded:
                self.embedded[id(sounds), key] = self.subject.embed(sounds.waveform(key))
        return self.subject.apply_prior(torch.stack([self.embedded[id(sounds), key] for key in keys]).mean(0))

    def _keep(self, numbers: list[int], name: str, values: Tensor) -> None:
        self.found.setdefault(name, {}).update(zip(numbers, values.tolist(), strict=True))
