"""The commands of `python -m models` that use a model: separate, detect, embed, convert.

What takes long to import, torch above all, is imported by what uses it, so that --help is there at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from models import labels
from models.console import console, print_json, print_separation, progress_bar, progress_console, shown
from models.formats import FORMATS
from models.options import DEFAULT_AUTO, DEFAULT_OPTIONS, SPEEDS, THRESHOLD, TOP, Auto, Quality, SeparationOptions

if TYPE_CHECKING:
    from models.audio import Waveform
    from models.compute.precision import Precision
    from models.engine import Engine
    from models.many.inputs import Input
    from models.own_recordings import OwnRecording
    from models.queries.query import Query

Recordings = Annotated[
    list[str],
    typer.Argument(
        metavar="RECORDING", help="Recordings in any format that FFmpeg reads: files, folders, or quoted globs."
    ),
]
Weights = Annotated[str, typer.Option(help="A shipped model's name, or a folder made by convert or ship.")]
DetectorFile = Annotated[
    Path | None, typer.Option("--detector", help="The authors' htsat_audioset_2048d.ckpt.", exists=True, dir_okay=False)
]
SeparatorFile = Annotated[
    Path | None,
    typer.Option(
        "--separator",
        help="The authors' zeroshot_asp_full.ckpt; alone will do, it holds both.",
        exists=True,
        dir_okay=False,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="auto: bfloat16 where it is fast; exact: float32.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Track = Annotated[
    int | None, typer.Option("--track", min=1, help="Audio track, from 1. Default: the first that can be read.")
]
QualityOption = Annotated[
    Quality, typer.Option("--quality", help=f"high: mean of {len(SPEEDS['high'])} speeds, as many times as slow.")
]
Span = Annotated[list[str] | None, typer.Option("--span", help="A part in seconds, START-END; repeatable.")]


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
    tell what was done, recordings that are done already are skipped, and the exit status is 1 if any has failed.
    """
    from models.many.inputs import is_one
    from models.media import ANY_LENGTH
    from models.queries.matching import slug

    if output is not None and output.suffix.removeprefix(".").lower() in FORMATS and not output.is_dir():
        raise typer.BadParameter("is the folder of the stems; --format chooses their format", param_hint="--output")
    named = bool(query or label or text or span)
    if not (named or auto):
        raise typer.BadParameter("give a target: --query FILE, --label NAME, --text WORDS, --span START-END or --auto")
    if named and auto:
        raise typer.BadParameter("chooses the targets itself: give no other", param_hint="--auto")
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
    spans = [_seconds(text) for text in span or []]
    several = not is_one(mixtures)
    inputs = _inputs(mixtures, output or Path("stems")) if several else []
    if several and spans:
        raise typer.BadParameter("--span selects parts of one recording: give one file")
    engine = _engine(weights, detector, separator, device, precision)
    of_labels = [(name, engine.label(name)) for name in label or []]  # first: of an unknown name it lists near ones
    classes = [(labels.find(name).slug, query) for name, query in of_labels]
    classes += [(slug(words), _text_query(engine, words)) for words in text or []]
    if several:
        from models.many.journal import print_journal
        from models.many.separating import separate_all

        chosen = Auto(most, threshold) if auto else _queries(engine, None, query or [], query_text, spans, classes, [])
        with progress_bar("separating") as advance:
            journal = separate_all(engine, inputs, chosen, output or Path("stems"), options, track, advance)
        print_journal(journal, as_json)
        return
    mixture = Path(mixtures[0])
    folder = output or Path(f"{mixture.stem}-stems")
    with _recording(mixture, track, near=folder) as recording:
        warnings = recording.warnings
        queries = None if auto else _queries(engine, recording, query or [], query_text, spans, classes, warnings)
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


def detect(
    recordings: Recordings,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for NAME.json of each recording; needed for several, by default detections.",
            file_okay=False,
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="How many classes to list.", min=1, max=labels.CLASSES)] = TOP,
    threshold: Annotated[
        float, typer.Option(help="Probability that an event must reach; it ends below half of it.", min=0.001, max=1)
    ] = THRESHOLD,
    track: Track = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of the timeline, such as out.png.", dir_okay=False)] = None,
    weights: Weights = "base",
    detector: DetectorFile = None,
    separator: SeparatorFile = None,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    as_json: Json = False,
) -> None:
    """Detect the sounds in recordings: tags, and events with their start and end.

    Several recordings are written to files, with a table and detections.csv, as separate does.
    """
    from models.many.inputs import is_one
    from models.media import ANY_LENGTH
    from models.own_recordings import printable

    if output is not None or not is_one(recordings):
        from models.many.detecting import detect_all
        from models.many.journal import print_journal

        if plot is not None:
            raise typer.BadParameter("draws one recording: give one file, and no --output", param_hint="--plot")
        folder = output or Path("detections")
        inputs = _inputs(recordings, folder)
        engine = _engine(weights, detector, separator, device, precision)
        with progress_bar("detecting") as advance:
            journal = detect_all(engine, inputs, folder, top, threshold, track, advance)
        print_journal(journal, as_json)
        return
    recording = Path(recordings[0])
    engine = _engine(weights, detector, separator, device, precision)
    with _recording(recording, track) as decoded, progress_console.status("detecting"):
        found = engine.detect_file(decoded.path, top, threshold, limits=ANY_LENGTH)
    if plot is not None:
        from models.plots import draw_detection

        draw_detection(found, plot, printable(recording.name))
    if as_json:
        print_json(
            {
                "duration": found.duration,
                "tags": [asdict(tag) for tag in found.tags],
                "events": [asdict(event) for event in found.events],
                "model": engine.model_id,
                "warnings": decoded.warnings,
            }
        )
        return
    tags = Table("class", "probability")
    for tag in found.tags:
        tags.add_row(tag.label, f"{tag.probability:.2f}")
    events = Table("from", "to", "class", "confidence")
    for event in found.events:
        events.add_row(f"{event.start:.2f} s", f"{event.end:.2f} s", event.label, f"{event.confidence:.2f}")
    console.print(tags, events)


