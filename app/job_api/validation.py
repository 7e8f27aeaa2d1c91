"""Validation that requests for jobs of every kind share, against uploads and registered models.

Every function raises an error that points at the field, and none has a side effect.
"""

from collections.abc import Sequence

from app.audio import service as audio
from app.dependencies import Dependencies
from app.errors import AudioTooLong, LabelUnknown, NotFound, RequestInvalid, TextUnknown
from app.http.problems import MAX_TEXT, field_error
from app.job_api.schemas import AudioReference
from app.jobs.fair_queue import UNKNOWN_SECONDS
from app.labels import matching
from app.labels.service import vocabulary
from app.media.input_formats import EXACT_DURATION
from app.model_registry.registry import ClassDescription, ModelDescription
from app.records.audio import Audio
from app.records.shared import ExampleRecord, MatchedClass, ModelRecord, RecordingRecord
from app.settings import Settings

HEADER_SLACK = 0.1  # seconds by which a header may be wrong about the end of a recording
SHORTEST_SECONDS = 0.1  # of an example, or a span: `models.queries.query` has the same number
_ROUNDING = 5e-5  # seconds: of what lies so close to it the worker decides, which counts samples


def model_record(description: ModelDescription) -> ModelRecord:
    """Return what a job's record holds of its model."""
    return ModelRecord(name=description.name, version=description.version)


def find_recording(deps: Dependencies, audio_id: str, *pointer: str | int) -> Audio:
    """Return the caller's upload. Raises `NotFound`."""
    try:
        return audio.find(deps, audio_id)
    except NotFound as error:
        raise NotFound("There is no such audio.", [field_error("There is no such audio.", *pointer)]) from error


def choose_track(recording: Audio, track: int | None, *pointer: str | int) -> Audio:
    """Return the upload with the properties of one of its tracks. Raises `RequestInvalid` for a track that it lacks, or
    that cannot be read."""
    if track is None or not recording.tracks:
        return recording
    chosen = next((one for one in recording.tracks if one.track == track), None)
    if chosen is None or not chosen.readable:
        readable = ", ".join(str(one.track) for one in recording.tracks if one.readable)
        reason = "There is no such track" if chosen is None else f"Track {track} ({chosen.codec}) cannot be read"
        detail = f"{reason}; readable: {readable}."
        raise RequestInvalid(detail, [field_error(detail, *pointer)])
    return recording.model_copy(
        update={
            "codec": chosen.codec,
            "sample_rate": chosen.sample_rate or recording.sample_rate,
            "channels": chosen.channels or recording.channels,
        }
    )


def exact_duration(recording: Audio, track: int | None = None) -> float | None:
    """Return the seconds that a recording lasts if its headers tell for sure; None if they do not.

    An upload's record has the duration of the first track that can be read: that of a chosen one is not known.
    """
    return recording.duration if recording.container in EXACT_DURATION and track is None else None


def expected_seconds(duration: float | None) -> float:
    """Return the seconds that a recording is taken to last until it is decoded."""
    return UNKNOWN_SECONDS if duration is None else duration


def recording_record(recording: Audio, track: int | None = None) -> RecordingRecord:
    """Return what a job's record holds of the recording, or the track of it, that it processes."""
    return RecordingRecord(
        audio_id=recording.id,
        duration=recording.duration,
        sample_rate=recording.sample_rate,
        channels=recording.channels,
        track=track,
    )


def find_examples(deps: Dependencies, references: Sequence[AudioReference], *pointer: str | int) -> list[Audio]:
    """Return the uploads that are examples of one sound.

    Raises `RequestInvalid` for too many and for duplicates, `NotFound`; and where headers tell the duration for sure
    `AudioTooLong`, and `RequestInvalid` for one that is too short; the worker checks the others.
    """
    if len(references) > deps.settings.examples:
        detail = f"There may be at most {deps.settings.examples} examples."
        raise RequestInvalid(detail, [field_error(detail, *pointer)])
    examples = []
    for index, reference in enumerate(references):
        field = (*pointer, index, "audio_id")
        example = find_recording(deps, reference.audio_id, *field)
        examples.append(choose_track(example, reference.track, *pointer, index, "track"))
        seconds = exact_duration(example, reference.track)
        if seconds is not None:
            require_length("An example", seconds, *field)
            _require_short(seconds, deps.settings, *field)
    if len({(reference.audio_id, reference.track) for reference in references}) != len(references):
        raise RequestInvalid("An example is named twice.", [field_error("Named twice.", *pointer)])
    return examples


def example_records(references: Sequence[AudioReference]) -> list[ExampleRecord]:
    """Return what a job's record holds of examples."""
    return [ExampleRecord(audio_id=reference.audio_id, track=reference.track) for reference in references]


def find_class(description: ModelDescription, label: str, *pointer: str | int) -> ClassDescription:
    """Return the class that a label names. Raises `LabelUnknown`, with near names, if the model cannot query by it."""
    classes = vocabulary(description)
    match = classes.find(label)
    if match is not None and match.askable:
        return match
    reason = "No class has this name" if match is None else "The model cannot be asked for this class by name"
    near = classes.near(label)
    advice = ". Give `text` in place of a label to ask in words of your own."
    while len(detail := f"{reason}{matching.near_names(near)}{advice}") > MAX_TEXT:
        near.pop()  # the farthest: the advice is not to be cut
    raise LabelUnknown(detail, [field_error(detail, *pointer)])


def match_text(description: ModelDescription, text: str, *pointer: str | int) -> list[MatchedClass]:
    """Return the classes that a text means.

    Raises `TextUnknown`, with near names, and `RequestInvalid` for several sounds or a negation.
    """
    try:
        matches = vocabulary(description).resolve(text)
    except matching.TextUnknown as error:
        detail = str(error) if error.near else f"{error} Give an example of it, or a span in which it is heard."
        raise TextUnknown(detail, [field_error(detail, *pointer)]) from error
    except matching.TextRefused as error:
        raise RequestInvalid(str(error), [field_error(str(error), *pointer)]) from error
    return [MatchedClass(label=match.label, weight=weight) for match, weight in matches]


def require_length(part: str, seconds: float, *pointer: str | int) -> None:
    """Require that an example, or a span, lasts as long as a query needs. Raises `RequestInvalid`."""
    if seconds < SHORTEST_SECONDS - _ROUNDING:
        detail = f"{part} must last at least {SHORTEST_SECONDS:g} s; this one lasts {seconds:.3f} s."
        raise RequestInvalid(detail, [field_error(detail, *pointer)])


def _require_short(seconds: float, settings: Settings, *pointer: str | int) -> None:
    if seconds > settings.example_seconds + HEADER_SLACK:
        detail = f"An example may last {settings.example_seconds:g} s; this one lasts {seconds:.1f} s."
        raise AudioTooLong(detail, [field_error(detail, *pointer)])
