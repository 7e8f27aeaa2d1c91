"""`evaluate musdb`: the paper's evaluation on the four stems of MUSDB18's songs.

One query for each stem, the mean over training highlights; all four stems are refined together by a Wiener filter,
without a residual; SDR by museval on windows of 2 s, median over windows, then over songs. The paper does not publish
its highlights (see `musdb_songs.substitutes`) nor its windows, which are the engine's defaults here.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture
from rich.progress import track as progress
from rich.table import Table

from models.audio import Waveform
from models.commands import DetectorFile, Device, SeparatorFile, Weights
from models.console import console, progress_console
from models.engine import Engine
from models.evaluation.arguments import Output
from models.evaluation.musdb18 import musdb_songs
from models.evaluation.musdb18.musdb_scores import Figure, StemScores, mean, median_of_medians, score
from models.evaluation.musdb18.musdb_songs import HIGHLIGHT_SECONDS, HIGHLIGHTS, STEMS, Song
from models.evaluation.reports import json_report
from models.options import DEFAULT_OPTIONS, SeparationOptions
from models.queries.query import Query

# Chen et al., AAAI 2022 (arXiv 2112.07891): median SDR in dB on MUSDB18's test set by kind of query; the last is the
# paper's own. Stems in the order of `STEMS`.
PUBLISHED = {
    "class probabilities": (4.16, 0.95, -0.86, -2.65),
    "2048-d, convolutions": (6.06, 5.00, 3.38, 2.86),
    "2048-d, ST-SED": (6.15, 5.44, 3.80, 3.05),
}

Separate = Callable[[Waveform], Mapping[str, Waveform]]


@dataclass(frozen=True)
class SongScores:
    """A song's scores by stem, and those of the unprocessed mixture as each stem's estimate."""

    name: str
    stems: dict[str, StemScores]
    mixture: dict[str, StemScores]


def evaluate_musdb(
    root: Annotated[Path, typer.Argument(help="MUSDB18 or MUSDB18-HQ: train and test inside.", file_okay=False)],
    highlights: Annotated[
        Path | None,
        typer.Option(
            help="Folder with vocals, drums, bass and other, a file an example. Default: the loudest 30 s of each stem"
            f" of the first {HIGHLIGHTS} training songs, in place of the authors' own, which are not published.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    weights: Weights = "base",
    detector: DetectorFile = None,
    separator: SeparatorFile = None,
    subset: Annotated[str, typer.Option(help="test or train: the songs to separate.")] = "test",
    tracks: Annotated[int | None, typer.Option(help="Number of songs, from the first.", min=1)] = None,
    direct: Annotated[
        bool, typer.Option("--direct", help="Compute the same SDR by its formula, without museval: 100 times faster.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Songs scored at a time, each takes about 10 GB with museval.", min=1)] = 1,
    window: Annotated[
        float, typer.Option(help="Seconds that the model sees at once; the authors' 2.")
    ] = DEFAULT_OPTIONS.window,
    context: Annotated[
        float, typer.Option(help="Seconds at each side of a window that are computed and discarded.")
    ] = DEFAULT_OPTIONS.context,
    overlap: Annotated[float, typer.Option(help="Seconds of cross-fade between windows.")] = DEFAULT_OPTIONS.overlap,
    device: Device = "auto",
    output: Output = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of the songs' medians, such as out.png.")] = None,
) -> None:
    """Evaluate on MUSDB18's four stems by the paper's protocol: median SDR, with the paper's published figures."""
    if subset not in ("train", "test"):
        raise typer.BadParameter(f"{subset!r} is neither test nor train", param_hint="--subset")
    chosen = musdb_songs.songs(root, subset)[:tracks]
    given = {name: path for name, path in (("detector", detector), ("separator", separator)) if path is not None}
    engine = Engine.load(given or weights, device)
    queries, made_of = make_queries(engine, root, highlights)

    options = SeparationOptions(
        window=window, context=context, overlap=overlap, joint=True, exhaustive=True, gate=False
    )

    def separate(mixture: Waveform) -> Mapping[str, Waveform]:
        return engine.separate(mixture, queries, options).stems

    scored = measure(chosen, separate, direct, jobs)
    songs = list(progress(scored, "songs", len(chosen), console=progress_console, transient=True))
    figures = summary(songs)
    _print(figures, songs, f"{engine.model_id} on {root.name}/{subset}, {len(songs)} songs", made_of)
    if output:
        protocol = {"direct": direct, "window": window, "context": context, "overlap": overlap, "queries": made_of}
        head = {"model": engine.model_id, "subset": subset, "songs": len(songs), "protocol": protocol}
        found = {name: {stem: asdict(one) for stem, one in row.items()} for name, row in figures.items()}
        report = head | {"figures": found, "published": PUBLISHED, "by_song": [asdict(song) for song in songs]}
        json_report.write(report, output)
    if plot:
        draw(songs, plot, engine.model_id)


