"""The work of a detection: decode, detect, draw the timeline, store it."""

import threading
from dataclasses import asdict, replace

from app.records.detections import DetectionRequest, DetectionResult, EventRecord, PictureRecord, TagRecord
from models.detection import Detection
from worker.execution import JobExecution, Outcome

# The job's progress, 0 to 1, at which a stage begins.
DETECTING, DRAWING = 0.1, 0.95
# The metric of the result that a stage's seconds count towards.
STAGE_METRICS = {"decoding": "decoding", "detecting": "detecting", "drawing": "encoding", "storing": "encoding"}
PICTURE_CLASSES = 32  # more rows cannot be read
_DRAWING = threading.Lock()  # matplotlib draws in one thread at a time


def detect(execution: JobExecution) -> Outcome:
    """Detect what sounds in the recording and store a picture of its timeline."""
    from models.plots import draw_detection  # matplotlib: half a second that a worker's start does not need

    request = DetectionRequest.model_validate(execution.job.request)
    recording = execution.decode_recording(request.audio)
    execution.enter(DETECTING, "detecting")
    detection = execution.context.engine.detect_file(
        recording.path,
        request.top,
        request.threshold,
        cancelled=execution.control.is_cancelled,
        progress=execution.progress_between(DETECTING, DRAWING),
        limits=execution.recording_limits,
    )
    execution.enter(DRAWING, "drawing")
    picture_path = execution.folder / "timeline.png"
    with _DRAWING:
        draw_detection(replace(detection, tags=detection.tags[:PICTURE_CLASSES]), picture_path)
    execution.enter(DRAWING, "storing")
    key, stored = execution.store(picture_path)
    published, warnings = _limit_events(detection, execution.context.settings.detection_events)
    result = DetectionResult(
        audio=recording.record(detection.duration),
        tags=[TagRecord(**asdict(tag)) for tag in published.tags],
        events=[EventRecord(**asdict(event)) for event in published.events],
        picture=PictureRecord(key=key, bytes=stored.bytes, sha256=stored.sha256),
        model=execution.model,
        metrics=execution.timer.metrics(STAGE_METRICS, detection.duration),
    )
    return Outcome(result, warnings=[*recording.warnings, *warnings])


def _limit_events(detection: Detection, limit: int) -> tuple[Detection, list[str]]:
    """Keep the `limit` events of highest confidence; hours of sound at a low threshold hold too many for a record."""
    if len(detection.events) <= limit:
        return detection, []
    strongest = sorted(detection.events, key=lambda event: -event.confidence)[:limit]
    events = sorted(strongest, key=lambda event: event.start)
    warning = f"{len(detection.events)} events reach the threshold; the {limit} of highest confidence are listed."
    return replace(detection, events=events), [warning]
