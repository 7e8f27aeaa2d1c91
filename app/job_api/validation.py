"""What is checked of every request for a job, against uploads and announced models.

Every check raises an error that points at the field, and no check has an effect.
"""

from collections.abc import Sequence

from app.audio import service as audio
from app.dependencies import Dependencies
from app.errors import AudioTooLong, LabelUnknown, ModelUnavailable, NotFound, RequestInvalid
from app.http.problems import field_error
from app.job_api.schemas import AudioReference
from app.labels import matching
from app.media.probe import GUESSED_DURATION
from app.model_registry import ClassDescription, ModelDescription
from app.records.audio import Audio
from app.records.shared import ExampleRecord, ModelRecord, RecordingRecord
from app.settings import Settings

HEADER_SLACK = 0.1  # seconds by which a header may be wrong about the end of a recording


def model(deps: Dependencies, asked: str | None) -> ModelDescription:
    """The model asked for, such as `base` or `base@1`; none: the server's. Raises `ModelUnavailable`."""
    name, _, version = (asked or deps.settings.model).partition("@")
    found = deps.model_registry.model(name)
    if version and version != found.version:
        raise ModelUnavailable(f"Workers have {found.name}@{found.version}.")
    return found


def model_record(found: ModelDescription) -> ModelRecord:
    """What a job's record says of its model."""
    return ModelRecord(name=found.name, version=found.version)


def find_recording(deps: Dependencies, audio_id: str, *pointer: str | int) -> Audio:
    """The caller's upload; raises `NotFound`."""
    try:
        return audio.find(deps, audio_id)
    except NotFound as error:
        raise NotFound("There is no such audio.", [field_error("There is no such audio.", *pointer)]) from error


def exact_duration(found: Audio) -> float | None:
    """How long its headers say for sure that a recording lasts; None where they do not."""
    return None if found.container in GUESSED_DURATION else found.duration


def recording_record(found: Audio) -> RecordingRecord:
    """What a job's record says of the recording that it works on."""
    return RecordingRecord(
        audio_id=found.id, duration=found.duration, sample_rate=found.sample_rate, channels=found.channels
    )


def find_examples(deps: Dependencies, sent: Sequence[AudioReference], *pointer: str | int) -> list[Audio]:
    """Examples of one sound: not too many, each once, and each short, where headers tell; else the worker will."""
    if len(sent) > deps.settings.examples:
        detail = f"There may be {deps.settings.examples} examples."
        raise RequestInvalid(detail, [field_error(detail, *pointer)])
    found = []
    for number, example in enumerate(sent):
        place = (*pointer, number, "audio_id")
        found.append(find_recording(deps, example.audio_id, *place))
        _is_short(found[-1], deps.settings, *place)
    if len({example.audio_id for example in sent}) != len(sent):
        raise RequestInvalid("An example is named twice.", [field_error("Named twice.", *pointer)])
    return found


def example_records(found: Sequence[Audio]) -> list[ExampleRecord]:
    """What a job's record says of examples."""
    return [ExampleRecord(audio_id=example.id) for example in found]


def find_class(found: ModelDescription, text: str, *pointer: str | int) -> ClassDescription:
    """The class that a label names, if the model can be asked for it. Raises `LabelUnknown`."""
    known = matching.find(found.classes, text)
    if known is not None and known.askable:
        return known
    reason = "No class has this name" if known is None else "The model cannot be asked for this class by name"
    near = matching.near(found.classes, text)
    detail = f"{reason}; near it: {', '.join(near)}." if near else f"{reason}."
    raise LabelUnknown(detail, [field_error(detail, *pointer)])


def _is_short(found: Audio, settings: Settings, *pointer: str | int) -> None:
    seconds = exact_duration(found)
    if seconds is not None and seconds > settings.example_seconds + HEADER_SLACK:
        detail = f"An example may last {settings.example_seconds:g} s; this one lasts {seconds:.1f} s."
        raise AudioTooLong(detail, [field_error(detail, *pointer)])
