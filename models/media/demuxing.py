"""Untrusted media files, decoded to frames on the file's own clock. Needs PyAV alone.

This module stands twice, as `app.media` and `models.media` may not import each other: a test requires that both texts
are the same. It belongs into a child process, since demuxers and decoders have had vulnerabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from av.audio.frame import AudioFrame
from av.audio.plane import AudioPlane
from av.audio.resampler import AudioResampler
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Discard

from models.media.headers import edited_seconds, is_soundless, tagged_seconds, wav_seconds, xing_seconds
from models.media.opening import Refused, choose_track, list_tracks, open_container, open_decoder, require_clear

GAP = 0.05  # seconds by which time stamps may differ from the samples so far; more is a gap
LENGTH_SLACK = 0.1  # seconds by which a header's duration may be wrong: padding, a packet
# Containers whose time stamps are a clock, or number the samples; in others FFmpeg counts what it has read.
_CLOCKS = ("mov", "matroska", "asf", "flv", "mpegts", "mpeg", "ogg", "flac")
# Their clocks may jump between parts that belong together; FFmpeg takes that for a jump of more than 10 s.
_JUMPING_CLOCKS = ("mpegts", "mpeg", "ogg")
_LONGEST_JUMP = 10.0
_LONGEST_GAP = 3600.0  # seconds that are filled, where no header tells that the recording lasts so long
# Containers whose headers tell how long a recording was before it was cut.
_TELL_LENGTH = ("w64", "flac", "mov", "matroska", "aiff", "caf", "au", "wv", "tta", "dsf")
_HIGHEST_DSD_RATE = 192_000  # Hz to which DSD is converted, which is decoded at 352.8 kHz and more
# Packets in a row that give no frame, after which a file is given up: they cost 10 microseconds each, and so long a
# damage (20 s of AAC) leaves no recording. Sound begins in the first few packets.
MAX_FRAMELESS_PACKETS = 1000
_MOST_PLACES = 5  # that a warning lists
_SILENT_SAMPLES = 8192  # of one frame


@dataclass(frozen=True)
class _Kind:
    """What all frames of a recording have in common."""

    rate: int
    channels: int
    format: str

    @classmethod
    def of(cls, frame: AudioFrame) -> _Kind:
        return cls(frame.sample_rate, frame.layout.nb_channels, frame.format.name)

    def __str__(self) -> str:
        return f"{self.channels} {'channel' if self.channels == 1 else 'channels'} at {self.rate} Hz"


@dataclass
class _Places:
    """Places in a recording: how many, and the first ones in words."""

    count: int = 0
    seconds: float = 0.0
    words: list[str] = field(default_factory=list)

    def add(self, words: str, seconds: float = 0.0) -> None:
        self.count += 1
        self.seconds += seconds
        if len(self.words) < _MOST_PLACES and words not in self.words:
            self.words.append(words)

    def __str__(self) -> str:
        listed = ", ".join(self.words)
        return f"{listed} and later" if self.count > len(self.words) else listed


class MediaFile:
    """A media file and one of its audio tracks, by default the first that can be read. A context manager.

    container, codec: FFmpeg's names. tracks: all audio tracks; track: the one that is read; is_alone: the file holds
    nothing but it. duration: the track's end
    in seconds on the file's clock by its headers, or None; length: the same where they tell it for sure. damaged:
    packets so far that could not be decoded. Raises Refused, and OSError for a file that cannot be read.
    """

    def __init__(self, path: Path, track: int | None = None) -> None:
        self.damaged = 0
        self._changes = _Places()
        self._gaps = _Places()
        self._closed = _Places()
        self._losses = _Places()
        self._kind: _Kind | None = None
        self._samples = 0
        self._origin: float | None = None
        self._inserted = 0.0
        self._demuxer = open_container(path)
        try:
            self.container = self._demuxer.format.name.split(",")[0]
            self.tracks = list_tracks(self._demuxer)
            self.track = choose_track(self._demuxer, self.tracks, track)
            self._stream = self._demuxer.streams.audio[self.track.number - 1]
            self.is_alone = len(self._demuxer.streams) == 1
            require_clear(self._demuxer, self._stream)
            for other in self._demuxer.streams:
                if other is not self._stream:
                    other.discard = Discard.all
            self._decoder, stretch = open_decoder(path, self._demuxer, self._stream)
            self.codec = self._decoder.codec.canonical_name
            header = self._stream.codec_context
            self.sample_rate, self.channels, self.frame_size = header.sample_rate, header.channels, header.frame_size
            self._begin, self._delay = self._start()
            self.duration, self.length = self._durations(path, stretch)
        except BaseException:
            self._demuxer.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._demuxer.close()

    def __enter__(self) -> MediaFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> tuple[float, float]:
        """Return when the file begins on FFmpeg's clock, such as with the first picture, and how much later the track
        does, both in seconds."""
        stream, start = self._stream, self._demuxer.start_time
        if self.container not in _CLOCKS or start is None or stream.start_time is None or stream.time_base is None:
            return 0.0, 0.0
        delay = float(stream.start_time * stream.time_base) - start / 1e6
        return start / 1e6, delay if delay > GAP else 0.0

    def _durations(self, path: Path, stretch: float) -> tuple[float | None, float | None]:
        stream, whole = self._stream, self._demuxer.duration
        told = None
        if stream.duration is not None and stream.time_base is not None:
            told = float(stream.duration * stream.time_base) * stretch
        likely = end = self._end(path, told)
        if end is None and whole is not None:
            likely = whole / 1e6 - (self._lead if self.container == "matroska" else 0.0)
        if self.container == "mp3":
            sure = xing_seconds(path, self.sample_rate)
        elif self.container == "wav":
            sure = wav_seconds(path, likely)
        else:
            # A whole file may be longer than its sound.
            is_sure = self.container in _TELL_LENGTH and (end is not None or self.is_alone)
            # FFmpeg gives a Matroska track a duration only where no header tells one: by the bit rate.
            is_sure = is_sure and not (self.container == "matroska" and told is not None)
            sure = likely if is_sure else None
        return likely if likely and likely > 0 else None, sure if sure and sure > 0 else None

    @property
    def _lead(self) -> float:
        return max(self._begin, 0.0)

    def _end(self, path: Path, told: float | None) -> float | None:
        """Return the track's end in seconds after the file's beginning, by what FFmpeg tells as its duration, which
        counts from the track's beginning or, in some containers, from the clock's."""
        if self.container == "mov" and (self._lead or self._delay):
            edited = edited_seconds(path, self._stream.id)
            if edited is not None:
                return edited - self._lead
        if self.container == "matroska":
            tagged = tagged_seconds(self._stream)
            return tagged - self._lead if tagged is not None else None
        if told is None:
            return None
        counts_from_zero = self.container == "asf" or (self.container == "ogg" and self.codec == "opus")
        return told - self._lead if counts_from_zero else told + self._delay

    # Frames

    def frames(self) -> Iterator[AudioFrame]:
        """Yield the track's frames on the file's clock from 0, all of the first one's rate, channels and format.

        Gaps between time stamps, and what precedes the track's beginning, are silent frames; frames of another kind
        are converted. Padding that only an edit list tells is not cut. Raises Refused.
        """
        converter: AudioResampler | None = None
        converted_kind: _Kind | None = None
        for frame in self._decode():
            if not frame.samples:
                continue
            kind = _Kind.of(frame)
            if self._kind is None:
                self._kind, self._layout = self._common_kind(kind), frame.layout
            if converter is not None and kind != converted_kind:
                yield from self._convert(converter, None)
                converter = None
            yield from self._silence(self._missing(frame))
            if kind == self._kind:
                yield self._count(frame)
                continue
            if converter is None:
                converter, converted_kind = self._open_converter(self._kind, kind), kind
            yield from self._convert(converter, frame)
        if converter is not None:
            yield from self._convert(converter, None)

    def _open_converter(self, common: _Kind, kind: _Kind) -> AudioResampler:
        if kind.rate != common.rate or kind.channels != common.channels:
            self._changes.add(f"{kind} from {self._seconds:.1f} s on")
        return AudioResampler(format=common.format, layout=self._layout, rate=common.rate)

    def _convert(self, converter: AudioResampler, frame: AudioFrame | None) -> Iterator[AudioFrame]:
        if frame is not None:
            frame.pts = None
        try:
            converted = converter.resample(frame)
        except FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            raise Refused("The recording changes to channels or a rate that cannot be converted.") from error
        for each in converted:
            yield self._count(each)

    def _common_kind(self, first: _Kind) -> _Kind:
        if not self._decoder.name.startswith("dsd_"):
            return first
        rate = first.rate
        while rate > _HIGHEST_DSD_RATE:
            rate //= 2
        return _Kind(rate, first.channels, first.format)

    def _count(self, frame: AudioFrame) -> AudioFrame:
        self._samples += frame.samples
        return frame

    @property
    def _seconds(self) -> float:
        return self._samples / self._kind.rate if self._kind is not None else 0.0

    def _decode(self) -> Iterator[AudioFrame]:
        packets = self._demuxer.demux(self._stream)
        frameless = 0
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                # A truncated file ends here.
                self._lose()
                return
            frames = self._decode_packet(packet)
            yield from frames
            frameless = 0 if frames else frameless + 1
            if frameless > MAX_FRAMELESS_PACKETS:
                raise Refused("The file is damaged: too much of it in a row cannot be decoded.")

    def _decode_packet(self, packet: Packet) -> list[AudioFrame]:
        try:
            return self._decoder.decode(packet if packet.size else None)
        except FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            if self._kind is None:
                require_clear(self._demuxer, self._stream, packet)
            # An mp3 that was appended begins with a tag and a table.
            if not is_soundless(bytes(packet)):
                self._lose()
            return []

    def _lose(self) -> None:
        self.damaged += 1
        self._losses.add(f"{self._seconds:.1f} s")

    def _missing(self, frame: AudioFrame) -> int:
        """Return how many silent samples must precede a frame."""
        if frame.pts is None or frame.time_base is None or self.container not in _CLOCKS or self._kind is None:
            return 0
        stamp = float(frame.pts * frame.time_base)
        if self._origin is None:
            # What a decoder holds back at first is no gap, unless a picture precedes it; what it cannot decode is one.
            self._origin = self._begin if self.damaged or self._delay else stamp
        gap = stamp - self._origin - self._seconds
        if abs(gap) <= GAP:
            return 0
        is_jump = gap > _LONGEST_JUMP and self.container in _JUMPING_CLOCKS
        if self.duration is not None and self._samples:
            is_unlikely = self._seconds + gap > self.duration + _LONGEST_JUMP
        else:
            is_unlikely = gap > _LONGEST_GAP
        if gap < 0 and -gap <= self._inserted + GAP:
            # Late time stamps, which made silence, are early again: what follows catches up with that silence.
            return 0
        if gap < 0 or is_jump or is_unlikely:
            if is_unlikely:
                self._closed.add(f"at {self._seconds:.1f} s of {gap:.1f} s")
            self._origin += gap
            self._inserted = 0.0
            return 0
        self._inserted += gap
        self._gaps.add(f"{self._seconds:.2f} to {self._seconds + gap:.2f} s", gap)
        return round((stamp - self._origin) * self._kind.rate) - self._samples

    def _silence(self, samples: int) -> Iterator[AudioFrame]:
        kind = self._kind
        while samples > 0 and kind is not None:
            size = min(samples, _SILENT_SAMPLES)
            frame = AudioFrame(format=kind.format, layout=self._layout, samples=size)
            frame.sample_rate = kind.rate
            level = b"\x80" if kind.format.startswith("u8") else b"\0"
            for index in range(kind.channels if frame.format.is_planar else 1):
                plane: Any = AudioPlane(frame, index)
                plane.update(level * plane.buffer_size)
            samples -= size
            yield self._count(frame)

    # Warnings

    def warnings(self) -> list[str]:
        """Return sentences about what is missing from the frames, or was changed in them, once all are read."""
        sentences = []
        if self._changes.count and not self._decoder.name.startswith("dsd_"):
            sentences.append(f"The recording changes: {self._changes}. All of it is converted to {self._kind}.")
        if self._gaps.count:
            sentences.append(
                f"There is no sound from {self._gaps}, {self._gaps.seconds:.2f} s in all: silence stands there."
            )
        if self._closed.count:
            sentences.append(
                f"Time stamps jump {self._closed}, further than the recording lasts by its header, or by more than "
                f"{_LONGEST_GAP:g} s: no silence stands there, and what follows is early."
            )
        if self._losses.count:
            # Where time stamps are a clock, what is missing is a gap.
            shift = "" if self.container in _CLOCKS else " What follows is early by what is missing."
            packets = "1 packet" if self.damaged == 1 else f"{self.damaged} packets"
            sentences.append(f"{packets} could not be decoded, at {self._losses}.{shift}")
        missing = self.length - self._seconds if self.length is not None else 0.0
        if missing > LENGTH_SLACK:
            sentences.append(
                f"The recording ends after {self._seconds:.1f} s, and by its header it lasts {self.length:.1f} s: "
                f"{missing:.1f} s are missing."
            )
        return sentences
