"""Probe of an uploaded media file: container, codec, sample rate, channels and duration, read from its bytes.

`probe` runs `python -m app.media.probe PATH` in the sandbox, since demuxers and decoders have had vulnerabilities. Only
headers and the first packets are read; the worker, which decodes the whole file, has the last word. Containers and
codecs equal those of the worker's decoder (`models.media`), which the front end does not import; a test compares the
two lists.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import AudioTooLong, AudioTooWide, AudioUndecodable
from app.media.sandbox import Outcome, SandboxLimits, python_command, run_async

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

    from app.settings import Settings

# Accepted containers by FFmpeg's name, and the media type of each.
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
# Their headers tell no duration, and FFmpeg estimates it from the bit rate: no file is refused because of it.
GUESSED_DURATION = ("mp3", "aac")

# Packets in a row that give no frame, after which a file is given up: they cost 10 microseconds each, and so long a
# damage (20 s of AAC) leaves no recording. Sound begins in the first few packets.
MAX_FRAMELESS_PACKETS = 1000
# Reading headers takes 0.1 s, most of it the start of the process, and a tenth of a second more for the largest index
# of two hours; the clock allows for a machine with other work. A probe yields to the server that answers all requests.
MEMORY_BYTES = 256 << 20  # address space, of which Python and FFmpeg's libraries take half
SANDBOX_LIMITS = SandboxLimits(seconds=10, cpu_seconds=2, memory_bytes=MEMORY_BYTES, file_bytes=0, niceness=5)


@dataclass(frozen=True)
class MediaInfo:
    """Properties of a media file. `sample_rate` in hertz; `duration` in seconds, None if the headers do not tell it."""

    container: str
    codec: str
    sample_rate: int
    channels: int
    duration: float | None

    @property
    def content_type(self) -> str:
        """Media type of the container."""
        return CONTENT_TYPES[self.container]


async def probe(path: Path, settings: Settings) -> MediaInfo:
    """Return the properties of the file at `path`, validated against the settings' limits on recordings.

    Raises AudioUndecodable (also for a sample rate outside the limits), AudioTooLong, AudioTooWide.
    """
    command = python_command("app.media.probe", str(path.absolute()))
    outcome = await run_async(command, SANDBOX_LIMITS)
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
    if info.duration is not None and info.duration > longest and info.container not in GUESSED_DURATION:
        raise AudioTooLong(
            f"The recording lasts {info.duration:.1f} s; {longest:g} s are allowed at its rate and channel count."
        )
    return info


@contextmanager
def open_audio(path: Path) -> Iterator[tuple[InputContainer, AudioStream, AudioCodecContext]]:
    """Open a file in this process, to be called in the sandbox: its container, best audio stream and codec context.

    The other streams are discarded and the decoder uses one thread. Raises ValueError with a sentence for the client.
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
            format = _detect_short_mpeg(path)
            container = av.open(name, format=format, container_options=options, metadata_errors="replace")
    except FFmpegError as error:
        raise ValueError("The file is not a media file of an accepted format.") from error
    with container:
        stream = container.streams.best("audio")
        if not isinstance(stream, AudioStream):
            raise ValueError("The file has no audio stream that can be decoded.")
        codec: AudioCodecContext | None = stream.codec_context
        if codec is None or codec.name not in CODECS:
            raise ValueError(f"The codec {codec.name if codec else 'of the audio stream'} is not accepted.")
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        codec.thread_count = 1
        yield container, stream, codec


def decode_frames(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    """Yield the decoded frames of a stream; packets that cannot be decoded are skipped.

    Raises ValueError with a sentence for the client after `MAX_FRAMELESS_PACKETS` packets in a row without a frame.
    """
    from av.error import FFmpegError

    frameless = 0
    for packet in container.demux(stream):
        frames: list[AudioFrame] = []
        with suppress(FFmpegError):
            frames = packet.decode()
        frameless = 0 if frames else frameless + 1
        if frameless > MAX_FRAMELESS_PACKETS:
            raise ValueError("The file is damaged: too much of it in a row cannot be decoded.")
        yield from frames


def read_headers(path: Path) -> MediaInfo:
    """Return a file's properties, read in this process: to be called in the sandbox.

    Raises ValueError with a sentence for the client.
    """
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
            # FFmpeg's decoders do not open so many channels, and the limit on channels is lower.
            return info
        # Prefer the rate and channels of the first decoded frame to the header's: AAC (SBR) may double the rate.
        for frame in decode_frames(container, stream):
            return dataclasses.replace(info, sample_rate=frame.sample_rate, channels=frame.layout.nb_channels)
    raise ValueError("The file holds no audio that can be decoded.")


def _detect_short_mpeg(path: Path) -> str | None:
    """Return the format of an mp3 or AAC file too short for FFmpeg, which wants several packets to detect these two."""
    with path.open("rb") as file:
        start = file.read(3)
    if start == b"ID3":
        return "mp3"
    if len(start) < 2 or start[0] != 0xFF or start[1] & 0xE0 != 0xE0:
        return None
    # A sync word, then the MPEG layer, which is zero in ADTS.
    return "mp3" if start[1] & 0x06 else "aac"


def main(arguments: list[str]) -> int:
    """Print one line of JSON: a MediaInfo (exit status 0) or {"refused": detail} (exit status 1)."""
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
