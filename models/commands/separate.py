"""`python -m models separate`: stems of recordings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from models import labels
from models.commands import (
    DetectorFile,
    Device,
    Json,
    PrecisionOption,
    QualityOption,
    Recordings,
    SeparatorFile,
    Span,
    Track,
    Weights,
    decode,
    find_inputs,
    load_engine,
    parse_span,
    read_examples,
)
from models.console import print_json, print_separation, progress_bar, progress_console, shown
from models.errors import NothingLeft
from models.formats import FORMATS
from models.options import DEFAULT_AUTO, DEFAULT_OPTIONS, Auto, SeparationOptions

if TYPE_CHECKING:
    from models.engine import Engine
    from models.own_recordings import OwnRecording
    from models.queries.query import Query


def separate(
    mixtures: Recordings,
    query: Annotated[
        list[Path] | None,
        typer.Option(
            help="An example of the sound, or a query saved by embed; repeatable, examples are averaged.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="A class of AudioSet, such as Siren; repeatable.")] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A sound in your own words, such as 'a dog barking'; repeatable.")
    ] = None,
    query_text: Annotated[
        str | None, typer.Option(help="What the examples are, in your own words: name and examples are averaged.")
    ] = None,
    not_label: Annotated[
        str | None, typer.Option(help="A class that the sounds are not, though similar: it is taken off their queries.")
    ] = None,
    not_query: Annotated[
        list[Path] | None,
        typer.Option(
            help="An example of what the sounds are not; repeatable, examples are averaged.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    span: Span = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="Every sound that is detected; see --most and --threshold.")
    ] = False,
    most: Annotated[int, typer.Option(help="With --auto: how many sounds at most.", min=1)] = DEFAULT_AUTO.most,
    threshold: Annotated[
        float, typer.Option(help="With --auto: probability that a sound must reach.", min=0.01, max=1)
    ] = DEFAULT_AUTO.threshold,
    track: Track = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the stems, NAME-TARGET.FORMAT. Default: NAME-stems, here; of several recordings, stems.",
            file_okay=False,
        ),
    ] = None,
    residual: Annotated[bool, typer.Option("--residual", help="Also write the mixture without the targets.")] = False,
    format: Annotated[str, typer.Option(help=f"One of {', '.join(FORMATS)}.")] = DEFAULT_OPTIONS.format,
    bit_depth: Annotated[int | None, typer.Option(help="16, 24 or 32, where the format has it.")] = None,
    joint: Annotated[bool, typer.Option("--joint", help="Refine all targets together (Wiener filter).")] = False,
    gate: Annotated[bool, typer.Option(help="Attenuate targets that are not in the recording.")] = True,
    quality: QualityOption = DEFAULT_OPTIONS.quality,
    window: Annotated[float, typer.Option(help="Seconds that the model sees at once.")] = DEFAULT_OPTIONS.window,
    context: Annotated[
        float, typer.Option(help="Seconds at each side of a window that are computed and discarded.")
    ] = DEFAULT_OPTIONS.context,
    overlap: Annotated[float, typer.Option(help="Seconds of cross-fade between windows.")] = DEFAULT_OPTIONS.overlap,
    weights: Weights = "base",
    detector: DetectorFile = None,
    separator: SeparatorFile = None,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    as_json: Json = False,
) -> None:
    """Separate sounds from recordings by example, by class, by words, or by spans of the recording.

    All examples together are one target, named target; all spans one, named span; each saved query, each class and each
    text is a target of its own. With --auto, each sound that is detected.

    Of several recordings, stems keep the tree of a folder or glob, a table and separations.csv in the output folder
    tell what was done, recordings that are done already are skipped, and the exit status is 1 if any has failed. Stems
    that earlier runs left below a folder are no recordings of it.
    """
    from models.many.earlier_stems import FOLDER_END
    from models.many.inputs import is_one
    from models.media import ANY_LENGTH
    from models.queries.wording import slug

    if str(output) == "-":
        raise typer.BadParameter("is the folder of the stems, which are files", param_hint="--output")
    if output is not None and output.suffix.removeprefix(".").lower() in FORMATS and not output.is_dir():
        raise typer.BadParameter("is the folder of the stems; --format chooses their format", param_hint="--output")
    named = bool(query or label or text or span)
    if not (named or auto):
        raise typer.BadParameter("give a target: --query FILE, --label NAME, --text WORDS, --span START-END or --auto")
    if auto and (named or not_label or not_query):
        raise typer.BadParameter("chooses the targets itself: give no other", param_hint="--auto")
    if not_label and not_query:
        raise typer.BadParameter("give at most one of --not-label and --not-query")
    options = SeparationOptions(
        window=window,
        context=context,
        overlap=overlap,
        joint=joint,
        gate=gate,
        quality=quality,
        format=format,
        bit_depth=bit_depth,
        residual=residual,
    )
    spans = [parse_span(text) for text in span or []]
    several = not is_one(mixtures)
    inputs = find_inputs(mixtures, output or Path("stems")) if several else []
    if several and spans:
        raise typer.BadParameter("--span selects parts of one recording: give one file")
    engine = load_engine(weights, detector, separator, device, precision)
    of_labels = [(name, engine.label(name)) for name in label or []]  # first: of an unknown name it lists near ones
    classes = [(labels.find(name).slug, query) for name, query in of_labels]
    classes += [(slug(words), _text_query(engine, words)) for words in text or []]
    warnings: list[str] = []
    negative = engine.label(not_label) if not_label else _embed(engine, not_query or [], warnings)
    if several:
        from models.many.journal import print_journal
        from models.many.separating import separate_all

        chosen: Auto | dict[str, Query] = Auto(most, threshold)
        if not auto:
            chosen = _queries(engine, None, query or [], query_text, spans, classes, negative, warnings)
        with progress_bar("separating") as advance:
            journal = separate_all(engine, inputs, chosen, output or Path("stems"), options, track, advance)
        print_journal(journal, as_json)
        return
    mixture = Path(mixtures[0])
    folder = output or Path(f"{mixture.stem}{FOLDER_END}")
    with decode(mixture, track, near=folder) as recording:
        warnings = [*recording.warnings, *warnings]
        queries = None
        if not auto:
            queries = _queries(engine, recording, query or [], query_text, spans, classes, negative, warnings)
        with progress_bar("separating") as advance:
            if queries is None:
                from models.detected_targets import separate_detected

                found, done = separate_detected(
                    engine, recording.path, folder, options, Auto(most, threshold), mixture.stem, advance
                )
                told = [*found.warnings, *done.warnings]
            else:
                done = engine.separate_file(
                    recording.path,
                    queries,
                    folder,
                    options,
                    progress=advance,
                    limits=ANY_LENGTH,
                    source_name=mixture.stem,
                )
                told = done.warnings
    warnings += told
    for warning in told:
        progress_console.print(f"[yellow]{shown(mixture.name)}: {escape(warning)}")
    if as_json:
        stems = [asdict(stem) | {"path": str(stem.path)} for stem in done.stems]
        print_json(asdict(done) | {"stems": stems, "model": engine.model_id, "warnings": warnings})
        return
    print_separation(done)


def _queries(
    engine: Engine,
    mixture: OwnRecording | None,
    files: list[Path],
    query_text: str | None,
    spans: list[tuple[float, float]],
    classes: list[tuple[str, Query]],
    negative: Query | None,
    warnings: list[str],
) -> dict[str, Query]:
    """Return the targets' queries by name, and add their warnings, and those of the examples, to `warnings`."""
    from models.queries.query import Query, surroundings
    from models.separation.stems import check_names

    saved = [path for path in files if path.suffix == ".safetensors"]
    examples = [path for path in files if path.suffix != ".safetensors"]
    made: list[tuple[str, Query]] = [(path.stem, engine.accept(Query.load(path))) for path in saved]
    if query_text is not None and not examples:
        raise typer.BadParameter("--query-text says what the recordings of --query are: give one")
    heard = _embed(engine, examples, warnings)
    if heard is not None:
        made.append(("target", heard if query_text is None else heard.with_label(_text_query(engine, query_text))))
    if spans and mixture is not None:
        around = [mixture.span(*part) for part in surroundings(spans, mixture.info.duration or 0.0)]
        parts = [mixture.span(*span) for span in spans]
        made.append(("span", engine.embed(parts, from_mixture=True, surroundings=around)))
    made += classes
    if negative is not None:
        made = [(name, _without(query, negative, name)) for name, query in made]
    for _, query in made:
        for warning in query.warnings:
            warnings.append(warning)
            progress_console.print(f"[yellow]{escape(warning)}")
    check_names([name for name, _ in made])
    return dict(made)


def _embed(engine: Engine, examples: list[Path], warnings: list[str]) -> Query | None:
    """Return one query from files that hold examples of a sound; None without files."""
    parts = [part for path in examples for part in read_examples(path, warnings)]
    return engine.embed(parts) if parts else None


def _without(query: Query, negative: Query, name: str) -> Query:
    try:
        return query.without(negative)
    except NothingLeft:
        message = f"--not-label or --not-query is the same sound as {name}: nothing remains to be separated"
        raise NothingLeft(message) from None


def _text_query(engine: Engine, text: str) -> Query:
    matched = engine.match_text(text)
    meaning = ", ".join(f"{name} {weight:.0%}" for name, weight in matched.items())
    progress_console.print(f"{text}: {meaning}", markup=False, highlight=False)
    return engine.label_mean(matched)
