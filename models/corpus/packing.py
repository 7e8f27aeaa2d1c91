"""Packing of a corpus into WebDataset shards: encoded in parallel, written in order, and resumable.

A shard is written under a temporary name and renamed when complete; then the journal `.pack-SPLIT.jsonl` records the
number of rows done, so that a resumed call skips those without reading them. The journal's first line identifies the
source and the settings: others are refused, since their shards would be mixed up.
"""

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from models.corpus.clips import RATE
from models.corpus.parallel import exclusive_lock, in_order
from models.corpus.reading import pieces
from models.corpus.sources.formats import Files, fingerprint
from models.corpus.sources.recordings import Fault, Recording, Samples, Unusable, summarise
from models.encoding import open_writer
from models.errors import CorpusInvalid
from models.labels import ontology

# The rest of a recording that is cut into pieces is left out if it is shorter.
SHORTEST_REST = 1.0  # seconds
# A piece whose peak is below this (-60 dBFS) is silent.
SILENCE = 33

# Bit depth of formats that have one: that of decoded clips.
_BIT_DEPTHS = {"flac": 16, "wav": 16}


@dataclass(frozen=True)
class Settings:
    """Settings of a pack: audio format, size of a shard in MiB, and length of a long recording's pieces in s."""

    format: str = "opus"
    shard_mb: float = 24
    max_seconds: float = 10


@dataclass
class Tally:
    """Progress of a pack: `rows` of the source, which made `clips`; `left_over` counts the seconds of short rests and
    silent pieces that were left out."""

    rows: int = 0
    clips: int = 0
    shards: int = 0
    seconds: float = 0.0
    left_over: float = 0.0
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True)
class Encoded:
    """One row of the source, encoded: (key, audio, JSON) of each piece."""

    pieces: list[tuple[str, bytes, dict[str, Any]]]
    left_over: float
    faults: list[Fault]


class Encoder(Protocol):
    """Makes a row's pieces."""

    def __call__(self, row: Any, settings: Settings) -> Encoded: ...


class Rows(Files, Protocol):
    """Rows that a split is packed from: a `Source` of recordings, or rows of another kind with an encoder of their own.
    Iterating, which can be repeated, yields them in a fixed order."""

    @property
    def name(self) -> str: ...

    def __iter__(self) -> Iterator[Any]: ...


def pack(
    source: Rows,
    output: Path,
    settings: Settings = Settings(),
    workers: int = 1,
    advance: Callable[[Tally], None] = lambda _: None,
    encoder: Encoder | None = None,
    about: Mapping[str, Any] | None = None,
) -> Tally:
    """Write one split to `output` as SPLIT-000.tar, ..., or resume an interrupted pack.

    encoder: what makes a row's pieces, `encode` of recordings by default; picklable. about: what else the pieces depend
    on, which a resumed call must have the same.

    Raises CorpusInvalid if the folder holds a pack of something else, or shards without a journal, if another process
    is packing there, or if no recording is usable; OSError if writing fails; FormatUnsupported.
    """
    with exclusive_lock(output / f".pack-{source.split}.lock", waits=False):
        journal = output / f".pack-{source.split}.jsonl"
        head = asdict(settings) | {"source": fingerprint(source), "split": source.split} | dict(about or {})
        tally, complete = _resume(journal, head)
        advance(tally)
        if not complete:
            _pack_rest(source, output, settings, workers, advance, encoder or encode, tally, journal)
        return tally


def _pack_rest(
    source: Rows,
    output: Path,
    settings: Settings,
    workers: int,
    advance: Callable[[Tally], None],
    encoder: Encoder,
    tally: Tally,
    journal: Path,
) -> None:
    rest = islice(source, tally.rows, None)
    shard = _Shard(output, source.split, tally.shards, settings)
    recorded = len(tally.faults)
    try:
        for row in in_order(partial(encoder, settings=settings), rest, workers):
            if shard.is_full:
                shard.finish()
                tally.shards += 1
                _record(journal, tally, recorded)
                recorded = len(tally.faults)
                shard = _Shard(output, source.split, tally.shards, settings)
            for key, audio, description in row.pieces:
                shard.add(key, audio, description)
                tally.clips += 1
                tally.seconds += description["seconds"]
            tally.rows += 1
            tally.left_over += row.left_over
            tally.faults += row.faults
            advance(tally)
        if not tally.clips:
            raise CorpusInvalid(f"nothing of {source.name}, {source.split}, can be packed: {summarise(tally.faults)}")
        if shard.size:
            shard.finish()
            tally.shards += 1
        _record(journal, tally, recorded, complete=True)
    finally:
        shard.discard()


