"""`python -m models evaluate names`: classes that the model has no clips of, asked for by name.

Queries are predicted as for a class without clips (`models.runs.class_queries`), although the corpus has some: those of
the class are left out, so that its mixtures can tell how good the prediction is. Two lists: the reporting mixtures,
each class left out by itself, and mixtures of the ten classes of the zero-shot experiment, all of them left out.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from models import checkpoints
from models.checkpoints import Bundle
from models.commands import Device
from models.console import console, count_bar, progress_console
from models.corpus.clips import Clips
from models.corpus.decoded import load
from models.evaluation import reporting_mixtures
from models.evaluation.arguments import Cache, Corpus, Output
from models.evaluation.model_under_test import ModelUnderTest
from models.evaluation.reports.bootstrap import TwoLevel
from models.evaluation.reports.json_report import write_rows
from models.evaluation.reports.summaries import percent, table_of, with_interval
from models.experiments import zero_shot
from models.experiments.zero_shot_training import HELD_OUT
from models.labels import find
from models.networks.yamnet import Yamnet
from models.queries.query import LABEL_WEIGHT, Query, QueryRules
from models.runs import run_folder
from models.runs.class_queries import predict_means
from models.runs.run_folder import Place
from models.validation.metrics import improvements
from models.validation.rendering import Mix, Sounds, stack

FIGURES = ("si_sdri", "wrong")
QUERIES = ("example", "name", "predicted", "example and name", "example and predicted")


@dataclass(frozen=True)
class Case:
    """A mixture and an example's key; `label` and `group` are the target's."""

    label: str
    group: str
    seconds: float
    render: Callable[[], Mix]
    example: str


def reporting_cases(path: Path, half: str, sounds: Sounds) -> list[Case]:
    """Return the mixtures of one half of a list of reporting mixtures."""
    rows = [row for row in reporting_mixtures.read(path) if row.half == half]

    def rendering(row: reporting_mixtures.MixtureRow) -> Callable[[], Mix]:
        return lambda: reporting_mixtures.render(row, sounds)

    return [
        Case(row.label, sounds.clip(row.target).group, row.seconds, rendering(row), row.examples[0]) for row in rows
    ]


def zero_shot_cases(mids: Iterable[str], valid: Clips, train: Clips, count: int) -> list[Case]:
    """Return mixtures of some classes; targets and examples are of both splits."""
    sounds = Sounds(valid, train)

    def rendering(row: zero_shot.Pair) -> Callable[[], Mix]:
        return lambda: zero_shot.render(row, sounds)

    return [
        Case(row.label, sounds.clip(row.unseen).group, row.seconds, rendering(row), row.unseen_query)
        for row in zero_shot.draw(valid, train, mids, count)
    ]


class Predictions:
    """Queries of classes as predicted without clips of them. vectors: of the training clips (N, VERSIONS, D)."""

    def __init__(self, bundle: Bundle, vectors: np.ndarray, clips: Clips) -> None:
        """Raises ValueError if the model's detector has no linear classifier."""
        if not isinstance(bundle.detector, Yamnet):
            raise ValueError(f"the detector of {bundle.name} has no classifier of its embeddings to predict from")
        self._bundle = bundle
        self._clips = [(clip, row) for clip, row in zip(clips.clips, vectors[:, 0], strict=True) if row.any()]
        self._vectors = torch.from_numpy(np.stack([row for _, row in self._clips]).astype(np.float32))

    def without(self, *sets: frozenset[str]) -> dict[str, Tensor]:
        """Return the queries by mid of the classes of all sets, each predicted without the clips of its set."""
        own: dict[str, set[str]] = {}
        for mids in sets:
            left_out = {clip.group for clip, _ in self._clips if mids.intersection(clip.mids)}
            own |= dict.fromkeys(mids, left_out)
        groups = [clip.group for clip, _ in self._clips]
        means = predict_means(self._bundle.detector, self._vectors, groups, own)
        prior = self._bundle.prior
        return {mid: prior.posterior_mean(means[mid]) if prior else means[mid] for mid in own if mid in means}


