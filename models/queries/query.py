"""The latent embedding processor: recordings of a sound -> one query embedding.

Chen et al. (AAAI 2022): recordings are cut into windows, silent windows are left out, the embeddings of the rest are
averaged within a recording and then over recordings. The threshold of silence and the level of the windows belong to
the model: `QueryRules`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.errors import ExampleTooShort, NothingLeft, QueryModelMismatch, SilentQuery
from models.networks import ENCODER_LEVEL
from models.queries.plda import PLDAPrior, root

SHORTEST_SECONDS = 0.1
INCOHERENT = 0.5  # mean cosine below which examples hardly agree on one sound
BATCH = 16  # windows that are embedded at once
# Of a class's name beside examples of it: of 0.25, 0.5 and 0.75 the best for names that are predicted, and as good as
# 0.75 for the others, on the half `choose` (the card has the table).
LABEL_WEIGHT = 0.5
# What is taken off a span's query for its surroundings: all of them up to the first cosine, nothing from the second on,
# where they are the same sound. Measured on the practical list (the card has the table).
APART = (0.8, 0.95)
LEAST_NORM = 0.05  # of a query's norm that must remain without its negative query; less is noise
SURROUNDING_SECONDS = 5.0  # of the recording before and after a span


class Embedder(Protocol):
    """The part of a detector that queries need."""

    rate: int
    embedding_size: int

    def embed(self, waveforms: Tensor) -> Tensor:
        """Windows (B, T) -> (B, D)."""
        ...


@dataclass(frozen=True)
class QueryRules:
    """Parameters of a model's queries.

    window_seconds, hop_seconds: windows of a recording, the rest dropped unless the recording is shorter than one.
    least_energy: sum(x^2) that a window must exceed (the paper's absolute threshold), or None.
    range_db: windows this far below the loudest one are left out, or None.
    level: RMS to which a recording's windows are normalised, or None.
    """

    window_seconds: float = 2.0
    hop_seconds: float = 2.0
    least_energy: float | None = 0.1
    range_db: float | None = None
    level: float | None = None

    def window_samples(self, rate: int) -> tuple[int, int]:
        """Return the length of a window and the hop to the next one, in samples."""
        return round(self.window_seconds * rate), round(self.hop_seconds * rate)


PAPER_RULES = QueryRules()
BASE_RULES = QueryRules(window_seconds=0.96, hop_seconds=0.48, least_energy=None, range_db=15.0, level=ENCODER_LEVEL)


@dataclass(frozen=True)
class Query:
    """A query: its embedding `vector` (D,), and how well the examples agree.

    coherence: mean cosine of the examples' windows to their mean, 0 to 1; seconds_used: of sound, without silence.
    """

    vector: Tensor
    model: str
    coherence: float = 1.0
    seconds_used: float = 0.0
    warnings: list[str] = field(default_factory=list)

    def without(self, other: "Query") -> "Query":
        """Return this query with its component along `other` removed, a negative query, and the warnings of both.

        Raises QueryModelMismatch, and NothingLeft if both are the same sound.
        """
        require_model(other, self.model)
        direction = F.normalize(other.vector, dim=0)
        remainder = self.vector - (self.vector @ direction) * direction
        if remainder.norm() < LEAST_NORM * self.vector.norm():
            raise NothingLeft("The negative query is the same sound as the target: nothing remains to be separated.")
        warnings = [*self.warnings, *(f"Negative query: {warning}" for warning in other.warnings)]
        return replace(self, vector=remainder, warnings=warnings)

    def apart_from(self, surroundings: "Query") -> "Query":
        """Return the query of a span less what is also heard around it, so that the span may hold other sounds too.

        The difference of signed square roots (`models.queries.plda`), nothing below zero: of embeddings without
        negative values, as the default model's; others stay. Surroundings that sound like the span take nothing away.
        """
        own, rest = root(self.vector), root(surroundings.vector)
        if min(own.min(), rest.min()) < 0:
            return self
        all_of_it, none = APART
        alike = F.cosine_similarity(own, rest, dim=0).item()
        share = min(1.0, max(0.0, (none - alike) / (none - all_of_it)))
        left = (own - share * rest).clamp(min=0)
        return replace(self, vector=left.square()) if left.any() else self

    @staticmethod
    def mean(parts: Sequence[tuple["Query", float]]) -> "Query":
        """Return the weighted mean of queries of one model, in the domain of signed square roots.

        parts: queries with their weights, which need not add up to 1. The mean has the lowest coherence of them, all
        their seconds and warnings. Raises QueryModelMismatch, and ValueError unless all weights are positive.
        """
        if not parts or any(not weight > 0 for _, weight in parts):
            raise ValueError("a mean needs queries with positive weights")
        queries = [query for query, _ in parts]
        for query in queries:
            require_model(query, queries[0].model)
        total = sum(weight for _, weight in parts)
        roots = torch.stack([root(query.vector) * (weight / total) for query, weight in parts]).sum(0)
        return Query(
            roots.sign() * roots.square(),
            queries[0].model,
            min(query.coherence for query in queries),
            sum(query.seconds_used for query in queries),
            list(dict.fromkeys(warning for query in queries for warning in query.warnings)),
        )

    def with_label(self, label: "Query") -> "Query":
        """Return the query of these examples and of their class's name together. Raises QueryModelMismatch."""
        return Query.mean([(self, 1 - LABEL_WEIGHT), (label, LABEL_WEIGHT)])

    def save(self, path: Path) -> None:
        """Write a safetensors file that `load` reads."""
        details = {
            "model": self.model,
            "coherence": repr(self.coherence),
            "seconds_used": repr(self.seconds_used),
        }
        save_file({"query": self.vector.contiguous()}, path, metadata=details)

    @staticmethod
    def load(path: Path, model: str | None = None) -> "Query":
        """Read a saved query. Raises QueryModelMismatch if the file is not a query, or is another model's."""
        try:
            with safe_open(path, "pt") as file:
                details, vector = file.metadata() or {}, file.get_tensor("query").float()
            query = Query(vector, details["model"], float(details["coherence"]), float(details["seconds_used"]))
        except (SafetensorError, KeyError, ValueError) as error:
            raise QueryModelMismatch(f"{path.name} is not a saved query: make one with `embed`") from error
        if model is not None:
            require_model(query, model)
        return query


def surroundings(spans: Sequence[tuple[float, float]], duration: float) -> list[tuple[float, float]]:
    """Return the parts of a recording, in seconds, around spans of it that are in none of them."""
    wide = SURROUNDING_SECONDS
    edges = {edge for start, end in spans for edge in (start - wide, start, end, end + wide)}
    parts = pairwise(sorted({min(max(edge, 0.0), duration) for edge in edges}))
    return [part for part in parts if part[1] - part[0] >= SHORTEST_SECONDS and _is_near(sum(part) / 2, spans)]


def _is_near(second: float, spans: Sequence[tuple[float, float]]) -> bool:
    """Return whether a second is around spans and in none of them."""
    near = any(start - SURROUNDING_SECONDS <= second <= end + SURROUNDING_SECONDS for start, end in spans)
    return near and not any(start <= second <= end for start, end in spans)


def require_model(query: Query, model: str) -> None:
    """Raise QueryModelMismatch unless `query` was made by `model`."""
    if query.model != model:
        raise QueryModelMismatch(f"the query was made by model {query.model}, not by {model}: embed the example again")


class Windows(NamedTuple):
    """Windows of one recording that hold sound, (N, T), and the seconds that they cover."""

    waveforms: Tensor
    seconds: float


def embed(
    embedder: Embedder,
    recordings: Sequence[Tensor],
    rules: QueryRules,
    model: str,
    prior: PLDAPrior | None = None,
    part: str = "example",
) -> Query:
    """Make one query from mono recordings (n,) at the embedder's rate, each at least 0.1 s long.

    prior: corrects the embedding towards the class of the sound; None if the recordings are parts of the mixture.
    part: what errors call a recording. Raises SilentQuery if one holds no sound, ExampleTooShort.
    """
    cuts = _cut_each(recordings, embedder.rate, rules, part)
    return _query_of(cuts, [_embed_windows(embedder.embed, windows.waveforms) for windows in cuts], model, prior)


def embed_apart(
    embedder: Embedder,
    recordings: Sequence[Tensor],
    around: Tensor,
    rules: QueryRules,
    model: str,
    prior: PLDAPrior | None = None,
    part: str = "span",
    sketch: Callable[[Tensor], Tensor] | None = None,
) -> Query:
    """Make one query as `embed` does, apart from its surroundings (n,) unless these are silent.

    sketch: a faster embedding, for the windows of the surroundings; without one all windows share batches, since small
    ones take longer for each.
    """
    try:
        rest = cut(around, embedder.rate, rules)
    except SilentQuery:  # nothing to take off
        return embed(embedder, recordings, rules, model, prior, part)
    cuts = _cut_each(recordings, embedder.rate, rules, part)
    counts = [len(windows.waveforms) for windows in cuts]
    waveforms = torch.cat([windows.waveforms for windows in cuts])
    if sketch is None:
        embeddings = _embed_windows(embedder.embed, torch.cat([waveforms, rest.waveforms]))
        *own, others = embeddings.split([*counts, len(rest.waveforms)])
    else:
        own = _embed_windows(embedder.embed, waveforms).split(counts)
        others = _embed_windows(sketch, rest.waveforms)
    return _query_of(cuts, own, model, prior).apart_from(_query_of([rest], [others], model))


def _cut_each(recordings: Sequence[Tensor], rate: int, rules: QueryRules, part: str) -> list[Windows]:
    return [
        cut(recording, rate, rules, f"{part} {number}" if len(recordings) > 1 else f"the {part}")
        for number, recording in enumerate(recordings, 1)
    ]


def _embed_windows(embed: Callable[[Tensor], Tensor], waveforms: Tensor) -> Tensor:
    """Windows (N, T) -> (N, D)."""
    return torch.cat([embed(batch) for batch in waveforms.split(BATCH)])


def _query_of(
    cuts: Sequence[Windows], embeddings: Sequence[Tensor], model: str, prior: PLDAPrior | None = None
) -> Query:
    """Return the query of recordings whose windows have these embeddings, (N, D) each."""
    vector = torch.stack([of_recording.mean(0) for of_recording in embeddings]).mean(0)
    coherence = F.cosine_similarity(torch.cat(list(embeddings)), vector[None], dim=1).mean().clamp(0, 1).item()
    if prior is not None:
        vector = prior.posterior_mean(vector.cpu())
    warnings = []
    if coherence < INCOHERENT:
        warnings.append(
            f"The examples differ a lot (coherence {coherence:.2f}): one or two clean seconds of the same sound "
            "separate better than many different ones."
        )
    return Query(vector.cpu(), model, coherence, sum(windows.seconds for windows in cuts), warnings)


class AllWindows(NamedTuple):
    """All windows of a recording, (N, T), their energies (N,), and which of them hold sound (N,)."""

    waveforms: Tensor
    energies: Tensor
    sounding: Tensor


def cut_all(recording: Tensor, rate: int, rules: QueryRules, name: str = "the example") -> AllWindows:
    """Cut a mono recording (n,) into windows. Raises SilentQuery if none of them holds sound, ExampleTooShort."""
    if len(recording) < SHORTEST_SECONDS * rate:
        lasts = f"{name} lasts {len(recording) / rate:.3f} s"
        raise ExampleTooShort(f"{lasts}, which is too short: at least {SHORTEST_SECONDS} s are needed")
    size, hop = rules.window_samples(rate)
    padded = F.pad(recording, (0, max(0, size - len(recording))))
    windows = padded.unfold(0, size, hop)
    energies = windows.square().sum(1)
    sounding = energies > (0.0 if rules.least_energy is None else rules.least_energy)
    if rules.range_db is not None:
        sounding &= energies >= energies.max() * 10 ** (-rules.range_db / 10)
    if not sounding.any():
        raise SilentQuery(f"{name} is silent: choose a part that holds the sound")
    return AllWindows(windows, energies, sounding)


def cut(recording: Tensor, rate: int, rules: QueryRules, name: str = "the example") -> Windows:
    """Return the windows of a mono recording (n,) that hold sound. Raises SilentQuery if there are none."""
    windows, energies, sounding = cut_all(recording, rate, rules, name)
    size, hop = rules.window_samples(rate)
    windows = windows[sounding]
    if rules.level is not None:
        rms = (energies[sounding].sum() / (len(windows) * min(size, len(recording)))).sqrt()
        windows = windows * (rules.level / rms)
    covered = min(len(recording), len(windows) * hop + size - hop)
    return Windows(windows, covered / rate)
