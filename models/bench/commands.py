"""`python -m models bench`: one command, whose sections can be measured apart."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from rich.console import Console
from rich.table import Table

from models import checkpoints
from models.bench import machine, precision_curve, programs, separations

Section = Literal["machine", "separations", "precision", "programs", "files"]


def bench(
    sections: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(get_args(Section))}; all by default.", show_default=False)
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="Models of separations: shipped, folders, paper (weights by chance), hybrid-demucs. Repeatable."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length of the recording.", min=1)] = 30.0,
    long: Annotated[
        float, typer.Option(help="Length of a second recording, to see whether memory grows; 0: none.")
    ] = 0.0,
    targets: Annotated[int, typer.Option(help="Queries in one pass.", min=1, max=16)] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file for the JSON too.", dir_okay=False)
    ] = None,
    way: Annotated[str, typer.Option(hidden=True)] = "",
    point: Annotated[str, typer.Option(hidden=True)] = "",
    folder: Annotated[Path, typer.Option(hidden=True)] = Path(),
) -> None:
    """Measure speed and peak memory on this machine.

    The sections: its limits, separations beside other ways of making them, the paper's separator with more or fewer
    layers in float32, whole commands, and many short files. For meaningful figures, run nothing else.
    """
    model = (weights or ["base"])[0]
    if point:
        typer.echo(json.dumps(precision_curve.measure(model, point, seconds, folder)))
        return
    if way:
        typer.echo(json.dumps(separations.measure(way, model, seconds, targets, device, folder)))
        return
    models = weights or [*checkpoints.model_names(), "paper", separations.DEMUCS]
    lengths = [length for length in (seconds, long) if length]
    measured: dict[str, Callable[[], Iterable[dict]]] = {
        "machine": lambda: [machine.measure()],
        "separations": lambda: separations.measure_all(models, lengths, targets, device),
        "precision": lambda: precision_curve.measure_all(models, seconds),
        "programs": programs.measure_commands,
        "files": programs.measure_many_files,
    }
    if unknown := set(sections or ()) - measured.keys():
        raise typer.BadParameter(f"no such section: {', '.join(sorted(unknown))}; there are {', '.join(measured)}")
    results: dict[str, list[dict]] = {}
    console = Console(quiet=as_json)
    for name in sections or measured:
        with console.status(f"measuring: {name}"):
            results[name] = list(measured[name]())
        console.print(_TABLES[name](results[name]))
    text = json.dumps(results, indent=2)
    if output is not None:
        output.write_text(text + "\n")
    if as_json:
        typer.echo(text)


def _machine_table(rows: list[dict]) -> Table:
    (row,) = rows
    return _table(
        "machine",
        None,
        ("processor", "threads", "float32", "bfloat16", "copy"),
        [
            (
                row["processor"],
                str(row["threads"]),
                f"{row['float32_gflops']:.0f} GFLOP/s",
                f"{row['bfloat16_gflops']:.0f} GFLOP/s",
                f"{row['copy_gb_per_second']:.1f} GB/s",
            )
        ],
    )


def _separations_table(rows: list[dict]) -> Table:
    columns = "model", "way", "audio", "time", "of all cores", "real-time factor", "peak memory", "SNR"
    cells = [
        (
            row["model"],
            separations.WAYS.get(row["way"], "networks only"),
            f"{row['seconds']:g} s",
            f"{row['took']:.1f} s",
            f"{row['cpu']:.1f} s",
            f"{row['took'] / row['seconds']:.3f}",
            f"{row['peak_mib']:.0f} MiB",
            "" if row["snr"] is None else f"{row['snr']:.0f} dB",
        )
        for row in rows
    ]
    return _table("separations", separations.NOTES, columns, cells)


def _precision_table(rows: list[dict]) -> Table:
    columns = "model", "float32", "window", "audio", "time", "of all cores", "ratio", "peak memory", "SNR"
    cells = [
        (
            row["model"],
            row["float32"],
            f"{row['window']:g} s" if row["window"] else "",
            f"{row['seconds']:g} s",
            f"{row['took']:.1f} s",
            f"{row['cpu']:.1f} s",
            f"{row['ratio']:.2f}",
            f"{row['peak_mib']:.0f} MiB",
            "" if row["snr"] is None else f"{row['snr']:.0f} dB",
        )
        for row in rows
    ]
    return _table("precision", precision_curve.NOTE, columns, cells)


def _programs_table(rows: list[dict]) -> Table:
    cells = [(row["program"], row["condition"], f"{row['took']:.2f} s", f"{row['cpu']:.2f} s") for row in rows]
    return _table("commands", programs.NOTE, ("command", "condition", "time", "of all cores"), cells)


def _table(title: str, note: str | None, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    table = Table(*columns, title=title, caption=note, caption_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


_TABLES: dict[str, Callable[[list[dict[str, Any]]], Table]] = {
    "machine": _machine_table,
    "separations": _separations_table,
    "precision": _precision_table,
    "programs": _programs_table,
    "files": _programs_table,
}
