"""Separation of many recordings with the same queries."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.engine import Engine, SeparatedFiles
from models.many.decoded import DecodedAhead
from models.many.inputs import Input
from models.many.journal import Journal
from models.media import ANY_LENGTH
from models.options import SeparationOptions
from models.own_recordings import OwnRecording
from models.query import Query
from models.short_recordings import RecordingFile


def separate_all(
    engine: Engine,
    inputs: Sequence[Input],
    queries: Mapping[str, Query],
    output: Path,
    options: SeparationOptions,
    track: int | None,
    advance: Callable[[float, str], object],
) -> Journal:
    """Separate recordings into stems below `output`, and return the journal, `separations.csv` there.

    advance(ratio, name of a recording) is called after each.
    """
    output.mkdir(parents=True, exist_ok=True)
    vectors = {name: hashlib.sha256(one.vector.float().numpy().tobytes()).hexdigest() for name, one in queries.items()}
    shown = ["duration", *(f"presence of {name}" for name in queries)]
    made_of = [engine.model_id, asdict(options), vectors, track]
    journal = Journal(output / "separations.csv", shown, ["gain", "stems"], inputs, made_of)

    def stems_exist(row: dict[str, str]) -> bool:
        names = row.get("stems", "").split("|")
        return all((output / name).is_file() for name in names if name) and any(names)

    with journal:
        waiting = journal.waiting(stems_exist)
        done = len(inputs) - len(waiting)
        with DecodedAhead(waiting, output, track).running() as decoded:
            opened: dict[Path, tuple[Input, OwnRecording]] = {}

            def files() -> Iterator[RecordingFile]:
                nonlocal done
                for one, recording in decoded:
                    if isinstance(recording, Exception):
                        journal.add(one, recording)
                        done += 1
                        continue
                    opened[recording.path] = one, recording
                    yield RecordingFile(recording.path, output / one.folder, one.name)
                    decoded.release(recording)  # it has been read

            for file, made in engine.separate_files(files(), queries, options, limits=ANY_LENGTH):
                one, recording = opened.pop(file.path)
                if isinstance(made, Exception):
                    journal.add(one, made)
                else:
                    journal.add(one, **_cells(made, recording, output))
                done += 1
                advance(done / len(inputs), one.path.name)
    return journal


def _cells(made: SeparatedFiles, recording: OwnRecording, output: Path) -> dict[str, Any]:
    return {
        "duration": f"{made.duration:.3f}",
        "gain": f"{made.gain:.4g}",
        **{f"presence of {name}": f"{presence:.3f}" for name, presence in made.presence.items()},
        "warnings": " ".join([*recording.warnings, *made.warnings]),
        "stems": "|".join(str(stem.path.relative_to(output)) for stem in made.stems),
    }
