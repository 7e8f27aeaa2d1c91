"""Size of a separation: disk space of its worker, bytes of its stems in the store, and the audio seconds it is charged.

Front end and workers use these functions with what they know: the front end with the upload's headers, before the job
exists; the worker with the decoded recording. All of them grow with channels, rate, seconds and targets.
"""

from dataclasses import dataclass

from app.errors import RequestTooLarge
from app.records.separations import OutputRecord
from app.settings import Settings

_FLOAT = 4  # bytes of a sample on the worker's disk
# While a worker writes files, its disk holds so much of each stem twice, and a second more.
_TWICE = 2 << 20
_BIT_DEPTHS = {"wav": 32, "flac": 24}  # defaults
# Lossy encoders are set to 12 kB a second and channel; Vorbis takes up to twice that for noise.
_LOSSY = 24_000
# Headers, seek tables, and what FLAC adds to noise that it cannot compress.
_OVERHEAD, _HEADER = 1.01, 1 << 16
# What an ordinary job has is not charged extra.
ORDINARY_CHANNELS = 2
ORDINARY_TARGETS = 4


@dataclass(frozen=True)
class SeparationSize:
    """Size of a separation: sampling rate in hertz, duration in seconds, targets without the residual."""

    rate: int
    channels: int
    seconds: float
    targets: int
    output: OutputRecord

    @property
    def scratch_bytes(self) -> int:
        """Disk space that the worker needs at most: the decoded recording, and each stem once, as it was separated or
        as its file, whichever is larger."""
        second = _FLOAT * self.rate * self.channels
        recording = second * self.seconds
        return round(recording + max(self.targets * recording, self.stored_bytes) + self.targets * (_TWICE + second))

    @property
    def stored_bytes(self) -> int:
        """Bytes of its stems and its residual in the store at most; FLAC often takes half of this."""
        files = self.targets + self.output.residual
        if self.output.format in _BIT_DEPTHS:
            bit_depth = self.output.bit_depth or _BIT_DEPTHS[self.output.format]
            second = self.rate * bit_depth / 8
        else:
            second = _LOSSY
        return round(files * (_OVERHEAD * second * self.channels * self.seconds + _HEADER))

    def effort(self, settings: Settings) -> float:
        """Return how many times as long it takes as one of standard quality."""
        return settings.high_quality_factor if self.output.quality == "high" else 1.0

    def charged_seconds(self, settings: Settings) -> float:
        """Return the seconds of audio that it takes of the quota."""
        return charged_seconds(self.seconds, self.channels, self.targets, self.effort(settings))

    def require_room(self, settings: Settings) -> None:
        """Raise `RequestTooLarge` if it needs more disk space than a job may use."""
        for needed, allowed, place in (
            (self.scratch_bytes, settings.scratch_bytes, "of scratch"),
            (self.stored_bytes, settings.stored_bytes, "in the store"),
        ):
            if needed > allowed:
                raise RequestTooLarge(
                    f"{self.seconds:.0f} s of {self.channels} channels at {self.rate} Hz and {self.targets} targets may"
                    f" need {needed / 1e9:.1f} GB {place}; {allowed / 1e9:.1f} GB are allowed. Separate fewer targets"
                    " at once, or a shorter recording."
                )


def charged_seconds(seconds: float, channels: int, targets: int = 1, effort: float = 1.0) -> float:
    """Return the audio seconds that a job is charged; `charge_rule` says it in words."""
    return effort * seconds * max(1.0, channels / ORDINARY_CHANNELS) * max(1.0, targets / ORDINARY_TARGETS)


def charge_rule(settings: Settings) -> str:
    """Return how audio seconds are counted, as a sentence."""
    return (
        "A job is charged the seconds of its recording"
        f" x (channels / {ORDINARY_CHANNELS}, at least 1) x (targets / {ORDINARY_TARGETS}, at least 1)"
        f" x {settings.high_quality_factor:g} with quality high."
    )