def make_queries(engine: Engine, root: Path, highlights: Path | None) -> tuple[dict[str, Query], dict[str, str]]:
    """Return the four stems' queries, and a description of the examples of each."""
    training = [] if highlights else musdb_songs.songs(root, "train")[:HIGHLIGHTS]
    queries, made_of = {}, {}
    for stem in progress(STEMS, "queries", console=progress_console, transient=True):
        examples = (
            musdb_songs.read_highlights(highlights, stem) if highlights else musdb_songs.substitutes(training, stem)
        )
        queries[stem], used, silent = musdb_songs.mean_query(engine, examples)
        kind = "files" if highlights else f"training songs, their loudest {HIGHLIGHT_SECONDS:g} s"
        coherence = f"coherence {queries[stem].coherence:.2f}"
        made_of[stem] = f"{used} {kind}, {coherence}" + (f"; {silent} silent ones left out" if silent else "")
    return queries, made_of


def measure(songs: Sequence[Song], separate: Separate, direct: bool = False, jobs: int = 1) -> Iterator[SongScores]:
    """Separate and score songs in order, one in memory at a time; with several jobs, scoring runs in other processes.

    separate: a mixture -> its four stems by name, at its rate.
    """
    if jobs == 1:
        for song in songs:
            yield _scores(song.name, *_separate_song(song, separate), direct)
        return
    with (
        tempfile.TemporaryDirectory(prefix="musdb-") as waiting,
        # Spawned: the engine's threads and its device must not be copied into the workers.
        ProcessPoolExecutor(max(1, min(jobs, len(songs))), mp_context=get_context("spawn")) as pool,
    ):
        pending: deque[Future[SongScores]] = deque()
        for number, song in enumerate(songs):
            references, estimates, mixture, rate = _separate_song(song, separate)
            path = Path(waiting) / f"{number}.npz"
            np.savez(path, references=references, estimates=estimates, mixture=mixture)
            pending.append(pool.submit(_scores_of_file, song.name, path, rate, direct))
            if len(pending) > jobs:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _separate_song(song: Song, separate: Separate) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return references and estimates (4, n, C), the mixture (n, C), all float32, and their rate."""
    mixture = song.read("mixture")
    estimates = separate(mixture)
    references = [song.read(stem).samples for stem in STEMS]
    # The streams of a stem file may differ by a frame of their codec.
    frames = min(mixture.frames, *(reference.shape[1] for reference in references))
    return (
        np.stack([reference[:, :frames].T.numpy() for reference in references]),
        np.stack([estimates[stem].samples[:, :frames].T.numpy() for stem in STEMS]),
        mixture.samples[:, :frames].T.numpy(),
        mixture.rate,
    )


def _scores(
    name: str, references: np.ndarray, estimates: np.ndarray, mixture: np.ndarray, rate: int, direct: bool
) -> SongScores:
    itself = np.broadcast_to(mixture, references.shape)
    return SongScores(
        name,
        dict(zip(STEMS, score(references, estimates, rate, direct), strict=True)),
        dict(zip(STEMS, score(references, itself, rate, direct=True), strict=True)),
    )


def _scores_of_file(name: str, path: Path, rate: int, direct: bool) -> SongScores:
    with np.load(path) as stored:
        arrays = stored["references"], stored["estimates"], stored["mixture"]
    path.unlink()
    return _scores(name, *arrays, rate, direct)


def summary(songs: Sequence[SongScores]) -> dict[str, dict[str, Figure]]:
    """Return figures over songs by stem: the paper's median, the same for the mixture, and whole songs' means."""
    figures: dict[str, dict[str, Figure]] = {"median_sdr": {}, "mixture_median_sdr": {}, "sdr": {}, "si_sdr": {}}
    for stem in STEMS:
        answers = [song.stems[stem] for song in songs]
        figures["median_sdr"][stem] = median_of_medians(answers)
        figures["mixture_median_sdr"][stem] = median_of_medians([song.mixture[stem] for song in songs])
        figures["sdr"][stem] = mean([one.sdr for one in answers])
        figures["si_sdr"][stem] = mean([one.si_sdr for one in answers])
    return figures


_ROWS = {
    "median_sdr": "median of medians",
    "mixture_median_sdr": "that of the mixture",
    "sdr": "whole songs: SDR",
    "si_sdr": "whole songs: SI-SDR",
}


def _print(figures: dict[str, dict[str, Figure]], songs: Sequence[SongScores], title: str, made_of: dict) -> None:
    table = Table("dB", *STEMS, title=title)
    for name, row in figures.items():
        cells = (f"{one.value:.2f}\n[{one.low:.1f}, {one.high:.1f}]" for one in row.values())
        table.add_row(_ROWS[name], *cells, end_section=name == "si_sdr")
    for name, values in PUBLISHED.items():
        table.add_row(f"published: {name}", *(f"{value:.2f}" for value in values))
    console.print(table)
    console.print(
        "Median of medians: SDR over windows of 2 s, then over songs; whole songs: means. In brackets, 95 % of draws of"
        " songs. Published: the authors' own medians of medians on MUSDB18's 50 test songs."
    )
    windows = [np.isnan(song.stems[stem].windows) for song in songs for stem in STEMS]
    left_out = sum(int(some.sum()) for some in windows)
    console.print(f"{left_out} of {sum(map(len, windows))} windows left out: a stem or an estimate is silent in them.")
    for stem, words in made_of.items():
        console.print(f"query for {stem}: {words}")


def draw(songs: Sequence[SongScores], path: Path, title: str) -> None:
    """Draw each song's median SDR as a dot, with the mixture's in grey, the median as a bar, the paper's as a line."""
    picture = Picture(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.add_subplot()
    spread = np.random.default_rng(0).uniform(-0.12, 0.12, len(songs))
    for place, stem in enumerate(STEMS):
        answers = [song.stems[stem] for song in songs]
        itself = [song.mixture[stem].median for song in songs]
        axes.scatter(place - 0.2 + spread, itself, 12, "0.7", label="the mixture itself, a song")
        axes.scatter(place + 0.2 + spread, [one.median for one in answers], 16, "tab:blue", label=f"{title}, a song")
        middle = median_of_medians(answers).value
        axes.hlines(middle, place + 0.03, place + 0.37, "tab:blue", linewidth=3, label=f"{title}, median of songs")
        published = PUBLISHED["2048-d, ST-SED"][place]
        axes.hlines(published, place - 0.4, place + 0.4, "tab:red", linestyle="--", label="the paper, published")
    axes.set_xticks(range(len(STEMS)), STEMS)
    axes.set_ylabel("median SDR over windows of 2 s, dB")
    axes.set_title(f"{len(songs)} songs")
    axes.grid(axis="y", alpha=0.3)
    shown = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # once each, not once a stem
    axes.legend(shown.values(), shown.keys(), loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2)
    picture.savefig(path, dpi=120)
