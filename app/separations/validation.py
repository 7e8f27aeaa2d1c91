"""Validation of separations that a schema cannot express and other kinds of job do not need.

Every function raises an error that points at the field, and none has a side effect.
"""

from app.errors import FormatUnsupported, NameReserved, RequestInvalid, SpanOutside
from app.http.problems import field_error
from app.job_api.validation import HEADER_SLACK, require_length
from app.records.audio import Audio
from app.records.separations import AutoRecord, OutputRecord, Span
from app.separations.names import fold
from app.separations.schemas import Auto, Output, SpanSent
from app.settings import Settings

RESIDUAL = "residual"
BIT_DEPTHS = {"wav": (16, 24, 32), "flac": (16, 24)}
TWO_CHANNELS = ("mp3", "ogg", "opus", "m4a")


def require_target_count(count: int, settings: Settings, *pointer: str) -> None:
    """Require that there are no more targets than are allowed."""
    if count > settings.targets:
        detail = f"A separation may have at most {settings.targets} targets."
        raise RequestInvalid(detail, [field_error(detail, *pointer)])


def auto_record(auto: Auto, settings: Settings) -> AutoRecord:
    """Return the record of `auto`; a `max_targets` beyond the limit is refused if it was given, else lowered to it."""
    if "max_targets" in auto.model_fields_set:
        require_target_count(auto.max_targets, settings, "auto", "max_targets")
    return AutoRecord(max_targets=min(auto.max_targets, settings.targets), threshold=auto.threshold)


def require_distinct_names(names: list[str]) -> None:
    """Require that names differ, whatever the case of their letters, and that none is reserved."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        folded = fold(name)
        if folded == RESIDUAL:
            detail = "The name residual is reserved for what remains of the mixture."
            raise NameReserved(detail, [field_error(detail, "targets", index, "name")])
        if folded in seen:
            detail = f"Two targets are named {name}; give one another name (case does not count)."
            raise RequestInvalid(detail, [field_error(detail, "targets", index, "name")])
        seen.add(folded)


def span_records(spans: list[SpanSent], seconds: float | None, settings: Settings, *pointer: str | int) -> list[Span]:
    """Return the records of spans: no more than are allowed, all as long as a query needs, and within the mixture of so
    many seconds, if that is known for sure; the worker checks them again."""
    if len(spans) > settings.examples:
        detail = f"A target may have at most {settings.examples} spans."
        raise RequestInvalid(detail, [field_error(detail, *pointer)])
    for number, span in enumerate(spans):
        if seconds is not None and (span.start >= seconds or span.end > seconds + HEADER_SLACK):
            detail = f"The mixture lasts {seconds:.2f} s."
            raise SpanOutside(detail, [field_error(detail, *pointer, number)])
        require_length("A span", span.end - span.start, *pointer, number)
    return [Span(start=span.start, end=span.end) for span in spans]


def output_record(output: Output, mixture: Audio) -> OutputRecord:
    """Return the record of `output`; the format must hold the mixture's channels and offer the bit depth."""
    depths = BIT_DEPTHS.get(output.format, ())
    if output.bit_depth is not None and output.bit_depth not in depths:
        offered = f"{', '.join(map(str, depths))}" if depths else "not selectable"
        detail = f"Bit depths of {output.format}: {offered}."
        raise FormatUnsupported(detail, [field_error(detail, "output", "bit_depth")])
    if output.format in TWO_CHANNELS and mixture.channels > 2:
        detail = f"{output.format} takes 2 channels here; the mixture has {mixture.channels}. Use flac or wav."
        raise FormatUnsupported(detail, [field_error(detail, "output", "format")])
    return OutputRecord(**output.model_dump())
