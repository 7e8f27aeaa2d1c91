"""Settings of retention: how long uploads, stems, records and usage are kept."""

from pydantic import BaseModel, Field

from app.settings.units import HOUR


class RetentionSettings(BaseModel):
    """Fields of `Settings`."""

    upload_retention: float = Field(
        default=24 * HOUR, gt=0, description="seconds that an upload is kept, and that a resumable one may take"
    )
    stem_retention: float = Field(
        default=72 * HOUR, gt=0, description="seconds that stems are kept after their job has finished"
    )
    record_retention: float = Field(
        default=30 * 24 * HOUR, gt=0, description="seconds that a record is kept after its stems"
    )
    orphan_retention: float = Field(
        default=7 * 24 * HOUR,
        ge=0,
        description="seconds that stored objects which no record owns are kept after housekeeping has found them, in "
        "which a lost Redis may be restored",
    )
    # A quarter and some days: a whole one can be billed after its end. A key takes some 200 bytes of Redis a day.
    usage_retention: float = Field(
        default=100 * 24 * HOUR, ge=24 * HOUR, description="seconds that a day of a key's usage is kept"
    )