def encode(row: Recording | Fault, settings: Settings) -> Encoded:
    """Return a recording's pieces, encoded, with their JSON."""
    if isinstance(row, Fault):
        return Encoded([], 0.0, [row])
    faults: list[Fault] = []
    made: list[tuple[float, bytes, int]] = []
    left_over = 0.0
    place = 0
    try:
        blocks = row.audio.blocks(lambda detail: faults.append(Fault(row.place, "damaged", detail)))
        for piece, only in _with_only(pieces(blocks, round(settings.max_seconds * RATE))):
            if not only and _says_little(piece, settings, first=place == 0):
                left_over += len(piece) / RATE
            else:
                made.append((place / RATE, encode_piece(piece, settings.format), len(piece)))
            place += len(piece)
        if not place:
            raise Unusable("undecodable", "no samples")
        if not made:
            raise Unusable("silent recording")
    except Unusable as error:
        return Encoded([], 0.0, [Fault(row.place, error.reason, error.detail)])
    except OSError as error:
        return Encoded([], 0.0, [Fault(row.place, "unreadable", str(error))])
    cut = place / RATE > settings.max_seconds
    return Encoded(
        [
            (f"{row.key}-{number:03d}" if cut else row.key, audio, _description(row, offset if cut else None, frames))
            for number, (offset, audio, frames) in enumerate(made)
        ],
        left_over,
        faults,
    )


def _with_only(cut: Iterator[Samples]) -> Iterator[tuple[Samples, bool]]:
    """Yield pieces, and whether each is the only one of its recording."""
    first = next(cut, None)
    if first is None:
        return
    second = next(cut, None)
    yield first, second is None
    if second is not None:
        yield second, False
        yield from ((piece, False) for piece in cut)


def _says_little(piece: Samples, settings: Settings, first: bool) -> bool:
    short = len(piece) < min(SHORTEST_REST, settings.max_seconds) * RATE and not first
    return short or np.abs(piece.astype(np.int32)).max() < SILENCE


def encode_piece(samples: Samples, format: str) -> bytes:
    """Return samples at 32 kHz, mono, as a file of a format."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip"
        with open_writer(path, format, RATE, 1, _BIT_DEPTHS.get(format)) as writer:
            writer.write(samples.astype(np.float32)[None] * np.float32(1 / 32768))
        return path.read_bytes()


def _description(row: Recording, offset: float | None, frames: int) -> dict[str, Any]:
    said: dict[str, Any] = {
        "labels": [ontology()[mid].name for mid in row.mids],
        "mids": list(row.mids),
        "seconds": round(frames / RATE, 3),
        "group": row.group,
        "kind": row.kind,
    }
    said |= row.source
    if offset is not None:
        before = row.source.get("offset", 0)
        said["offset"] = round(offset + (before if isinstance(before, int | float) else 0), 3)
    return said


class _Shard:
    """A tar that is being written, under a temporary name."""

    def __init__(self, output: Path, split: str, number: int, settings: Settings) -> None:
        self._path = output / f"{split}-{number:03d}.tar"
        self._partial = self._path.with_name(f".{self._path.name}.partial")
        self._settings = settings
        self._tar = tarfile.open(self._partial, "w")  # noqa: SIM115 - closed by finish
        self.size = 0

    @property
    def is_full(self) -> bool:
        return self.size >= self._settings.shard_mb * 2**20

    def add(self, key: str, audio: bytes, description: dict[str, Any]) -> None:
        described = json.dumps(description, ensure_ascii=False).encode()
        for suffix, content in ((self._settings.format, audio), ("json", described)):
            # TarInfo's defaults, owner 0 and time 0, make shards reproducible.
            member = tarfile.TarInfo(f"{key}.{suffix}")
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))
        self.size = self._tar.offset

    def finish(self) -> None:
        self._tar.close()
        self._partial.rename(self._path)

    def discard(self) -> None:
        self._tar.close()
        self._partial.unlink(missing_ok=True)


def _resume(journal: Path, head: dict[str, Any]) -> tuple[Tally, bool]:
    """Return the tally of earlier calls, and whether the pack is complete."""
    if not journal.exists():
        if present := sorted(journal.parent.glob(f"{head['split']}-*.tar")):
            raise CorpusInvalid(f"{present[0]} exists and is not of an interrupted pack: choose another folder")
        journal.write_text(json.dumps(head) + "\n", encoding="utf-8")
        return Tally(), False
    # Drop an incomplete last line.
    whole, _, _ = journal.read_text(encoding="utf-8").rpartition("\n")
    journal.write_text(whole + "\n", encoding="utf-8")
    lines = [json.loads(line) for line in whole.splitlines()]
    if lines[0] != head:
        changed = ", ".join(name for name in head if lines[0].get(name) != head[name])
        raise CorpusInvalid(f"{journal.parent} holds a pack with another {changed}: choose another folder or empty it")
    if len(lines) == 1:
        return Tally(), False
    complete = lines[-1].pop("complete")
    faults = [Fault(**fault) for line in lines[1:] for fault in line["faults"]]
    return Tally(**lines[-1] | {"faults": faults}), complete


def _record(journal: Path, tally: Tally, recorded: int, complete: bool = False) -> None:
    """Append a line: the sums so far, and the faults since the last line."""
    line = asdict(tally) | {"faults": [asdict(fault) for fault in tally.faults[recorded:]], "complete": complete}
    with journal.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
