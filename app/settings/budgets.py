"""Settings of budgets: the resources that all clients share, and the share that one API key may use."""

from pydantic import BaseModel, Field, field_validator

from app.settings import rules
from app.settings.units import MIB


class BudgetSettings(BaseModel):
    """Fields of `Settings`."""

    # Budgets of what Redis holds
    redis_share: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="share of the Redis server's `maxmemory` above which uploads, jobs and other new records are "
        "refused; the rest is for those that exist",
    )
    kept_jobs: int = Field(
        default=20_000,
        ge=1,
        description="jobs and saved queries of one API key that are kept at once; without keys it does not apply",
    )
    # A minute of noise has 5.8 MB, a second of a voice some 60 KB.
    excerpt_bytes: int = Field(
        default=4 * 1024 * MIB,
        ge=1,
        description="bytes of the store that the saved queries of one API key may keep of their examples (at most a "
        "minute each); without keys it does not apply",
    )
    kept_uploads: int = Field(
        default=20_000,
        ge=1,
        description="uploads of one API key that are kept at once; without keys it does not apply",
    )

    # Budgets of one API process
    key_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share of each budget of an API process that the requests of one API key may use; without keys it "
        "does not apply",
    )
    connections: int = Field(
        default=2048,
        ge=4,
        description="connections whose requests one API process answers; `/livez` and `/readyz` are answered on "
        "further ones too",
    )
    requests_in_progress: int = Field(
        default=1536, ge=2, description="requests that one API process answers at once, fewer than its connections"
    )
    event_streams: int = Field(
        default=1024,
        ge=1,
        description="event streams and long polls among them, fewer than these",
    )
    upload_slots: int = Field(
        default=32,
        ge=1,
        description="uploads in flight",
    )
    upload_room: int = Field(
        default=16 * 1024 * MIB,
        ge=1,
        validate_default=True,
        description="bytes of the uploads in flight, and of the copies of files that are drawn; a key's "
        "share must hold a file of EARMARK_UPLOAD_BYTES",
    )
    fetch_slots: int = Field(default=16, ge=1, description="fetches of URLs at once")
    probe_slots: int = Field(default=4, ge=1, description="uploads whose headers are read at once, by a process each")
    store_slots: int = Field(
        default=8,
        ge=1,
        description="uploads that are written to the store at once; with S3, each holds up to 25 MiB in memory",
    )
    waveform_slots: int = Field(
        default=2, ge=1, description="recordings that are decoded for their waveform at once, by a process each"
    )
    section_slots: int = Field(
        default=3,
        ge=1,
        description="sections of recordings that are decoded at once, for a spectrogram or for peaks, by a process "
        "each",
    )
    local_copies: int = Field(
        default=2048 * MIB,
        ge=0,
        description="bytes of the copies of files in S3 that one API process keeps on disk for a minute after it has "
        "drawn them",
    )
    drawing_cache: int = Field(
        default=64 * MIB,
        ge=0,
        description="bytes of spectrograms and waveforms that one API process keeps in memory",
    )
    budget_patience: float = Field(
        default=30.0,
        ge=0,
        description="seconds that a request waits for an upload, a fetch, a probe, the store, a waveform or a section "
        "before it is refused",
    )

    # Rules beyond types
    _require_room = field_validator("requests_in_progress", "event_streams")(rules.require_room)
    _require_room_for_a_file = field_validator("upload_room")(rules.require_room_for_a_file)
