"""Reading of media files, and through `models.encoding` writing: block by block, within limits. Imports no torch.

Files are untrusted. The bytes decide what a file is, among the containers and codecs of `input_formats`; the limits
apply to the decoded audio, whatever headers say; and `python -m models.media decode IN OUT` is a separate program, so
that the caller can run it in a sandbox (`decode_in_child` without one).

A recording is decoded on the file's own clock, from 0 to the last sample: what gaps between time stamps leave out is
silent. Encoder delay and padding are removed where the container stores them (mp3 with a LAME tag, opus, vorbis, mp4's
edit list; matroska and bare AAC do not). Of a damaged or truncated file, what can be decoded is returned;
`MediaInfo.warnings` tell what is missing.
"""

from models.encoding import AudioWriter, WavWriter, check_format, open_writer
from models.errors import AudioTooLong, AudioTooWide, AudioUndecodable, FormatUnsupported, MediaError
from models.formats import FORMATS, Format, content_type
from models.media.decoding import decode, decode_in_child
from models.media.limits import ANY_LENGTH, Limits, MediaInfo
from models.media.reader import AudioReader, open_audio

__all__ = [
    "ANY_LENGTH",
    "FORMATS",
    "AudioReader",
    "AudioTooLong",
    "AudioTooWide",
    "AudioUndecodable",
    "AudioWriter",
    "Format",
    "FormatUnsupported",
    "Limits",
    "MediaError",
    "MediaInfo",
    "WavWriter",
    "check_format",
    "content_type",
    "decode",
    "decode_in_child",
    "open_audio",
    "open_writer",
]
