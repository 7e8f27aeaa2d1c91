"""Whether a separation can be made: what a schema cannot see, and other jobs have not.

Every check raises an error that points at the field, and no check has an effect.
"""

from app.errors import FormatUnsupported, NameReserved, RequestInvalid, SpanOutside
from app.http.problems import field_error
from app.job_api.validation import HEADER_SLACK, exact_duration
from app.records.audio import Audio
from app.records.separations import AutoRecord, OutputRecord, Span
from app.separations.schemas import Auto, Output, SpanSent
from app.settings import Settings

RESIDUAL = "residual"
_BIT_DEPTHS = {"wav": (16, 24, 32), "flac": (16, 24)}
_TWO_CHANNELS = ("mp3", "ogg", "opus", "m4a")


def count(targets: int, settings: Settings, *pointer: str) -> None:
    """Not more targets than are allowed."""
    if targets > settings.targets:
        detail = f"A separation may have {settings.targets} targets."
        raise RequestInvalid(detail, [field_error(detail, *pointer)])


def auto(sent: Auto, settings: Settings) -> AutoRecord:
    """Not more targets are to be found than are allowed; unless a number was asked for, not more are."""
    if "max_targets" in sent.model_fields_set:
        count(sent.max_targets, settings, "auto", "max_targets")
    return AutoRecord(max_targets=min(sent.max_targets, settings.targets), threshold=sent.threshold)


def names(chosen: list[str]) -> None:
    """Every name once, whatever its case, and none of them reserved."""
    seen: set[str] = set()
    for index, name in enumerate(chosen):
        if name.casefold() == RESIDUAL:
            detail = "The name residual is what is left of the mixture."
            raise NameReserved(detail, [field_error(detail, "targets", index, "name")])
        if name.casefold() in seen:
            detail = f"Two targets are named {name}."
            raise RequestInvalid(detail, [field_error(detail, "targets", index, "name")])
        seen.add(name.casefold())


def spans(sent: list[SpanSent], mixture: Audio, settings: Settings, *pointer: str | int) -> list[Span]:
    """Not more spans than are allowed, all within the mixture."""
    if len(sent) > settings.examples:
        detail = f"A target may have {settings.examples} spans."
        raise RequestInvalid(detail, [field_error(detail, *pointer)])
    seconds = exact_duration(mixture)
    for number, span in enumerate(sent):
        if seconds is not None and span.end > seconds + HEADER_SLACK:
            detail = f"The mixture lasts {seconds:.2f} s."
            raise SpanOutside(detail, [field_error(detail, *pointer, number)])
    return [Span(start=span.start, end=span.end) for span in sent]


def output(sent: Output, mixture: Audio) -> OutputRecord:
    """The format can hold the mixture's channels, and the bit depth is one of its own."""
    depths = _BIT_DEPTHS.get(sent.format, ())
    if sent.bit_depth is not None and sent.bit_depth not in depths:
        offered = f"{', '.join(map(str, depths))}" if depths else "none to choose"
        detail = f"Bit depths of {sent.format}: {offered}."
        raise FormatUnsupported(detail, [field_error(detail, "output", "bit_depth")])
    if sent.format in _TWO_CHANNELS and mixture.channels > 2:
        detail = f"{sent.format} takes 2 channels here; the mixture has {mixture.channels}. Use flac or wav."
        raise FormatUnsupported(detail, [field_error(detail, "output", "format")])
    return OutputRecord(**sent.model_dump())
