"""Detection of the sounds in many recordings."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.detection import Detection
from models.engine import Engine
from models.many.inputs import Input
from models.many.journal import Journal
from models.many.running import run_all
from models.media import ANY_LENGTH
from models.own_recordings import OwnRecording


def detect_all(
    engine: Engine,
    inputs: Sequence[Input],
    output: Path,
    top: int,
    threshold: float,
    track: int | None,
    advance: Callable[[float, str], object],
) -> Journal:
    """Detect the sounds in recordings, write NAME.json of each below `output`, and return the journal,
    `detections.csv` there.

    advance(ratio, name of a recording) is called after each.
    """
    output.mkdir(parents=True, exist_ok=True)
    shown = ["duration", "tag", "probability", "events"]
    journal = Journal(output / "detections.csv", shown, [], inputs, [engine.model_id, top, threshold, track])

    def report_path(key: str) -> Path:
        return output / f"{key}.json"

    def cells(one: Input, recording: OwnRecording, found: Detection) -> dict[str, Any]:
        _write(output / one.folder / f"{one.name}.json", found, engine.model_id, recording.warnings)
        return _cells(found) | {"warnings": " ".join(recording.warnings)}

    run_all(
        journal,
        lambda row: report_path(row["output"]).is_file(),
        track,
        lambda recordings: engine.detect_files((path for path, _ in recordings), top, threshold, limits=ANY_LENGTH),
        cells,
        advance,
    )
    return journal


def describe(found: Detection, model: str, warnings: list[str]) -> dict[str, object]:
    """Return a detection for JSON."""
    return {
        "duration": found.duration,
        "tags": [asdict(tag) for tag in found.tags],
        "events": [asdict(event) for event in found.events],
        "model": model,
        "warnings": warnings,
    }


def _write(path: Path, found: Detection, model: str, warnings: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(describe(found, model, warnings), indent=2) + "\n", encoding="utf-8")


def _cells(found: Detection) -> dict[str, Any]:
    return {
        "duration": f"{found.duration:.3f}",
        "tag": found.tags[0].label,
        "probability": f"{found.tags[0].probability:.3f}",
        "events": len(found.events),
    }
