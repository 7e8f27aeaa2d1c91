"""`python -m models corpus ...`: pack, render, synthesise, stats, check, manifest."""

import csv
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from models.compute.threads import usable_cores
from models.console import console, progress_console
from models.corpus import checks, statistics
from models.corpus import manifest as manifests
from models.corpus.decoded import write_faults
from models.corpus.duplicates import Pair
from models.corpus.measurements import CorpusMeasurements, Measurement, measure_corpus
from models.corpus.packing import Encoded, Rows, Settings, Tally, pack
from models.corpus.rendering import sources
from models.corpus.rendering.singing import validation_groups, voices
from models.corpus.rendering.synthesizer import synthesizer
from models.corpus.sources.formats import open_source, splits_of
from models.corpus.sources.recordings import Fault, Recording, by_reason, summarise
from models.encoding import check_format
from models.errors import CorpusInvalid

FIRST = 10  # places shown of each sort
WORKERS = usable_cores()

app = typer.Typer(
    no_args_is_help=True,
    help="Labelled audio: WebDataset shards, CSV files with audio (AudioSet's segments, or columns path,labels), "
    "packed HDF5, MUSDB18. A file's name is its split (train.csv, valid.csv, test.csv), or a CSV has a column split. "
    "Invalid rows are reported with their place and left out.",
)

