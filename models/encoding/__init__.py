"""Writers of audio files. wav and flac keep rate, channels and length exactly; ogg, mp3, opus and m4a as closely as
their codecs allow. Imports no torch.

All formats but 32-bit float clip above 1. `AudioWriter.quantise` returns the samples that a reader of the file gets, so
that the residual can be computed from the stems as written.
"""

from pathlib import Path

from models.encoding.libsndfile import FlacWriter, VorbisWriter
from models.encoding.packets import PacketWriter
from models.encoding.wav import WavWriter
from models.encoding.writer import AudioWriter
from models.errors import FormatUnsupported
from models.formats import FORMATS, check_bit_depth

__all__ = [
    "AudioWriter",
    "FlacWriter",
    "PacketWriter",
    "VorbisWriter",
    "WavWriter",
    "check_format",
    "open_writer",
]


def check_format(format: str, rate: int, channels: int, bit_depth: int | None = None) -> int:
    """Check that `format` can hold such audio, and return the rate in Hz that the file will have.

    Raises FormatUnsupported for an unknown format, an unsupported bit depth or rate, or too many channels.
    """
    known = check_bit_depth(format, bit_depth)
    if not 1 <= channels <= known.channels:
        raise FormatUnsupported(f"{format} holds at most {known.channels} channels, not {channels}")
    if known.rates:
        return min(known.rates, key=lambda allowed: abs(allowed - rate))
    # A FLAC frame stores its rate in 16 bits, as Hz or as tens of Hz.
    if format == "flac" and not (rate <= 65535 or (rate % 10 == 0 and rate <= 655350)):
        raise FormatUnsupported(f"flac cannot store a sample rate of {rate} Hz; wav can")
    # libsndfile's Vorbis encoder crashes on rates far outside its tables.
    if format == "ogg":
        return min(max(rate, 8000), 192000)
    return rate


def open_writer(
    path: str | Path, format: str, rate: int, channels: int, bit_depth: int | None = None, mask: int = 0
) -> AudioWriter:
    """Open a file in `format` for writing blocks; see AudioWriter. Raises FormatUnsupported as `check_format` does.

    mask: the channels' speakers as WAVE_FORMAT_EXTENSIBLE has them, a bit for each channel; 0 if unknown; wav and flac
    keep it of more than two channels. Raises ValueError for a mask of another number of channels.
    """
    file_rate = check_format(format, rate, channels, bit_depth)
    if mask and mask.bit_count() != channels:
        raise ValueError(f"the mask {mask:#x} names {mask.bit_count()} speakers, and there are {channels} channels")
    depth = bit_depth or FORMATS[format].default_bit_depth
    path = Path(path)
    match format:
        case "wav":
            return WavWriter(path, rate, channels, depth or 32, mask)
        case "flac":
            return FlacWriter(path, rate, channels, depth or 24, mask)
        case "ogg":
            return VorbisWriter(path, rate, channels, file_rate)
        case _:
            return PacketWriter(path, format, rate, channels, file_rate)
