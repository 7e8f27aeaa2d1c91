"""One detection, step by step: fetch, decode, hear, draw, store. Publishing is the caller's."""

from dataclasses import asdict, replace
from pathlib import Path

from app.records.detections import DetectionRequest, DetectionResult, EventRecord, PictureRecord, TagRecord
from models.detection import Detection
from worker.execution import JobExecution, Outcome

# Where the stages lie on the job's way from 0 to 1.
DECODED, DETECTED = 0.1, 0.95
METRICS = {"decoding": "decoding", "detecting": "detecting", "drawing": "encoding", "storing": "encoding"}
DRAWN = 32  # classes in the picture: more cannot be read


def detect(execution: JobExecution) -> Outcome:
    """Do the whole detection and store its picture under the execution's prefix.

    Raises Cancelled; ModelsError and EarmarkError for what is wrong with the job; StoreUnavailable when the store stays
    away; OSError where this machine is at fault.
    """
    from models.plots import draw_detection  # matplotlib: half a second that a worker's start does not need

    request = DetectionRequest.model_validate(execution.job.request)
    path = execution.folder / "recording.wav"
    execution.enter(0.0, "decoding")
    info = execution.decode_recording(request.audio.audio_id, path)
    execution.enter(DECODED, "detecting")
    found = execution.context.engine.detect_file(
        path,
        request.top,
        request.threshold,
        cancelled=execution.attention.is_cancelled,
        progress=lambda ratio, stage: execution.attention.progress(DECODED + (DETECTED - DECODED) * ratio, stage),
        limits=execution.limits(execution.context.settings.recording_seconds),
    )
    execution.enter(DETECTED, "drawing")
    drawn = execution.folder / "timeline.png"
    draw_detection(replace(found, tags=found.tags[:DRAWN]), drawn)
    execution.enter(DETECTED, "storing")
    picture = _stored(execution, drawn)
    told, warnings = _within(found, execution.context.settings.detection_events)
    audio = request.audio.model_copy(
        update={"duration": found.duration, "sample_rate": info.rate, "channels": info.channels}
    )
    result = DetectionResult(
        audio=audio,
        tags=[TagRecord(**asdict(tag)) for tag in told.tags],
        events=[EventRecord(**asdict(event)) for event in told.events],
        picture=picture,
        model=execution.model,
        metrics=execution.clock.metrics(METRICS, found.duration),
    )
    return Outcome(result, warnings=warnings)


def _stored(execution: JobExecution, path: Path) -> PictureRecord:
    stored = execution.store(path.name, path)
    return PictureRecord(key=execution.key(path.name), bytes=stored.bytes, sha256=stored.sha256)


def _within(found: Detection, most: int) -> tuple[Detection, list[str]]:
    """At most so many events, the surest: hours of sound at a low threshold hold more than a record should."""
    if len(found.events) <= most:
        return found, []
    kept = sorted(sorted(found.events, key=lambda event: -event.confidence)[:most], key=lambda event: event.start)
    warning = f"{len(found.events)} events reach the threshold; the surest {most} are told."
    return replace(found, events=kept), [warning]
