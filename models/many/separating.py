"""Separation of many recordings with the same queries."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.compute.batches import Failure
from models.detected_targets import separate_detected
from models.engine import Engine, SeparatedFiles
from models.errors import ModelsError
from models.many.earlier_stems import TABLE
from models.many.inputs import Input
from models.many.journal import Journal
from models.many.running import run_all
from models.media import ANY_LENGTH
from models.options import Auto, SeparationOptions
from models.own_recordings import OwnRecording
from models.queries.query import Query
from models.separation.short_recordings import RecordingFile


def separate_all(
    engine: Engine,
    inputs: Sequence[Input],
    queries: Mapping[str, Query] | Auto,
    output: Path,
    options: SeparationOptions,
    track: int | None,
    advance: Callable[[float, str], object],
) -> Journal:
    """Separate recordings into stems below `output`, and return the journal, `separations.csv` there.

    advance(ratio, name of a recording) is called after each.
    """
    output.mkdir(parents=True, exist_ok=True)
    shown = ["duration", *(["targets"] if isinstance(queries, Auto) else [f"presence of {name}" for name in queries])]
    made_of = [engine.model_id, asdict(options), _digests(queries), track]
    journal = Journal(output / TABLE, shown, ["gain", "stems"], inputs, made_of)

    def stems_exist(row: dict[str, str]) -> bool:
        names = row.get("stems", "").split("|")
        return all((output / name).is_file() for name in names if name) and any(names)

    def separate(recordings: Iterator[tuple[Path, Input]]) -> Iterator[tuple[Path, SeparatedFiles | Failure]]:
        if isinstance(queries, Auto):
            yield from _separate_detected(engine, recordings, output, options, queries)
            return
        files = (RecordingFile(path, output / one.folder, one.name) for path, one in recordings)
        for file, made in engine.separate_files(files, queries, options, limits=ANY_LENGTH):
            yield file.path, made

    def cells(one: Input, recording: OwnRecording, made: SeparatedFiles) -> dict[str, Any]:
        targets = ", ".join(f"{name} {presence:.3f}" for name, presence in made.presence.items())
        return _cells(made, recording, output) | ({"targets": targets} if isinstance(queries, Auto) else {})

    run_all(journal, stems_exist, track, separate, cells, advance)
    return journal


def _digests(queries: Mapping[str, Query] | Auto) -> dict[str, Any]:
    """Return what of the queries the stems depend on."""
    if isinstance(queries, Auto):
        return {"auto": asdict(queries)}
    return {name: hashlib.sha256(one.vector.float().numpy().tobytes()).hexdigest() for name, one in queries.items()}


def _separate_detected(
    engine: Engine, recordings: Iterator[tuple[Path, Input]], output: Path, options: SeparationOptions, auto: Auto
) -> Iterator[tuple[Path, SeparatedFiles | Failure]]:
    """Separate one recording after the other: each has queries of its own, so none share a batch."""
    for path, one in recordings:
        try:
            found, made = separate_detected(engine, path, output / one.folder, options, auto, one.name)
        except (ModelsError, OSError, ValueError) as error:
            yield path, error
        else:
            made.warnings[:0] = found.warnings
            yield path, made


def _cells(made: SeparatedFiles, recording: OwnRecording, output: Path) -> dict[str, Any]:
    return {
        "duration": f"{made.duration:.3f}",
        "gain": f"{made.gain:.4g}",
        **{f"presence of {name}": f"{presence:.3f}" for name, presence in made.presence.items()},
        "warnings": " ".join([*recording.warnings, *made.warnings]),
        "stems": "|".join(str(stem.path.relative_to(output)) for stem in made.stems),
    }
