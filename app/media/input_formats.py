"""Media files that are accepted, and the names of those that are not.

This module stands twice, as `app.media` and `models.media` may not import each other: a test requires that both texts
are the same. `docker/README.md` shows the lists.
"""

from __future__ import annotations

# Containers by FFmpeg's name, with the media type of each. FFmpeg detects formats by content: without this list, an
# m3u8 named song.mp3 opens other files.
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
    "caf": "audio/x-caf",
    "amr": "audio/amr",
    "asf": "audio/x-ms-wma",
    "mpegts": "video/mp2t",
    "mpeg": "video/mpeg",
    "avi": "video/x-msvideo",
    "flv": "video/x-flv",
    "au": "audio/basic",
    "ac3": "audio/ac3",
    "eac3": "audio/eac3",
    "wv": "audio/x-wavpack",
    "tta": "audio/x-tta",
    "dsf": "audio/x-dsf",
}
# Audio decoders by FFmpeg's names, which differ between its builds; it would run video decoders to complete headers.
CODECS = (
    *("aac", "ac3", "adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "alac", "amrnb", "amrwb", "dsd_lsbf_planar", "eac3"),
    *("dsd_msbf_planar", "flac", "gsm_ms", "mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float", "opus"),
    *("pcm_alaw", "pcm_mulaw", "pcm_s8", "pcm_u8", "tta", "vorbis", "wavpack", "wmav1", "wmav2"),
    *(f"pcm_{kind}{end}" for kind in ("s16", "s24", "s32", "f32", "f64") for end in ("le", "be")),
)
# Their headers tell no duration, and FFmpeg estimates it from the bit rate or time stamps: no file is refused for it.
GUESSED_DURATION = ("mp3", "aac", "ac3", "eac3", "amr", "mpegts", "mpeg")
# Their headers tell the duration for sure. Others may be joined or cut: only decoding tells.
EXACT_DURATION = ("wav", "w64", "aiff", "caf", "au", "mov")
# Short enough that a sentence about a file and this list fit into the detail of an error response.
ACCEPTED = (
    "WAV, AIFF, CAF, AU, FLAC, ALAC, WavPack, TTA, DSF, MP3, AAC, M4A, Ogg, Opus, WebM, AMR, AC-3, WMA, MP4, MOV, MKV, "
    "MPEG, AVI, FLV"
)

_ID3_HEADER_BYTES = 10
_ARCHIVE = "This is an archive: upload the recording in it."
_PICTURE = "This is a picture: it has no sound."
_PLAYLIST = "This is a playlist: it names recordings and holds none."
# What begins with these bytes is refused by name.
_REFUSED = {
    b"MThd": "This is a MIDI file: it has notes, not sound.",
    b"%PDF": "This is a PDF document.",
    b"<!doctype html": "This is a web page (HTML): download the recording itself.",
    b"<html": "This is a web page (HTML): download the recording itself.",
    b"<?xml": "This is an XML document.",
    b"#EXTM3U": _PLAYLIST,
    b"[playlist]": _PLAYLIST,
    b"ffconcat": _PLAYLIST,
    b"PK\x03\x04": _ARCHIVE,
    b"PK\x05\x06": _ARCHIVE,
    b"\x1f\x8b": _ARCHIVE,
    b"7z\xbc\xaf\x27\x1c": _ARCHIVE,
    b"Rar!\x1a\x07": _ARCHIVE,
    b"\x89PNG": _PICTURE,
    b"\xff\xd8\xff": _PICTURE,
    b"GIF8": _PICTURE,
    b"BM": _PICTURE,
    b"II*\0": _PICTURE,
    b"MM\0*": _PICTURE,
}
# After a tag of MPEG audio, these bytes begin another kind of file.
_AFTER_TAG = (
    *(b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff", b"FORM", b"fLaC", b"OggS", b"wvpk", b"TTA1", b"caff", b".snd"),
    *(b"DSD ", b"FLV\1", b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75", b"\0\0\1\xba"),
)


def refusal(start: bytes) -> str | None:
    """Return a sentence for the client if a file that begins with `start` (64 bytes are enough) is of a kind that is
    never accepted."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:32].lower()
    for magic, sentence in _REFUSED.items():
        is_text = magic[:1] in b"<[#f"
        # Two bytes alone may begin an mp3's frame or raw samples: a bitmap's reserved fields are zero too.
        if (text if is_text else start).startswith(magic.lower() if is_text else magic) and (
            magic != b"BM" or start[6:10] == bytes(4)
        ):
            return f"{sentence} {accepted()}"
    if (start[:4] == b"RIFF" and start[8:12] == b"WEBP") or start[4:12] in (b"ftypheic", b"ftypmif1", b"ftypavif"):
        return f"{_PICTURE} {accepted()}"
    if start[:4] == b"RIFF" and start[8:12] == b"RMID":
        return f"{_REFUSED[b'MThd']} {accepted()}"
    return None


def accepted() -> str:
    """Return the sentence that lists what is accepted."""
    return f"Accepted are {ACCEPTED}."


def tag_bytes(start: bytes) -> int:
    """Return the size of the ID3v2 tag that `start` begins with, 0 if there is none."""
    if len(start) < _ID3_HEADER_BYTES or start[:3] != b"ID3" or max(start[6:10]) > 127:
        return 0
    size = start[6] << 21 | start[7] << 14 | start[8] << 7 | start[9]
    footer = _ID3_HEADER_BYTES if start[5] & 0x10 else 0
    return _ID3_HEADER_BYTES + size + footer


def is_foreign_to_tags(start: bytes) -> bool:
    """Whether FFmpeg must not see the tag before a file that begins with `start`: it expects MPEG audio after one."""
    return start.startswith(_AFTER_TAG) or start[4:8] == b"ftyp" or start[:2] == b"\x0b\x77" or start[:5] == b"#!AMR"


def short_mpeg_format(start: bytes) -> str | None:
    """Return the format of an mp3 or AAC file too short for FFmpeg, which needs several packets to detect these two."""
    if start[:3] == b"ID3":
        return "mp3"
    if len(start) < 2 or start[0] != 0xFF or start[1] & 0xE0 != 0xE0:
        return None
    # A sync word, then the MPEG layer, which is zero in ADTS.
    return "mp3" if start[1] & 0x06 else "aac"