Corpus = Annotated[
    Path,
    typer.Argument(
        help="A folder of shards (SPLIT-000.tar), of CSV files and audio, of HDF5 files, or MUSDB18; or one CSV or "
        "HDF5 file."
    ),
]
Splits = Annotated[list[str] | None, typer.Option("--split", help="Only this split; repeatable. Default: all.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes.", show_default="one a processor")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the shards.", file_okay=False)]
ShardSize = Annotated[float, typer.Option(min=0.001, help="MiB after which a shard is closed.")]
AudioFormat = Annotated[str, typer.Option(help="opus, flac, or another that audio is written in.")]
FaultsFile = Annotated[
    Path | None, typer.Option("--faults", help="CSV file for all faults: place, reason, detail.", dir_okay=False)
]


@app.command("pack")
def pack_corpus(
    source: Corpus,
    output: Annotated[Path, typer.Argument(help="Folder for the shards.", file_okay=False)],
    split: Splits = None,
    shard_mb: ShardSize = 24,
    workers: Workers = WORKERS,
    format: AudioFormat = "opus",
    max_seconds: Annotated[
        float, typer.Option(min=0.1, help="Longer recordings are cut into pieces of this length, which share a group.")
    ] = 10,
    faults: FaultsFile = None,
) -> None:
    """Convert a corpus of any kind to WebDataset shards: mono, 32 kHz (opus: 48 kHz).

    An interrupted pack resumes when it is called again. Of recordings that are cut, a rest shorter than 1 s and silent
    pieces (peak below -60 dBFS) are left out, and counted.
    """
    check_format(format, 32_000, 1)
    settings = Settings(format, shard_mb, max_seconds)
    output.mkdir(parents=True, exist_ok=True)
    found: list[Fault] = []
    table = Table("split", "shards", "clips", "hours", "left over", "faults")
    for name in _splits(source, split):
        opened = open_source(source, name)
        with progress_console.status(f"counting {name}"):
            rows = sum(1 for _ in opened)
        with _bar(f"packing {name}", rows) as advance:
            tally = pack(opened, output, settings, workers, _tally_reporter(advance))
        found += tally.faults
        hours, left_over = f"{tally.seconds / 3600:.2f}", f"{tally.left_over:.1f} s"
        table.add_row(name, str(tally.shards), str(tally.clips), hours, left_over, str(len(tally.faults)))
    console.print(table)
    _report(found, faults)


@app.command("render")
def render_songs(
    output: Output,
    hours: Annotated[
        float, typer.Option(min=0.001, help="Of songs; their parts together are four to five times that.")
    ],
    seed: Annotated[int, typer.Option(help="The same seed and sources make the same songs.")] = 0,
    bank: Annotated[
        list[str] | None,
        typer.Option(
            help="SF2 file, or FILE=LICENCE; again for each. Default: Debian's Fluid R3 and MuseScore General."
        ),
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(help="Folder of MIDI files, or FOLDER=LICENCE; again for each. Without: songs by rule alone."),
    ] = None,
    vocals: Annotated[
        Path | None,
        typer.Option(
            help="Corpus whose singing clips are laid over songs, and the instruments of whose validation split are "
            "left out: give the one that is trained and evaluated on."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=2.0, max=20.0, help="Of a song's excerpt.")] = 10.0,
    shard_mb: ShardSize = 24,
    workers: Workers = WORKERS,
    format: AudioFormat = "opus",
) -> None:
    """Render songs part by part, to clips that add up to a band in time and in key; needs FluidSynth.

    Parts of one song share `song`, begin together and keep their levels in the mix. Clips are mono: nothing is panned.
    An interrupted call resumes when it is called again. `manifest.csv` lists sources and licences.
    """
    from models.corpus.rendering.songs import Songs  # it imports torch, which takes seconds

    check_format(format, 32_000, 1)
    banks = sources.banks(bank)
    synthesizer(banks[0].path, sources.PACKAGES)
    with progress_console.status("reading the sources"):
        apart_from = validation_groups(vocals) if vocals else frozenset()
        sung = voices(vocals) if vocals else ()
    songs = Songs(seed, math.ceil(hours * 3600 / seconds), banks, sources.score_folders(scores), sung, apart_from)
    tally = _make("rendering", songs, output, Settings(format, shard_mb, seconds), workers)
    console.print(
        f"{tally.rows - len(tally.faults)} songs, {tally.clips} parts, {tally.seconds / 3600:.2f} h of parts in "
        f"{tally.shards} shards; sources in {output / 'manifest.csv'}"
    )
    _report(tally.faults, None)


@app.command("synthesise")
def synthesise_sounds(
    output: Output,
    hours: Annotated[float, typer.Option(min=0.001, help="Of sounds.")],
    seed: Annotated[int, typer.Option(help="The same seed makes the same sounds.")] = 0,
    seconds: Annotated[float, typer.Option(min=1.0, max=20.0, help="Of a clip at most.")] = 10.0,
    shard_mb: ShardSize = 24,
    workers: Workers = WORKERS,
    format: AudioFormat = "opus",
) -> None:
    """Make everyday sounds by rule: sirens, horns, alarms, bells, weather, fire, engines, tools, animals.

    Every source, such as a siren, is drawn anew and has two clips, which share a group. An interrupted call resumes
    when it is called again.
    """
    from models.corpus.synthesis import sounds  # it imports torch, which takes seconds

    check_format(format, 32_000, 1)
    mean = sounds.TAKES * (min(sounds.SHORTEST, seconds) + seconds) / 2
    made = sounds.Sounds(seed, math.ceil(hours * 3600 / mean))
    tally = _make("synthesising", made, output, Settings(format, shard_mb, seconds), workers)
    console.print(
        f"{tally.rows} sources, {tally.clips} clips, {tally.seconds / 3600:.2f} h in {tally.shards} shards; "
        f"listed in {output / 'manifest.csv'}"
    )
    _report(tally.faults, None)


@app.command("stats")
def show_statistics(
    corpus: Corpus,
    split: Splits = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Picture, such as out.png.", dir_okay=False)] = None,
    workers: Workers = WORKERS,
    faults: FaultsFile = None,
) -> None:
    """Print statistics of a corpus by class. All recordings are decoded once."""
    measured = _survey(corpus, split, workers)
    classes, totals = statistics.count_classes(measured.recordings), statistics.totals(measured.recordings)
    if plot is not None:
        title = f"{corpus.name}: {totals['clips']} clips, {totals['minutes']:.0f} min"
        statistics.draw(measured.recordings, classes, plot, title)
    if as_json:
        counts = [asdict(one) | {"minutes": round(one.minutes, 3)} for one in classes]
        console.print_json(json.dumps({"totals": totals, "classes": counts, "faults": by_reason(measured.faults)}))
        _report(measured.faults, faults, quiet=True)
        return
    table = Table("class", *_right("clips", "minutes", "groups", "median s", "with classes below"))
    for one in classes:
        figures = f"{one.minutes:.2f}", str(one.groups), f"{one.median_seconds:.2f}"
        table.add_row(one.label, str(one.clips), *(figures if one.clips else ("", "", "")), str(one.with_parts))
    console.print(table, _sums(totals))
    console.print(
        f"{totals['classes']} classes, {totals['several_labels']} clips with several labels, "
        f"median length {totals['median_seconds']:.2f} s"
    )
    _report(measured.faults, faults)


@app.command("check")
def check(
    corpus: Corpus,
    split: Splits = None,
    min_seconds: Annotated[float, typer.Option(help="Report shorter recordings.")] = 0.1,
    workers: Workers = WORKERS,
    faults: FaultsFile = None,
    pairs: Annotated[
        Path | None, typer.Option(help="CSV file for all duplicates across splits.", dir_okay=False)
    ] = None,
) -> None:
    """Decode a whole corpus and check it.

    Reports faults, silent, clipped and short recordings, and leaks between splits: groups in two splits, and sounds in
    two splits, exactly or at another level, through another codec, or cut by some milliseconds. Exits with 1 if there
    are such groups or sounds.
    """
    measured = _survey(corpus, split, workers)
    _report(measured.faults, faults)
    for name, entries in checks.find_doubtful(measured.recordings, min_seconds).items():
        console.print(f"{len(entries)} {name}")
        for entry in entries[:FIRST]:
            console.print(f"  {entry.place}: {entry.seconds:.2f} s, {entry.level:.1f} dBFS", highlight=False)
    repeated = checks.count_repeats(measured.recordings)
    console.print(f"{repeated} recordings that repeat another of their split, sample for sample")
    shared = checks.groups_across_splits(measured.recordings)
    console.print(f"{len(shared)} groups in two splits")
    for group, splits in list(shared.items())[:FIRST]:
        console.print(f"  {group}: {', '.join(splits)}", highlight=False)
    with progress_console.status("comparing splits"):
        same = checks.duplicates_across_splits(corpus, measured.recordings)
    _show_pairs(same, measured.recordings, pairs)
    if shared or same:
        raise typer.Exit(1)


@app.command("manifest")
def write_manifest(
    corpus: Corpus,
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file.", dir_okay=False)],
    split: Splits = None,
    faults: FaultsFile = None,
) -> None:
    """List the sources of a corpus: package, path, licence, label, mid, split. No audio is read."""
    rows: set[manifests.Row] = set()
    found: list[Fault] = []
    for name in _splits(corpus, split):
        entries = list(open_source(corpus, name))
        rows |= manifests.rows([entry for entry in entries if isinstance(entry, Recording)], name)
        found += [entry for entry in entries if isinstance(entry, Fault)]
    manifests.write_rows(rows, output)
    console.print(f"{len(rows)} rows in {output}")
    _report(found, faults)


def _splits(corpus: Path, wanted: list[str] | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(wanted)) if wanted else splits_of(corpus)


def _survey(corpus: Path, split: list[str] | None, workers: int) -> CorpusMeasurements:
    names = _splits(corpus, split)
    with progress_console.status("counting"):
        rows = sum(1 for name in names for _ in open_source(corpus, name))
    with _bar("decoding", rows) as advance:
        measured = measure_corpus(corpus, names, workers, lambda seconds: advance(1, seconds))
    if not measured.recordings:
        raise CorpusInvalid(f"nothing of {corpus} can be used: {summarise(measured.faults)}")
    return measured


@contextmanager
def _bar(doing: str, rows: int) -> Iterator[Callable[[int, float], None]]:
    """Show a progress bar over a corpus's rows; yields a function of the rows done and their seconds of audio."""
    columns = (
        *(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TextColumn("{task.fields[speed]}"), TimeElapsedColumn()),
    )
    with Progress(*columns, console=progress_console) as progress:
        task = progress.add_task(doing, total=rows, speed="")
        measured = 0.0

        def advance(count: int, seconds: float) -> None:
            nonlocal measured
            measured += seconds
            elapsed = progress.tasks[0].elapsed or 0.0
            speed = f"{measured / elapsed:.0f} s of audio a second" if elapsed > 0 else ""
            progress.update(task, advance=count, speed=speed)

        yield advance


class _Made(Rows, Protocol):
    """Clips that the project makes: `count` rows, each encoded by itself."""

    @property
    def count(self) -> int: ...
    def encode(self, row: int, settings: Settings) -> Encoded: ...
    def about(self) -> dict[str, Any]: ...


def _make(doing: str, made: _Made, output: Path, settings: Settings, workers: int) -> Tally:
    """Make clips and pack them, and list their sources in `manifest.csv`."""
    output.mkdir(parents=True, exist_ok=True)
    with _bar(doing, made.count) as advance:
        tally = pack(made, output, settings, workers, _tally_reporter(advance), made.encode, made.about())
    entries = [entry for entry in open_source(output, made.split) if isinstance(entry, Recording)]
    manifests.write_rows(manifests.rows(entries, made.split), output / "manifest.csv")
    return tally


def _tally_reporter(advance: Callable[[int, float], None]) -> Callable[[Tally], None]:
    """Return a function that advances a bar by the growth of a tally; what an earlier run packed takes no time."""
    rows, seconds, begun = 0, 0.0, False

    def update(tally: Tally) -> None:
        nonlocal rows, seconds, begun
        advance(tally.rows - rows, tally.seconds - seconds if begun else 0.0)
        rows, seconds, begun = tally.rows, tally.seconds, True

    return update


def _right(*names: str) -> list[Column]:
    return [Column(name, justify="right") for name in names]


def _sums(totals: dict) -> Table:
    table = Table("", *_right("clips", "minutes", "groups"))
    parts = {**totals["by_kind"], **totals["by_split"], "all": totals}
    for name, sums in parts.items():
        table.add_row(name, str(sums["clips"]), f"{sums['minutes']:.1f}", str(sums["groups"]))
    return table


def _show_pairs(same: list[Pair], measured: list[Measurement], output: Path | None) -> None:
    exact = sum(pair.exact for pair in same)
    console.print(f"{len(same)} pairs of one sound in two splits, {exact} of them sample for sample")
    found = {(entry.split, entry.key): entry for entry in measured}
    rows = [
        (*pair.first, found[pair.first].group, *pair.second, found[pair.second].group, f"{pair.correlation:.3f}")
        for pair in same
    ]
    for split, key, group, other_split, other, other_group, alike in rows[:FIRST]:
        console.print(f"  {alike} {split} {key} ({group}) = {other_split} {other} ({other_group})", highlight=False)
    if output is not None:
        with output.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["split", "key", "group", "other_split", "other_key", "other_group", "correlation"])
            writer.writerows(rows)


def _report(faults: list[Fault], output: Path | None, quiet: bool = False) -> None:
    """Print the faults by reason with the first places, and write all of them to `output`."""
    if output is not None:
        write_faults(faults, output)
    if quiet or not faults:
        return
    progress_console.print(f"{len(faults)} faults: {summarise(faults)}", highlight=False)
    for fault in faults[:FIRST]:
        progress_console.print(f"  {fault}", highlight=False, markup=False)
    if len(faults) > FIRST and output is None:
        progress_console.print(f"  and {len(faults) - FIRST} more: --faults FILE lists all", highlight=False)
