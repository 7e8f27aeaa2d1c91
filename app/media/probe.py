"""Probe of an uploaded media file: container, codec, sample rate, channels and duration, read from its bytes.

`probe` runs `python -m app.media.probe PATH` in the sandbox, since demuxers and decoders have had vulnerabilities. Only
headers and the first packets are read; the worker, which decodes the whole file, has the last word.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import AudioTooLong, AudioTooWide, AudioUndecodable
from app.media import priority
from app.media.decoder_process import SANDBOX
from app.media.input_formats import CONTENT_TYPES, GUESSED_DURATION
from app.media.sandbox import Outcome, SandboxLimits

if TYPE_CHECKING:
    from app.media.opening import Track
    from app.settings import Settings

MAX_TRACKS = 32  # that are listed
MAX_TAG = 100  # characters of a track's title that are kept
_HEADER_SLACK = 0.25  # seconds by which a header may exceed a limit: padding, which decoding leaves out
# Reading headers takes 0.1 s, most of it the start of the process, and a tenth of a second more for the largest index
# of two hours; the clock allows for a machine with other work.
MEMORY_BYTES = 256 << 20  # address space, of which Python and FFmpeg's libraries take half
SANDBOX_LIMITS = SandboxLimits(
    seconds=10, cpu_seconds=2, memory_bytes=MEMORY_BYTES, file_bytes=0, niceness=priority.NICENESS
)


@dataclass(frozen=True)
class MediaInfo:
    """Properties of a media file. `sample_rate` in hertz; `duration` in seconds, None if the headers do not tell it;
    `tracks`: the file's audio tracks, as `app.records.audio.TrackRecord` has them; the other properties are those of
    the first that can be read."""

    container: str
    codec: str
    sample_rate: int
    channels: int
    duration: float | None
    tracks: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def content_type(self) -> str:
        """Media type of the container."""
        return CONTENT_TYPES[self.container]


async def probe(path: Path, settings: Settings) -> MediaInfo:
    """Return the properties of the file at `path`, validated against the settings' limits on recordings.

    Raises AudioUndecodable (also for a sample rate outside the limits), AudioTooLong, AudioTooWide.
    """
    outcome = await SANDBOX.run_async("app.media.probe", [str(path.absolute())], SANDBOX_LIMITS)
    return _check_limits(_parse_outcome(outcome), settings)


def _parse_outcome(outcome: Outcome) -> MediaInfo:
    if outcome.status == "timed_out":
        raise AudioUndecodable("Reading the file's headers takes too long.")
    if outcome.status != "exited" or outcome.returncode not in (0, 1):
        raise AudioUndecodable("The file's headers cannot be read safely.")
    try:
        answer: dict[str, Any] = json.loads(outcome.output)
        if "refused" in answer:
            raise AudioUndecodable(answer["refused"])
        return MediaInfo(**answer)
    except (ValueError, TypeError) as error:
        raise AudioUndecodable("The file's headers cannot be read safely.") from error


def _check_limits(info: MediaInfo, settings: Settings) -> MediaInfo:
    if info.channels > settings.channels:
        raise AudioTooWide(f"The recording has {info.channels} channels; {settings.channels} are allowed.")
    if not settings.lowest_rate <= info.sample_rate <= settings.highest_rate:
        raise AudioUndecodable(
            f"The recording's sample rate is {info.sample_rate} Hz; from {settings.lowest_rate} to "
            f"{settings.highest_rate} Hz is allowed."
        )
    longest = min(settings.recording_seconds, settings.recording_samples / (info.sample_rate * info.channels))
    limit = longest + _HEADER_SLACK
    if info.duration is not None and info.duration > limit and info.container not in GUESSED_DURATION:
        raise AudioTooLong(
            f"The recording lasts {info.duration:.1f} s; {longest:g} s are allowed at its rate and channel count."
        )
    return info


def read_headers(path: Path) -> MediaInfo:
    """Return a file's properties, read in this process: to be called in the sandbox.

    Raises Refused with a sentence for the client.
    """
    from app.media.demuxing import MediaFile  # the front end itself loads no decoder
    from app.media.opening import Refused

    with MediaFile(path) as media:
        info = MediaInfo(
            container=media.container,
            codec=media.codec,
            sample_rate=media.sample_rate,
            channels=media.channels,
            duration=media.duration,
            tracks=[_describe(track) for track in media.tracks[:MAX_TRACKS]],
        )
        if info.channels > 64:
            # FFmpeg's decoders do not open so many channels, and the limit on channels is lower.
            return info
        # Prefer the rate and channels of the first decoded frame to the header's: AAC (SBR) may double the rate.
        for frame in media.frames():
            return dataclasses.replace(info, sample_rate=frame.sample_rate, channels=frame.layout.nb_channels)
    raise Refused("The file holds no audio that can be decoded.")


def _describe(track: Track) -> dict[str, Any]:
    return {
        "track": track.number,
        "codec": track.codec,
        "sample_rate": track.sample_rate,
        "channels": track.channels,
        "language": track.language and track.language[:MAX_TAG],
        "title": track.title and track.title[:MAX_TAG],
        "readable": track.is_readable,
    }


def main(arguments: list[str]) -> int:
    """Print one line of JSON: a MediaInfo (exit status 0) or {"refused": detail} (exit status 1)."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m app.media.probe PATH\n")
        return 2
    from app.media.opening import Refused

    priority.lower_after(priority.SHORT_SECONDS)  # such as a file without a good packet
    try:
        answer, code = dataclasses.asdict(read_headers(Path(arguments[0]).absolute())), 0
    except (ValueError, OSError, MemoryError) as error:
        detail = str(error) if isinstance(error, Refused) else "The file cannot be read."
        answer, code = {"refused": detail}, 1
    sys.stdout.write(json.dumps(answer) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
