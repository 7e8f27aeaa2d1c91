"""CSV files with labels beside a folder of audio files, in two formats.

AudioSet's segments: comment lines, then `YTID, 30.000, 40.000, "/m/09x0r,/t/dd00088"`. The audio is found anywhere
below the folder as `YTID.EXT` or `YYTID.EXT`, either of them also with `_START` or `_START_END` before the dot; START
and END in seconds (`30`, `30.0`, `30.000`) or milliseconds (`30000`). A file with START in its name holds the segment
only; see `models.corpus.reading.FileAudio` for others.

Paths: a header `path,labels` and perhaps `group`, `kind`, `license`, `split`. Paths are relative to the CSV. Labels are
mids, names or slugs: the whole text is one, or they are separated by `;`, or by commas where all are mids (names have
commas in them).
"""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import isfinite
from pathlib import Path

from models.corpus.reading import FileAudio, Segment
from models.corpus.sources.recordings import Fault, Recording, Unusable, key_of, kind_of, mids_of, unique
from models.corpus.splits import canonical_split, split_of
from models.errors import CorpusInvalid
from models.labels import ontology
from models.media.suffixes import is_recording


@dataclass(frozen=True)
class Tables:
    """One split of a folder with CSV files, or of one such file."""

    root: Path
    split: str

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def folder(self) -> Path:
        return self.root.parent if self.root.is_file() else self.root

    def files(self) -> Iterator[Path]:
        tables = [path for path in table_files(self.root) if self.split in _splits_of(path)]
        yield from tables
        if any(is_segments(path) for path in tables):
            yield from sorted(_audio_below(self.folder).values())
        for path in tables:
            if not is_segments(path):
                named = {path.parent / fields["path"] for _, fields in _rows_by_header(path) if fields.get("path")}
                yield from sorted(audio for audio in named if audio.is_file())

    def __iter__(self) -> Iterator[Recording | Fault]:
        yield from unique(self._rows())

    def _rows(self) -> Iterator[Recording | Fault]:
        audio: dict[str, Path] | None = None
        for path in table_files(self.root):
            if self.split not in _splits_of(path):
                continue
            if is_segments(path):
                audio = _audio_below(self.folder) if audio is None else audio
                yield from _segments(path, audio, self.name)
            else:
                yield from _paths(path, self.split, self.name)


def table_files(root: Path) -> list[Path]:
    """Return the CSV itself, or those of a folder that are in one of the two formats."""
    if root.is_file():
        if not (is_segments(root) or _columns(root)):
            raise CorpusInvalid(f"{root} has neither AudioSet's comment lines nor columns named path and labels")
        return [root]
    return [path for path in sorted(root.glob("*.csv")) if is_segments(path) or _columns(path)]


def splits(root: Path) -> tuple[str, ...]:
    """Return the tables' splits, by their `split` column or their file names."""
    return tuple(sorted({split for path in table_files(root) for split in _splits_of(path)}))


def is_segments(path: Path) -> bool:
    """Return whether a CSV begins as AudioSet's do."""
    return _first_line(path).startswith("#")


def labels_of(text: str) -> tuple[str, ...]:
    """Return the mids of the classes in a cell. Raises Unusable if there is none, or an unknown one."""
    text = text.strip()
    if text.lower() in _texts():
        return mids_of([text])
    parts = [part.strip() for part in text.split(";")]
    if len(parts) == 1:
        mids = [part.strip() for part in text.split(",")]
        if all(mid.startswith("/") for mid in mids):
            parts = mids
    return mids_of(part for part in parts if part)


@cache
def _texts() -> frozenset[str]:
    """Return all texts that identify a class; `find`, which searches similar names, is too slow for every row."""
    return frozenset(text.lower() for label in ontology().values() for text in (label.mid, label.name, label.slug))


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.readline()


def _columns(path: Path) -> bool:
    header = [name.strip().lower() for name in _first_line(path).split(",")]
    return "path" in header and "labels" in header


def _splits_of(path: Path) -> set[str]:
    if is_segments(path) or "split" not in [name.strip().lower() for name in _first_line(path).split(",")]:
        return {split_of(path)}
    return {_split_in(fields, path) for _, fields in _rows_by_header(path)}


def _split_in(fields: dict[str, str], path: Path) -> str:
    return canonical_split(fields["split"]) if fields.get("split") else split_of(path)


