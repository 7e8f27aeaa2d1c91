"""Reading of one audio track of a media file, block by block and within limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import soundfile
from av.audio.frame import AudioFrame
from av.audio.plane import AudioPlane
from numpy.typing import NDArray

from models.errors import AudioTooLong, AudioUndecodable
from models.media.demuxing import MediaFile
from models.media.input_formats import EXACT_DURATION
from models.media.limits import Limits, MediaInfo
from models.media.opening import Refused
from models.media.plain_wav import PlainWav
from models.media.vorbis import VorbisFile

Block = NDArray[np.float32]

BLOCK_FRAMES = 65536
# 240 dB above full scale: more overflows float32 in a power spectrum, and is no sound.
_REPAIR = "export the recording again, from what wrote it."
_HIGHEST_SAMPLE = np.float32(1e12)
# An encoder pads one or two packets; if a stream is this much longer than its header says, the header is wrong.
_PADDING_PACKETS = 4
_TYPES = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "s64": np.int64, "flt": np.float32, "dbl": np.float64}
# The bits of WAVE_FORMAT_EXTENSIBLE's mask, by FFmpeg's names.
_SPEAKERS = {
    **{"FL": 0x1, "FR": 0x2, "FC": 0x4, "LFE": 0x8, "BL": 0x10, "BR": 0x20, "FLC": 0x40, "FRC": 0x80, "BC": 0x100},
    **{"SL": 0x200, "SR": 0x400, "TC": 0x800, "TFL": 0x1000, "TFC": 0x2000, "TFR": 0x4000, "TBL": 0x8000},
    **{"TBC": 0x10000, "TBR": 0x20000},
}
_NO_AUDIO = "the file holds no audio that can be decoded"


def open_audio(
    path: str | Path, limits: Limits | None = None, track: int | None = None, plain: PlainWav | None = None
) -> AudioReader:
    """Open an audio track of a media file, counted from 1 (by default the first that can be read), as an AudioReader.

    plain: what `open_plain` has returned for it. Raises AudioUndecodable, AudioTooLong, AudioTooWide,
    FileNotFoundError.
    """
    return AudioReader(Path(path), limits or Limits(), track, plain)


def open_plain(path: Path, track: int | None = None) -> PlainWav | None:
    """Return a file whose samples are read as they stand, without a decoder; None for any other, or another track."""
    if track not in (None, 1):
        return None  # the file's list of tracks tells what there is
    try:
        return PlainWav(path)
    except ValueError:
        return None


class AudioReader:
    """Iterator, usable once, over the blocks of a file's audio: float32 (channels, n <= 65536), full scale 1, at the
    stream's own rate and channels. A context manager.

    The first packets are decoded on opening, since headers may be wrong about rate and channels. Iterating raises
    AudioTooLong as soon as the limits are exceeded, AudioUndecodable where samples are not finite, or far beyond full
    scale. Afterwards `info` is exact, and holds warnings.
    """

    def __init__(self, path: Path, limits: Limits, track: int | None = None, plain: PlainWav | None = None) -> None:
        self._limits = limits
        self._vorbis: VorbisFile | None = None
        try:
            self._media = plain or open_plain(path, track) or MediaFile(path, track)
        except Refused as error:
            raise AudioUndecodable(str(error)) from error
        try:
            self._open(path)
        except Refused as error:
            self.close()
            raise AudioUndecodable(str(error)) from error
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> None:
        media = self._media
        if media.channels > self._limits.channels:
            self._limits.check(self._limits.lowest_rate, media.channels, None)
        if isinstance(media, PlainWav):
            self._frames: Iterator[Block] = media.blocks(BLOCK_FRAMES)
            self.rate, self.channels, self._mask = media.rate, media.channels, media.mask
            self._limits.check(self.rate, self.channels, None)
        # Beside a picture, sound may begin later, which libsndfile does not see.
        elif media.container == "ogg" and media.codec == "vorbis" and media.is_alone:
            self._vorbis = _open_vorbis(path)
        if self._vorbis is not None:
            self._frames = self._vorbis.blocks()
            self.rate, self.channels, self._mask = self._vorbis.rate, self._vorbis.channels, self._vorbis.mask
        elif isinstance(media, MediaFile):
            self._frames = self._decode_frames(media)
        first = next(self._frames, None)
        if first is None:
            raise AudioUndecodable(_NO_AUDIO)
        self._first = first
        whole = media.duration
        self.info = MediaInfo(media.container, media.codec, self.rate, self.channels, None, whole, mask=self._mask)
        # Only decoding tells how long a recording is whose header may be wrong.
        self._limits.check(self.rate, self.channels, whole if media.container in EXACT_DURATION else None)
        # FFmpeg removes the padding at the end itself, except for mp4's edit list.
        self._cut = None
        if media.container == "mov" and whole:
            self._cut = round(whole * self.rate), _PADDING_PACKETS * max(media.frame_size, first.shape[1])

    def __iter__(self) -> Iterator[Block]:
        longest = self._limits.longest(self.rate, self.channels)
        frames = 0
        try:
            for block in self._blocks():
                frames += block.shape[1]
                if frames > longest * self.rate:
                    raise AudioTooLong(f"longer than the {longest:g} s allowed for such a recording")
                _require_sound(block, frames / self.rate)
                yield block
        except Refused as error:
            raise AudioUndecodable(str(error)) from error
        if not frames:
            raise AudioUndecodable(_NO_AUDIO)
        source = self._vorbis or self._media
        warnings = self._vorbis.warnings if self._vorbis is not None else self._media.warnings()
        self.info = dataclasses.replace(
            self.info, frames=frames, duration=frames / self.rate, damaged=source.damaged, warnings=tuple(warnings)
        )

    def _blocks(self) -> Iterator[Block]:
        is_cut_already = isinstance(self._media, PlainWav)
        return self._chain() if is_cut_already else _blocks(_cut_padding(self._chain(), self._cut))

    def _chain(self) -> Iterator[Block]:
        yield self._first
        yield from self._frames

    def close(self) -> None:
        """Close the file."""
        if self._vorbis is not None:
            self._vorbis.close()
        self._media.close()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decode_frames(self, media: MediaFile) -> Generator[Block, None, None]:
        is_first = True
        for frame in media.frames():
            if is_first:
                self.rate, self.channels, is_first = frame.sample_rate, frame.layout.nb_channels, False
                self._mask = _speaker_mask([channel.name for channel in frame.layout.channels])
                self._limits.check(self.rate, self.channels, None)
            yield _as_floats(frame)


def _speaker_mask(channels: list[str]) -> int:
    """Return the mask of channels by FFmpeg's names; 0 unless it names each one's speaker."""
    mask = sum({_SPEAKERS.get(name, 0) for name in channels})
    return mask if mask.bit_count() == len(channels) else 0


def _open_vorbis(path: Path) -> VorbisFile | None:
    try:
        vorbis = VorbisFile(path)
    except soundfile.LibsndfileError:
        return None
    if not vorbis.has_gap:
        return vorbis
    vorbis.close()
    return None


def _require_sound(block: Block, seconds: float) -> None:
    highest = max(block.max(initial=0), -block.min(initial=0))
    if not np.isfinite(highest):
        raise AudioUndecodable(f"Samples before {seconds:.1f} s are not finite (NaN or infinity): {_REPAIR}")
    if highest > _HIGHEST_SAMPLE:
        raise AudioUndecodable(
            f"Samples before {seconds:.1f} s are {highest:.3g} times full scale, which is not sound: {_REPAIR}"
        )


def _as_floats(frame: AudioFrame) -> Block:
    """Return the samples (channels, n) of a decoded frame; integers are divided by their full scale."""
    channels, count = frame.layout.nb_channels, frame.samples
    type_of_samples = _TYPES[frame.format.name.removesuffix("p")]
    # Not `frame.planes`: of frames with exactly eight, PyAV reads a ninth.
    if frame.format.is_planar:
        planes = [np.frombuffer(_plane(frame, index), type_of_samples)[:count] for index in range(channels)]
        samples: np.ndarray[Any, Any] = np.stack(planes)
    else:
        samples = np.frombuffer(_plane(frame, 0), type_of_samples)[: count * channels].reshape(count, channels).T
    if samples.dtype.kind == "f":
        # A 64-bit number may exceed float32; the reader refuses what is not finite.
        with np.errstate(over="ignore", invalid="ignore"):
            return samples.astype(np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) * np.float32(1 / 128)
    return samples.astype(np.float32) * np.float32(0.5 ** (8 * samples.dtype.itemsize - 1))


def _plane(frame: AudioFrame, index: int) -> Any:
    return AudioPlane(frame, index)


def _cut_padding(frames: Iterator[Block], cut: tuple[int, int] | None) -> Iterator[Block]:
    """End the stream at `cut[0]` samples if at most `cut[1]` follow; else the header is wrong, and nothing is cut."""
    if cut is None:
        yield from frames
        return
    end, padding = cut
    passed, held, beyond = 0, [], 0
    for frame in frames:
        room = max(end - passed, 0)
        if beyond <= padding and frame.shape[1] > room:
            held.append(frame[:, room:])
            beyond += frame.shape[1] - room
            frame = frame[:, :room]
        passed += frame.shape[1]
        if frame.shape[1]:
            yield frame
        if beyond > padding and held:
            yield from held
            held = []


def _blocks(frames: Iterator[Block]) -> Iterator[Block]:
    """Yield the same samples in blocks of BLOCK_FRAMES; the last may be shorter."""
    held: list[Block] = []
    count = 0
    for frame in frames:
        held.append(frame)
        count += frame.shape[1]
        if count < BLOCK_FRAMES:
            continue
        joined = np.concatenate(held, axis=1)
        whole = count - count % BLOCK_FRAMES
        for start in range(0, whole, BLOCK_FRAMES):
            yield joined[:, start : start + BLOCK_FRAMES]
        held, count = [joined[:, whole:]], count - whole
    if count:
        yield np.concatenate(held, axis=1)
