"""`python -m models evaluate ...`: each command prints a table, and writes JSON and a picture on request."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from models import checkpoints
from models.commands import DetectorFile, Device, QualityOption, SeparatorFile
from models.console import console, count_bar, progress_console
from models.corpus.decoded import load
from models.corpus.sources.formats import open_source, splits_of
from models.evaluation import bands, failures_report, mixture_figures, practical, reporting_mixtures
from models.evaluation.arguments import Cache, Corpus, DrawnRows, Output, Plot, WeightsOrRun
from models.evaluation.detectors import events, tagging
from models.evaluation.model_under_test import ModelUnderTest, load_bundle
from models.evaluation.musdb18 import musdb
from models.evaluation.presence_figures import measure_presence
from models.evaluation.reports import comparison
from models.evaluation.reports.json_report import write_rows
from models.evaluation.reports.pictures import draw_gains
from models.evaluation.reports.summaries import Summary
from models.options import DEFAULT_OPTIONS, Quality
from models.validation import mixtures
from models.validation.rendering import Sounds, decode_clips

app = typer.Typer(no_args_is_help=True, help="Evaluate a model.")
app.command("musdb")(musdb.evaluate_musdb)
app.command("tagging")(tagging.evaluate_tagging)
app.command("events")(events.evaluate_events)
app.command("worst")(failures_report.evaluate_worst)
app.command("bands")(bands.evaluate_bands)
app.command("draw-bands")(bands.draw_bands)
app.command("practical")(practical.evaluate_practical)
app.command("draw-practical")(practical.draw_practical)


@app.command("mixtures")
def evaluate_mixtures(
    corpus: Corpus,
    weights: WeightsOrRun = "base",
    detector: DetectorFile = None,
    separator: SeparatorFile = None,
    half: Annotated[str, typer.Option(help="choose, report or both; the halves share no source group.")] = "both",
    rows: Annotated[int | None, typer.Option(help="Number of rows, from the start of the list.", min=1)] = None,
    list_file: Annotated[
        Path,
        typer.Option(
            "--list",
            help="Rows of another corpus, made by draw.",
            exists=True,
            dir_okay=False,
            show_default="the committed list",
        ),
    ] = reporting_mixtures.REPORTING,
    quality: QualityOption = DEFAULT_OPTIONS.quality,
    device: Device = "auto",
    cache: Cache = Path(".cache"),
    output: Output = None,
    plot: Plot = None,
) -> None:
    """Evaluate on listed mixtures of two sources at 0 dB with each kind of query, and on other scenes."""
    if half not in (*reporting_mixtures.HALVES, "both"):
        raise typer.BadParameter(
            f"{half!r} is none of {', '.join(reporting_mixtures.HALVES)} and both", param_hint="--half"
        )
    subject = _subject(weights, detector, separator, device, quality)
    listed = {
        number: row for number, row in enumerate(reporting_mixtures.read(list_file)) if half in (row.half, "both")
    }
    listed = dict(list(listed.items())[:rows])
    clips = load(corpus, "valid", cache, progress_console.print)
    trained = None
    if "train" in splits_of(corpus):
        keys = {row.trained for row in listed.values()}
        trained = Sounds(decode_clips(open_source(corpus, "train"), keys))
    else:
        progress_console.print(f"{corpus} has no training split: no figures for queries from training clips")
    with count_bar("mixtures", len(listed)) as advance:
        summary = Summary(mixture_figures.measure(subject, listed, Sounds(clips), trained, advance))
    if "label" not in summary.queries:
        progress_console.print(f"{subject.model_id} has no class embeddings: no figures for labels")
    presence = None
    if list_file == reporting_mixtures.REPORTING:  # the validation mixtures are of the same corpus
        presence = measure_presence(subject, list(mixtures.render(mixtures.read(), clips)))
    title = f"{subject.model_id}, {len(listed)} mixtures"
    for table in summary.tables(title):
        console.print(table)
    if presence is not None:
        console.print(presence.table())
    if output:
        about = {"model": subject.model_id, "list": reporting_mixtures.digest(list_file), "half": half}
        about |= {"quality": quality} if quality != DEFAULT_OPTIONS.quality else {}
        figures = {"presence": asdict(presence) if presence else None} | summary.as_json()
        write_rows(about | figures, output)
    if plot:
        draw_gains(summary, plot, subject.model_id)


@app.command("compare")
def evaluate_compare(
    first: Annotated[Path, typer.Argument(help="JSON of one model.", exists=True, dir_okay=False)],
    second: Annotated[Path, typer.Argument(help="JSON of another.", exists=True, dir_okay=False)],
    output: Output = None,
) -> None:
    """Compare two models on the rows that both have: means, paired differences, intervals."""
    ours, theirs = comparison.read(first), comparison.read(second)
    compared = comparison.compare(ours, theirs)
    console.print(comparison.table(ours, theirs, compared))
    if output:
        write_rows(comparison.as_json(ours, theirs, compared), output)


@app.command("draw")
def evaluate_draw(
    corpus: Corpus,
    output: DrawnRows = reporting_mixtures.REPORTING,
    rows: Annotated[int, typer.Option(help="How many.", min=2)] = reporting_mixtures.ROWS,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = reporting_mixtures.SEED,
    cache: Cache = Path(".cache"),
) -> None:
    """Draw a list of mixtures from the corpus's valid and train splits; the same seed draws the same rows."""
    valid, train = (load(corpus, split, cache, progress_console.print) for split in ("valid", "train"))
    drawn = reporting_mixtures.draw(valid, train, rows, seed)
    reporting_mixtures.write(drawn, output)
    console.print(f"{output}: {len(drawn)} mixtures of {len({row.label for row in drawn})} target classes")


def _subject(
    weights: str, detector: Path | None, separator: Path | None, device: str, quality: Quality
) -> ModelUnderTest:
    if detector or separator:
        return ModelUnderTest(checkpoints.authors_bundle(detector, separator), device, quality)
    return ModelUnderTest(load_bundle(weights), device, quality)