def measure(
    subject: ModelUnderTest,
    cases: list[Case],
    sounds: Sounds,
    predicted: dict[str, Tensor],
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, np.ndarray]:
    """Return SI-SDR improvements and whether the other sound was separated, "QUERY/si_sdri" and "QUERY/wrong", (rows,).

    predicted: queries of classes by mid. advance: called with the number of rows of each batch.
    """
    missing = torch.full((subject.query_size,), float("nan"))

    def queries(case: Case) -> list[Tensor]:
        mid = find(case.label).mid
        example = subject.query(sounds.waveform(case.example)).cpu()
        names = [found.get(mid, missing) for found in (subject.bundle.class_embeddings, predicted)]
        asked = Query(example, subject.model_id)
        return [example, *names, *(asked.with_label(Query(name, subject.model_id)).vector for name in names)]

    values = {f"{query}/{figure}": np.full(len(cases), np.nan) for query in QUERIES for figure in FIGURES}
    for seconds in sorted({case.seconds for case in cases}):
        of_length = [at for at, case in enumerate(cases) if case.seconds == seconds]
        size = subject.rows_at_once(seconds)
        for batch in (of_length[at : at + size] for at in range(0, len(of_length), size)):
            mixtures, targets, others = stack([cases[at].render() for at in batch])
            columns = [torch.stack(column) for column in zip(*(queries(cases[at]) for at in batch), strict=True)]
            for name, estimate in zip(QUERIES, subject.estimates(mixtures, columns), strict=True):
                gained = improvements(estimate, mixtures, targets, others)
                for figure in FIGURES:
                    values[f"{name}/{figure}"][batch] = gained[figure].numpy()
            advance(len(batch))
    return values


def evaluate_names(
    corpus: Corpus,
    weights: Annotated[str, typer.Option(help="A shipped model's name, or a model's folder.")] = "base",
    ear: Annotated[
        Path | None, typer.Option(help="The model's query encoder where it was trained, to share its cache.")
    ] = None,
    half: Annotated[str, typer.Option(help="choose or report; the halves share no source group.")] = "report",
    list_file: Annotated[
        Path,
        typer.Option(
            "--list",
            help="Mixtures of another corpus, made by draw.",
            exists=True,
            dir_okay=False,
            show_default="the committed list",
        ),
    ] = reporting_mixtures.REPORTING,
    hold_out: Annotated[
        str, typer.Option("--hold-out", help="Classes that are left out together, with all below them.")
    ] = HELD_OUT,
    rows: Annotated[int, typer.Option(help="Mixtures of the classes that are left out together.", min=1)] = 200,
    device: Device = "auto",
    cache: Cache = Path(".cache"),
    output: Output = None,
) -> None:
    """Evaluate names of classes that the model would have no clips of, beside one example and both together."""
    if half not in reporting_mixtures.HALVES:
        raise typer.BadParameter(f"{half!r} is neither of {', '.join(reporting_mixtures.HALVES)}", param_hint="--half")
    bundle = checkpoints.load(weights)
    valid, train = (load(corpus, split, cache, progress_console.print) for split in ("valid", "train"))
    query_encoder = bundle.detector if ear is None else run_folder.load_query_encoder(ear)
    vectors = Place(corpus, cache).embeddings(query_encoder, train, QueryRules(**bundle.config["query"]))
    predictions = Predictions(bundle, vectors, train)
    subject, sounds = ModelUnderTest(bundle, device), Sounds(valid, train)
    together = frozenset(run_folder.class_mids(hold_out))
    listed = reporting_cases(list_file, half, sounds)
    lists = {
        f"each class left out, half {half}": (
            listed,
            predictions.without(*(frozenset({find(label).mid}) for label in {case.label for case in listed})),
        ),
        "classes left out together": (
            zero_shot_cases(together, valid, train, rows),
            predictions.without(together),
        ),
    }
    report = {"model": subject.model_id, "label_weight": LABEL_WEIGHT, "lists": {}}
    for title, (cases, predicted) in lists.items():
        with count_bar(title, len(cases)) as advance:
            values = measure(subject, cases, sounds, predicted, advance)
        report["lists"][title] = _print(title, cases, values)
    if output:
        write_rows(report, output)


def _print(title: str, cases: list[Case], values: dict[str, np.ndarray]) -> dict[str, dict[str, list[float]]]:
    """Print the table of one list, over rows with all queries, and return its means and intervals."""
    missing = np.isnan(np.stack(list(values.values()))).any(0)
    values = {name: np.where(missing, np.nan, column) for name, column in values.items()}
    bootstrap = TwoLevel([case.label for case in cases], [case.group for case in cases])
    first = f"{QUERIES[0]}/si_sdri"
    table = table_of(
        f"{title}: {len(cases)} mixtures", "query", "SI-SDR gain, dB [95 %]", "beyond one example", "wrong sound"
    )
    figures = {}
    for query in QUERIES:
        gains = values[f"{query}/si_sdri"]
        means = (
            bootstrap.mean(gains),
            bootstrap.difference(gains, values[first]),
            bootstrap.mean(values[f"{query}/wrong"]),
        )
        table.add_row(query, with_interval(means[0]), with_interval(means[1]), percent(means[2]))
        names = ("si_sdri", "beyond_example", "wrong")
        figures[query] = {
            name: [round(mean.value, 2), round(mean.low, 2), round(mean.high, 2)]
            for name, mean in zip(names, means, strict=True)
        }
    console.print(table)
    return figures
