"""Whether a separation can be made: what a schema cannot see, checked against uploads and the model's classes.

Every check raises an error that points at the field, and no check has an effect.
"""

from app.audio.records import Audio
from app.errors import (
    AudioTooLong,
    FormatUnsupported,
    LabelUnknown,
    ModelUnavailable,
    NameReserved,
    RequestInvalid,
    SpanOutside,
)
from app.labels import matching
from app.problems import fault
from app.registry import ClassDescription, ModelDescription
from app.separations.records import OutputRecord, Span
from app.separations.schemas import Output, SpanSent, Target
from app.settings import Settings

RESIDUAL = "residual"
_BIT_DEPTHS = {"wav": (16, 24, 32), "flac": (16, 24)}
_TWO_CHANNELS = ("mp3", "ogg", "opus", "m4a")
_HEADER_SLACK = 0.1  # seconds by which a header may be wrong about the end of a recording


def count(targets: int, settings: Settings) -> None:
    """Not more targets than are allowed."""
    if targets > settings.targets:
        detail = f"A separation may have {settings.targets} targets."
        raise RequestInvalid(detail, [fault(detail, "targets")])


def examples(target: Target, index: int, settings: Settings) -> None:
    """Not more examples or spans than are allowed."""
    for field in ("examples", "spans"):
        if len(getattr(target, field) or ()) > settings.examples:
            detail = f"A target may have {settings.examples} {field}."
            raise RequestInvalid(detail, [fault(detail, "targets", index, field)])


def names(chosen: list[str]) -> None:
    """Every name once, whatever its case, and none of them reserved."""
    seen: set[str] = set()
    for index, name in enumerate(chosen):
        if name.casefold() == RESIDUAL:
            detail = "The name residual is what is left of the mixture."
            raise NameReserved(detail, [fault(detail, "targets", index, "name")])
        if name.casefold() in seen:
            detail = f"Two targets are named {name}."
            raise RequestInvalid(detail, [fault(detail, "targets", index, "name")])
        seen.add(name.casefold())


def label(model: ModelDescription, text: str, *pointer: str | int) -> ClassDescription:
    """The class that a label names, if the model can be asked for it."""
    known = matching.find(model.classes, text)
    if known is not None and known.askable:
        return known
    reason = "No class has this name" if known is None else "The model cannot be asked for this class by name"
    near = matching.near(model.classes, text)
    detail = f"{reason}; near it: {', '.join(near)}." if near else f"{reason}."
    raise LabelUnknown(detail, [fault(detail, *pointer)])


def example_length(audio: Audio, settings: Settings, *pointer: str | int) -> None:
    """An example is short; where headers do not tell, the worker will."""
    if audio.duration is not None and audio.duration > settings.example_seconds + _HEADER_SLACK:
        detail = f"An example may last {settings.example_seconds:g} s; this one lasts {audio.duration:.1f} s."
        raise AudioTooLong(detail, [fault(detail, *pointer)])


def spans(sent: list[SpanSent], mixture: Audio, index: int) -> list[Span]:
    """Spans lie within the mixture."""
    for number, span in enumerate(sent):
        if mixture.duration is not None and span.end > mixture.duration + _HEADER_SLACK:
            detail = f"The mixture lasts {mixture.duration:.2f} s."
            raise SpanOutside(detail, [fault(detail, "targets", index, "spans", number)])
    return [Span(start=span.start, end=span.end) for span in sent]


def output(sent: Output, mixture: Audio) -> OutputRecord:
    """The format can hold the mixture's channels, and the bit depth is one of its own."""
    depths = _BIT_DEPTHS.get(sent.format, ())
    if sent.bit_depth is not None and sent.bit_depth not in depths:
        offered = f"{', '.join(map(str, depths))}" if depths else "none to choose"
        detail = f"Bit depths of {sent.format}: {offered}."
        raise FormatUnsupported(detail, [fault(detail, "output", "bit_depth")])
    if sent.format in _TWO_CHANNELS and mixture.channels > 2:
        detail = f"{sent.format} takes 2 channels here; the mixture has {mixture.channels}. Use flac or wav."
        raise FormatUnsupported(detail, [fault(detail, "output", "format")])
    return OutputRecord(**sent.model_dump())


def version(model: ModelDescription, asked: str | None) -> None:
    """A version that was asked for is the one that workers have."""
    if asked is not None and asked != model.version:
        raise ModelUnavailable(f"Workers have {model.name}@{model.version}.")
