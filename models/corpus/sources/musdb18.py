"""MUSDB18 (`TRACK.stem.mp4`) and MUSDB18-HQ (`TRACK/vocals.wav`): the stems of each track as recordings of one group.

Splits: `train` without musdb's own validation tracks, `valid` with those, `test`. Files, stems and validation tracks
are named as in `musdb`.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from models.corpus.reading import FileAudio, StreamAudio
from models.corpus.sources.recordings import Fault, Recording, key_of, kind_of, unique
from models.errors import CorpusInvalid
from models.labels import find

LABELS = {"vocals": "Singing", "drums": "Drum kit", "bass": "Bass guitar", "other": "Music"}
LICENCE = "as the track's; for research only"

_STEM = ".stem.mp4"
_FOLDERS = {"train": "train", "valid": "train", "test": "test"}


@dataclass(frozen=True)
class Musdb:
    """One split of MUSDB18 or MUSDB18-HQ."""

    root: Path
    split: str

    @property
    def name(self) -> str:
        return self.root.name

    def files(self) -> Iterator[Path]:
        for track in _tracks(self.root, self.split):
            yield from sorted(track.glob("*.wav")) if track.is_dir() else [track]

    def __iter__(self) -> Iterator[Recording | Fault]:
        yield from unique(row for track in _tracks(self.root, self.split) for row in _stems(track, self.root))


def is_musdb18(root: Path) -> bool:
    """Return whether a folder is laid out as MUSDB18 or MUSDB18-HQ."""
    return any(
        next((root / part).glob(pattern), None) is not None
        for part in ("train", "test")
        for pattern in (f"*{_STEM}", "*/mixture.wav")
    )


def splits(root: Path) -> tuple[str, ...]:
    """Return the splits that have tracks."""
    return tuple(split for split in _FOLDERS if _tracks(root, split))


@cache
def _setup() -> dict[str, Any]:
    """Return musdb's description of its data set. Raises CorpusInvalid if it cannot be imported."""
    # stempeg, which musdb imports, cannot be imported without them.
    missing = [program for program in ("ffmpeg", "ffprobe") if shutil.which(program) is None]
    if missing:
        raise CorpusInvalid(f"musdb needs ffmpeg, and the path has no {' and no '.join(missing)}: install ffmpeg")
    try:
        import musdb
    except ImportError as error:
        raise CorpusInvalid("MUSDB18 is read through musdb, which is not installed: install earmark[train]") from error
    # No subsets: musdb would run ffprobe on every track, and fail at the first damaged one.
    return musdb.DB(root=".", subsets=[]).setup


def _tracks(root: Path, split: str) -> list[Path]:
    """Return the track folders or stem files, sorted."""
    folder = root / _FOLDERS[split]
    if not folder.is_dir():
        return []
    tracks = sorted(path for path in folder.iterdir() if path.name.endswith(_STEM) or path.is_dir())
    if split == "test":
        return tracks
    validation = set(_setup()["validation_tracks"])
    return [path for path in tracks if (_title(path) in validation) == (split == "valid")]


def _title(track: Path) -> str:
    return track.name.removesuffix(_STEM)


def _stems(track: Path, root: Path) -> Iterator[Recording | Fault]:
    setup = _setup()
    for stem, label in LABELS.items():
        mids = (find(label).mid,)
        if track.is_dir():
            path, package = track / setup["sources"][stem], "MUSDB18-HQ"
            audio, name = FileAudio(path), path.relative_to(root).as_posix()
        else:
            path, package = track, "MUSDB18"
            audio, name = StreamAudio(track, setup["stem_ids"][stem]), f"{track.relative_to(root).as_posix()}#{stem}"
        if not path.is_file():
            yield Fault(name, "missing file")
            continue
        source = {"package": package, "path": name, "license": LICENCE}
        kind = "music" if stem == "vocals" else kind_of(mids)
        key = key_of(f"{_title(track)}/{stem}")
        yield Recording(key, mids, _title(track), kind, source, audio, name)