def _rows_by_header(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and cells by column name, stripped of blanks."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        for row in _rows_until_error(reader):
            cells = {name.strip().lower(): (value or "").strip() for name, value in row.items() if name is not None}
            # Commas in an unquoted name make more cells than columns.
            yield reader.line_num, cells | ({"": "more cells than columns"} if None in row else {})


def _rows_until_error(reader: "csv.DictReader[str]") -> Iterator[dict]:
    """Yield the reader's rows; an unclosed quote ends them with a row that has only an error."""
    try:
        yield from reader
    except csv.Error as error:
        yield {"": str(error)}


def _audio_below(folder: Path) -> dict[str, Path]:
    """Return the audio files below a folder by name without suffix; of several with one name, the first in order."""
    found: dict[str, Path] = {}
    for above, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if is_recording(name):
                found.setdefault(name.rpartition(".")[0], Path(above) / name)
    return found


def _segments(table: Path, audio: dict[str, Path], package: str) -> Iterator[Recording | Fault]:
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True)
        try:
            for cells in reader:
                if not cells or cells[0].startswith("#"):
                    continue
                place = f"{table.name}:{reader.line_num}"
                try:
                    yield _segment(cells, audio, package, place)
                except Unusable as error:
                    yield Fault(place, error.reason, error.detail)
        except csv.Error as error:
            yield Fault(f"{table.name}:{reader.line_num}", "malformed row", str(error))


def _segment(cells: list[str], audio: dict[str, Path], package: str, place: str) -> Recording:
    if len(cells) != 4:
        raise Unusable("malformed row", f"{len(cells)} cells, not YTID, start, end, labels")
    ytid = cells[0].strip()
    start, end = (_seconds(cell) for cell in cells[1:3])
    if start < 0:
        raise Unusable("malformed number", f"a start of {start:g} s")
    if end <= start:
        raise Unusable("end before start", f"{start:g} to {end:g} s")
    mids = labels_of(cells[3])
    path, cut = _file_of(ytid, start, end, audio)
    source = {"package": package, "path": f"{ytid} {start:g}-{end:g} s"}
    sound = FileAudio(path, Segment(start, end, cut))
    return Recording(key_of(f"{ytid}_{round(start * 1000)}"), mids, ytid, kind_of(mids), source, sound, place)


def _seconds(cell: str) -> float:
    try:
        seconds = float(cell)
    except ValueError:
        raise Unusable("malformed number", repr(cell)) from None
    if not isfinite(seconds):
        raise Unusable("malformed number", repr(cell))
    return seconds


def _file_of(ytid: str, start: float, end: float, audio: dict[str, Path]) -> tuple[Path, bool]:
    """Return the file of a segment, and whether by its name it is cut already; those take precedence."""
    forms = [(f"{start:g}", f"{end:g}"), (f"{start:.1f}", f"{end:.1f}"), (f"{start:.3f}", f"{end:.3f}")]
    forms.append((f"{start * 1000:.0f}", f"{end * 1000:.0f}"))
    for stem in (ytid, f"Y{ytid}"):
        for first, last in forms:
            for name in (f"{stem}_{first}", f"{stem}_{first}_{last}"):
                if name in audio:
                    return audio[name], True
    for stem in (ytid, f"Y{ytid}"):
        if stem in audio:
            return audio[stem], False
    raise Unusable("missing file", f"no {ytid}.*, Y{ytid}.* or {ytid}_{start:g}.*")


def _paths(table: Path, split: str, package: str) -> Iterator[Recording | Fault]:
    for line, fields in _rows_by_header(table):
        if _split_in(fields, table) != split:
            continue
        place = f"{table.name}:{line}"
        try:
            yield _path(table, fields, package, place)
        except Unusable as error:
            yield Fault(place, error.reason, error.detail)


def _path(table: Path, fields: dict[str, str], package: str, place: str) -> Recording:
    name = fields.get("path", "")
    if not name or "" in fields:
        raise Unusable("malformed row", fields.get("", "no path"))
    mids = labels_of(fields.get("labels", ""))
    path = table.parent / name
    if not path.is_file():
        raise Unusable("missing file", name)
    source = {"package": package, "path": name}
    if fields.get("license"):
        source["license"] = fields["license"]
    group, kind = fields.get("group") or name, fields.get("kind") or kind_of(mids)
    return Recording(key_of(name.rpartition(".")[0] or name), mids, group, kind, source, FileAudio(path), place)
