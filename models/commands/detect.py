"""`python -m models detect`: the sounds in recordings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from models import labels
from models.commands import (
    DetectorFile,
    Device,
    Json,
    PrecisionOption,
    Recordings,
    SeparatorFile,
    Track,
    Weights,
    decode,
    find_inputs,
    load_engine,
)
from models.console import console, print_json, progress_bar, progress_console
from models.options import THRESHOLD, TOP


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
        inputs = find_inputs(recordings, folder)
        engine = load_engine(weights, detector, separator, device, precision)
        with progress_bar("detecting") as advance:
            journal = detect_all(engine, inputs, folder, top, threshold, track, advance)
        print_journal(journal, as_json)
        return
    recording = Path(recordings[0])
    engine = load_engine(weights, detector, separator, device, precision)
    with decode(recording, track) as decoded, progress_console.status("detecting"):
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
