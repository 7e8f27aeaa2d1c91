"""What an uploaded file is, by its bytes: container, codec, rate, channels, duration.

`probe` asks `python -m app.media.probe PATH`, a child process under limits, since headers are decoded by libraries that
have had their holes. Only headers and the first packets are read: the worker's decode is the truth about the rest.
Containers and codecs are those of the worker's decoder (`models.media`), which the front end does not import; a test
compares the two.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import AudioTooLong, AudioTooWide, AudioUndecodable
from app.media.sandbox import Outcome, SandboxLimits, python, run_async

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext
    from av.audio.stream import AudioStream
    from av.container import InputContainer

    from app.settings import Settings

# FFmpeg's names of the containers that are accepted, and the media type of each.
CONTENT_TYPES = {
    "wav": "audio/wav",
    "w64": "audio/x-w64",
    "mp3": "audio/mpeg",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "mov": "audio/mp4",
    "aac": "audio/aac",
    "matroska": "audio/webm",
    "aiff": "audio/aiff",
}
CODECS = (
    *("aac", "ac3", "adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "alac", "eac3", "flac", "gsm_ms"),
    *("mp1float", "mp2float", "mp3float", "mp3", "opus", "vorbis", "pcm_alaw", "pcm_mulaw", "pcm_s8", "pcm_u8"),
    *(f"pcm_{kind}{end}" for kind in ("s16", "s24", "s32", "f32", "f64") for end in ("le", "be")),
)
# Their headers do not tell the duration, and FFmpeg guesses from the bit rate: that is no reason to refuse anything.
GUESSED_DURATION = ("mp3", "aac")

# A header takes milliseconds; FFmpeg's libraries take most of this address space.
_CHILD_LIMITS = SandboxLimits(seconds=10, cpu_seconds=10, memory_bytes=1 << 30, file_bytes=0)


@dataclass(frozen=True)
class MediaInfo:
    """What a file is. `sample_rate` in Hz, `duration` in seconds, None where the headers do not say."""

    container: str
    codec: str
    sample_rate: int
    channels: int
    duration: float | None

    @property
    def content_type(self) -> str:
        """The media type of the container."""
        return CONTENT_TYPES[self.container]


async def probe(path: Path, settings: Settings) -> MediaInfo:
    """What the file at `path` is, checked against the settings' limits on recordings.

    Raises AudioUndecodable (also for a rate outside the limits), AudioTooLong, AudioTooWide.
    """
    outcome = await run_async(python("app.media.probe", str(path.absolute())), _CHILD_LIMITS)
    return _check_limits(_parse_outcome(outcome), settings)


def _parse_outcome(outcome: Outcome) -> MediaInfo:
    if outcome.status == "timed_out":
        raise AudioUndecodable("The file's headers take too long to read.")
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
    if info.duration is not None and info.duration > longest and info.container not in GUESSED_DURATION:
        raise AudioTooLong(f"The recording lasts {info.duration:.1f} s; {longest:g} s are allowed for such a one.")
    return info


@contextmanager
def open_audio(path: Path) -> Iterator[tuple[InputContainer, AudioStream, AudioCodecContext]]:
    """The file with its best audio stream, alone to be decoded and in one thread, in this process: for children.

    Raises ValueError with a sentence for the client.
    """
    import av  # the front end itself loads no decoder
    from av.audio.stream import AudioStream
    from av.error import FFmpegError, InvalidDataError
    from av.stream import Discard

    options = {
        "format_whitelist": ",".join(CONTENT_TYPES),
        "codec_whitelist": ",".join(CODECS),
        "protocol_whitelist": "file",
    }
    name = f"file:{path}"
    if path.stat().st_size == 0:
        raise ValueError("The file is empty.")
    try:
        try:
            container = av.open(name, container_options=options, metadata_errors="replace")
        except InvalidDataError:
            format = _format_of_few_packets(path)
            container = av.open(name, format=format, container_options=options, metadata_errors="replace")
    except FFmpegError as error:
        raise ValueError("The file is no media file of an accepted kind.") from error
    with container:
        stream = container.streams.best("audio")
        if not isinstance(stream, AudioStream):
            raise ValueError("The file has no audio stream that can be decoded.")
        codec: AudioCodecContext | None = stream.codec_context
        if codec is None or codec.name not in CODECS:
            raise ValueError(f"The codec {codec.name if codec else 'in it'} is not accepted.")
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        codec.thread_count = 1
        yield container, stream, codec


def read_headers(path: Path) -> MediaInfo:
    """What the file is, in this process: for the child. Raises ValueError with a sentence for the client."""
    from av.error import FFmpegError

    with open_audio(path) as (container, stream, codec):
        duration = None
        if stream.duration is not None and stream.time_base is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = container.duration / 1e6
        info = MediaInfo(
            container=container.format.name.split(",")[0],
            codec=codec.codec.canonical_name,
            sample_rate=codec.sample_rate,
            channels=codec.channels,
            duration=duration if duration and duration > 0 else None,
        )
        if info.channels > 64:
            # More than FFmpeg's decoders open; whoever asked has a lower limit.
            return info
        # The codec knows better than the header: AAC may double its rate.
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except FFmpegError:
                continue
            for frame in frames:
                return dataclasses.replace(info, sample_rate=frame.sample_rate, channels=frame.layout.nb_channels)
    raise ValueError("The file holds no audio that can be decoded.")


def _format_of_few_packets(path: Path) -> str | None:
    """FFmpeg wants to see several packets before it believes in mp3 or AAC, more than a tenth of a second has."""
    with path.open("rb") as file:
        start = file.read(3)
    if start == b"ID3":
        return "mp3"
    if len(start) < 2 or start[0] != 0xFF or start[1] & 0xE0 != 0xE0:
        return None
    # A sync word, then MPEG's layer: ADTS leaves it at zero.
    return "mp3" if start[1] & 0x06 else "aac"


def main(arguments: list[str]) -> int:
    """`python -m app.media.probe PATH`: one line of JSON, a MediaInfo (exit 0) or {"refused": detail} (exit 1)."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m app.media.probe PATH\n")
        return 2
    try:
        answer, code = dataclasses.asdict(read_headers(Path(arguments[0]).absolute())), 0
    except (ValueError, OSError, MemoryError) as error:
        detail = str(error) if type(error) is ValueError else "The file cannot be read."
        answer, code = {"refused": detail}, 1
    sys.stdout.write(json.dumps(answer) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
