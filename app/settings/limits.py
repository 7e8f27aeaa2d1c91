"""Settings of limits on one request, recording or job."""

from pydantic import BaseModel, Field, field_validator

from app.settings import rules
from app.settings.units import HOUR, MIB


class LimitSettings(BaseModel):
    """Fields of `Settings`."""

    # A WAV of 24 bits with as many samples as a recording may have takes 6.0e9 bytes; the next whole GiB.
    upload_bytes: int = Field(default=6 * 1024 * MIB, ge=1, description="maximum size of an uploaded file, in bytes")
    body_bytes: int = Field(
        default=MIB, ge=1024, description="maximum size of a JSON body, and of one form field, in bytes"
    )
    # The largest file at 7 Mbit/s.
    upload_timeout: float = Field(default=2 * HOUR, gt=0, description="seconds that one upload may take")
    upload_idle: float = Field(default=30.0, gt=0, description="seconds that a request body may pause")
    upload_rate: float = Field(
        default=1024.0,
        ge=0,
        description="minimum rate of a request body, in bytes per second, during each `upload_idle` seconds of waiting",
    )
    busy_upload_rate: float = Field(
        default=16384.0,
        ge=0,
        description="minimum rate of an upload, in bytes per second, while others find no room for theirs",
    )
    awaited_uploads: int = Field(
        default=1000, ge=1, description="presigned and resumable uploads of one key that may be pending at once"
    )
    recording_seconds: float = Field(default=6 * HOUR, gt=0, description="maximum duration of a recording, in seconds")
    example_seconds: float = Field(default=60.0, gt=0, description="maximum duration of an example, in seconds")
    channels: int = Field(default=8, ge=1, description="maximum number of channels")
    lowest_rate: int = Field(default=8000, ge=1, description="minimum sampling rate, in hertz")
    highest_rate: int = Field(
        default=192000, ge=1, validate_default=True, description="maximum sampling rate, in hertz"
    )
    # Six hours of stereo at 46 kHz: at 44.1 kHz a whole one fits.
    recording_samples: float = Field(
        default=2e9, gt=0, description="maximum size of a recording: channels x rate x seconds"
    )
    targets: int = Field(default=16, ge=1, description="maximum number of targets of one separation")
    # The largest recording with four targets and a residual as FLAC: 40.0e9 bytes of scratch, 30.3e9 of the store.
    scratch_bytes: int = Field(
        default=38 * 1024 * MIB,
        ge=MIB,
        description="maximum scratch that a job may need on its worker's disk (see Size of a separation), in bytes",
    )
    stored_bytes: int = Field(
        default=38 * 1024 * MIB,
        ge=MIB,
        description="maximum size of a separation's files in the store (see Size of a separation), in bytes",
    )
    examples: int = Field(default=20, ge=1, description="maximum number of examples, and of spans, of one target")
    detection_events: int = Field(
        default=2000,
        ge=1,
        description="maximum number of events in a detection; those with the highest scores are kept",
    )

    # Rules beyond types
    _require_above_lowest = field_validator("highest_rate")(rules.require_above_lowest)
