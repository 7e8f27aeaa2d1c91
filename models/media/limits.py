"""Limits on recordings, and what is known of one."""

from __future__ import annotations

import dataclasses
from math import inf

from models.errors import AudioTooLong, AudioTooWide, AudioUndecodable

# Seconds by which a header may be wrong about the end of a recording: padding, a packet.
_HEADER_SLACK = 0.25


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits on recordings: seconds, channels, Hz, and samples over all channels."""

    seconds: float = 21600
    channels: int = 8
    lowest_rate: int = 8000
    highest_rate: int = 192000
    samples: float = 2e9

    def check(self, rate: int, channels: int, seconds: float | None) -> None:
        """Raise AudioTooWide, AudioUndecodable (for the rate) or AudioTooLong.

        `seconds` is a header's: a little more than is allowed, and None, are accepted, since decoding tells.
        """
        if channels > self.channels:
            raise AudioTooWide(f"{channels} channels; {self.channels} are allowed")
        if not self.lowest_rate <= rate <= self.highest_rate:
            raise AudioUndecodable(
                f"a sample rate of {rate} Hz; from {self.lowest_rate} to {self.highest_rate} Hz is allowed"
            )
        if seconds is not None and seconds > self.longest(rate, channels) + _HEADER_SLACK:
            raise AudioTooLong(f"longer than the {self.longest(rate, channels):g} s allowed for such a recording")

    def longest(self, rate: int, channels: int) -> float:
        """Return the longest duration allowed at this rate and number of channels, in seconds."""
        return min(self.seconds, self.samples / (rate * channels))


# For one's own files, on the command line: what a service must limit is left to the disk.
ANY_LENGTH = Limits(seconds=inf, samples=inf)


@dataclasses.dataclass(frozen=True)
class MediaInfo:
    """Properties of a file, or of one track of it.

    `frames` (samples a channel) and `duration` (s) are None until known; `damaged` counts packets that could not be
    decoded; `mask`: the channels' speakers, as WAVE_FORMAT_EXTENSIBLE has them, 0 if unknown; `warnings`
    are sentences about what is missing from the decoded recording, or was changed.
    """

    container: str
    codec: str
    rate: int
    channels: int
    frames: int | None = None
    duration: float | None = None
    damaged: int = 0
    mask: int = 0
    warnings: tuple[str, ...] = ()
