"""Output formats, qualities and the shortest example stand twice, since the front end may not import `models`: both
have to say the same.

Containers and codecs of inputs are compared in `tests/app/media/test_probe.py`.
"""

from typing import get_args

import pytest

from app.errors import FormatUnsupported
from app.job_api.validation import SHORTEST_SECONDS
from app.records.audio import Audio
from app.records.separations import Format, OutputRecord, Quality
from app.separations import validation
from app.separations.schemas import Output
from models.encoding import check_format
from models.errors import FormatUnsupported as EncoderRefuses
from models.formats import FORMATS
from models.options import SPEEDS, SeparationOptions
from models.queries import query

RATE = 44100


def mixture(channels: int) -> Audio:
    return Audio.model_construct(sample_rate=RATE, channels=channels)


def front_end_accepts(format: Format, bit_depth: int | None, channels: int) -> bool:
    try:
        validation.output_record(Output(format=format, bit_depth=bit_depth), mixture(channels))
    except FormatUnsupported:
        return False
    return True


def encoder_accepts(format: str, bit_depth: int | None, channels: int) -> bool:
    try:
        check_format(format, RATE, channels, bit_depth)
    except EncoderRefuses:
        return False
    return True


def test_the_front_end_offers_the_formats_that_can_be_written() -> None:
    assert set(get_args(Format)) == set(FORMATS)


@pytest.mark.parametrize("format", get_args(Format))
def test_the_front_end_accepts_what_the_encoder_can_write(format: Format) -> None:
    """Of each format every bit depth and every number of channels that an upload may have."""
    cases = [(bit_depth, channels) for bit_depth in (None, 8, 16, 20, 24, 32, 64) for channels in range(1, 9)]
    answers = {case: front_end_accepts(format, *case) for case in cases}
    assert answers == {case: encoder_accepts(format, *case) for case in cases}
    assert set(answers.values()) == {True, False}


def test_the_front_end_offers_the_qualities_that_there_are() -> None:
    assert set(get_args(Quality)) == set(SPEEDS)


@pytest.mark.parametrize("output", [Output(), OutputRecord()], ids=["request", "record"])
def test_defaults_of_requests_are_those_of_the_engine(output: Output | OutputRecord) -> None:
    options = SeparationOptions()
    assert output.model_dump() == {name: getattr(options, name) for name in type(output).model_fields}


def test_the_front_end_knows_the_shortest_example() -> None:
    assert SHORTEST_SECONDS == query.SHORTEST_SECONDS