def embed(
    examples: Annotated[list[Path], typer.Argument(help="Examples of one sound.", exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the query.", dir_okay=False)],
    span: Span = None,
    track: Track = None,
    weights: Weights = "base",
    detector: DetectorFile = None,
    separator: SeparatorFile = None,
    device: Device = "auto",
    precision: PrecisionOption = "exact",
    as_json: Json = False,
) -> None:
    """Make a query from examples of a sound and save it for separate --query."""
    spans = [_seconds(text) for text in span or []]
    if spans and len(examples) != 1:
        raise typer.BadParameter("--span selects parts of one example: give one file")
    engine = _engine(weights, detector, separator, device, precision)
    warnings: list[str] = []
    made = engine.embed([part for path in examples for part in _read(path, warnings, track, spans)])
    made.save(output)
    if as_json:
        answer = {key: value for key, value in vars(made).items() if key != "vector"}
        print_json(answer | {"warnings": [*warnings, *made.warnings], "path": str(output)})
        return
    console.print(f"{shown(output)}: {made.model}, {made.seconds_used:.1f} s of sound, coherence {made.coherence:.2f}")
    for warning in made.warnings:
        console.print(f"[yellow]{escape(warning)}")


def convert(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model.", file_okay=False)],
    separator: Annotated[Path, typer.Option(help="The authors' zeroshot_asp_full.ckpt.", exists=True, dir_okay=False)],
    detector: DetectorFile = None,
    name: Annotated[str, typer.Option(help="Name of the model, by which requests ask for it.")] = "paper",
    half: Annotated[bool, typer.Option("--half", help="Store matrices as float16: half the size.")] = False,
) -> None:
    """Convert the authors' files to a folder for --weights, without pickles."""
    from models import checkpoints

    with progress_console.status("converting"):
        bundle = checkpoints.authors_bundle(detector, separator)
        checkpoints.save(replace(bundle, name=name, config=bundle.config | {"name": name}), output, half)
    console.print(f"{shown(output)}: use it with --weights {shown(output)}")


def describe(
    weights: Weights = "base",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A JSON file. Default: printed.", dir_okay=False)
    ] = None,
) -> None:
    """Describe a model: its version and classes. An API that has the description takes jobs before any worker lives."""
    description = _engine(weights, None, None, "cpu", "auto").describe()
    if output is None:
        print_json(description)
    else:
        output.write_text(json.dumps(description, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def _inputs(arguments: list[str], output: Path) -> list[Input]:
    from models.many.inputs import NothingFound, find

    try:
        return find(arguments, output)
    except NothingFound as error:
        raise typer.BadParameter(str(error)) from None


def _engine(weights: str, detector: Path | None, separator: Path | None, device: str, precision: str) -> Engine:
    from models.engine import Engine

    if precision not in ("auto", "exact"):
        raise typer.BadParameter(f"{precision!r} is neither auto nor exact", param_hint="--precision")
    chosen: Precision = "exact" if precision == "exact" else "auto"
    given = {name: path for name, path in (("detector", detector), ("separator", separator)) if path is not None}
    with progress_console.status("loading the model"):
        return Engine.load(given or weights, device, chosen)


def _queries(
    engine: Engine,
    mixture: OwnRecording | None,
    files: list[Path],
    query_text: str | None,
    spans: list[tuple[float, float]],
    classes: list[tuple[str, Query]],
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
    if examples:
        heard = engine.embed([part for path in examples for part in _read(path, warnings)])
        made.append(("target", heard if query_text is None else heard.with_label(_text_query(engine, query_text))))
    if spans and mixture is not None:
        around = [mixture.span(*part) for part in surroundings(spans, mixture.info.duration or 0.0)]
        parts = [mixture.span(*span) for span in spans]
        made.append(("span", engine.embed(parts, from_mixture=True, surroundings=around)))
    made += classes
    for _, query in made:
        for warning in query.warnings:
            warnings.append(warning)
            progress_console.print(f"[yellow]{escape(warning)}")
    check_names([name for name, _ in made])
    return dict(made)


def _text_query(engine: Engine, text: str) -> Query:
    matched = engine.match_text(text)
    meaning = ", ".join(f"{name} {weight:.0%}" for name, weight in matched.items())
    progress_console.print(f"{text}: {meaning}", markup=False, highlight=False)
    return engine.label_mean(matched)


@contextmanager
def _recording(path: Path, track: int | None = None, near: Path | None = None) -> Iterator[OwnRecording]:
    from models.own_recordings import open_recording

    with ExitStack() as stack:
        with progress_console.status("decoding"):
            recording = stack.enter_context(open_recording(path, track, near))
        for warning in recording.warnings:
            progress_console.print(f"[yellow]{shown(path.name)}: {escape(warning)}")
        yield recording


def _read(
    path: Path, warnings: list[str], track: int | None = None, spans: Sequence[tuple[float, float]] = ()
) -> list[Waveform]:
    """Return the examples in a file, its spans or all of it, and add its warnings to `warnings`."""
    from models.own_recordings import printable

    with _recording(path, track) as recording:
        warnings += [f"{printable(path.name)}: {warning}" for warning in recording.warnings]
        return [recording.span(*span) for span in spans] or [recording.read()]


def _seconds(text: str) -> tuple[float, float]:
    start, _, end = text.partition("-")
    try:
        return float(start), float(end)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a span: write START-END in seconds, such as 3.2-5.0") from None
