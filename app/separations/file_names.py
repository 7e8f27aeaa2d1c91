"""Names of the files under which stems are downloaded."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from app.records.separations import StemRecord
from app.separations.names import fold

_MAX_FILE_NAME = 255  # bytes
_DEVICE = re.compile(r"^((con|prn|aux|nul|com\d|lpt\d)\.)", re.IGNORECASE)  # names that Windows keeps for devices


def file_names(stems: Iterable[StemRecord], source: str | None) -> list[str]:
    """Return the names of the files of a recording's stems, distinct on every file system.

    Names of stems may differ only in characters that files cannot have, or at an end for which there is no room: the
    second such file gets a number. `source`: the name of the recording's file, if it is known.
    """
    names: dict[str, str] = {}
    for stem in stems:
        name, number = file_name(stem, source), 1
        while fold(name) in names:
            number += 1
            name = file_name(stem, source, f"-{number}")
        names[fold(name)] = name
    return list(names.values())


def file_name(stem: StemRecord, source: str | None, mark: str = "") -> str:
    """Return the file name under which a stem of a recording is downloaded, such as `street-dog.flac`.

    `source`: the name of the recording's file, if it is known. `mark`: what the name ends with, before the suffix; see
    `file_names`.
    """
    suffix = mark + PurePosixPath(stem.key).suffix
    name = _replace_separators(stem.name)
    room = _MAX_FILE_NAME - len(f"-{suffix}".encode())
    prefix = f"{_cut(source_name(source), room - len(name.encode()))}-" if source else ""
    complete = f"{prefix if prefix != '-' else ''}{_cut(name, room)}{suffix}"
    return _DEVICE.sub(r"_\1", complete)


def source_name(source: str) -> str:
    """Return the name of a recording's file without its suffix."""
    return _replace_separators(PurePosixPath(source).stem)


def _replace_separators(name: str) -> str:
    """Replace what Windows does not allow in a file name."""
    return re.sub(r'[<>:"|?*\\/]', "_", name)


def _cut(name: str, size: int) -> str:
    return name.encode()[: max(0, size)].decode(errors="ignore")
