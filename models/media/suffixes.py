"""Suffixes of media files, by which recordings are found in folders. A file that is named may have any."""

from pathlib import PurePath

SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("3gp", "aac", "ac3", "aif", "aifc", "aiff", "amr", "asf", "au", "avi", "bw64", "caf", "dsf", "eac3", "flac"),
        *("flv", "m2ts", "m4a", "m4b", "m4v", "mka", "mkv", "mov", "mp1", "mp2", "mp3", "mp4", "mpeg", "mpg", "oga"),
        *("ogg", "ogv", "opus", "rf64", "snd", "ts", "tta", "vob", "w64", "wav", "wave", "webm", "wma", "wmv", "wv"),
    )
)


def is_recording(name: str) -> bool:
    """Return whether a file of this name is taken for a recording."""
    return PurePath(name).suffix.lower() in SUFFIXES
