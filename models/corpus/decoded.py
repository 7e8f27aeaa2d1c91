"""Cache of decoded clips: a folder with `samples.int16` and `energies.float32`, which are memory-mapped, and
`clips.jsonl`. Its size is limited by the disk: AudioSet's two million clips are 1.3 TB, and opened in seconds."""

import csv
import gc
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from models.compute.threads import usable_cores
from models.corpus.clips import ENERGY_HOP, RATE, Clip, Clips, energies_of
from models.corpus.parallel import exclusive_lock, in_order
from models.corpus.sources.formats import fingerprint, open_source
from models.corpus.sources.recordings import Fault, Recording, Samples, Source, Unusable, summarise
from models.errors import CorpusInvalid

LAYOUT = 2  # version of the cache, part of its name: changes whenever clips are decoded or written differently
REPORT = 1000  # recordings between two calls of `advance`

# The fields needed for attribution.
_SOURCE = ("package", "path", "license")

log = logging.getLogger(__name__)


def load(
    corpus: Path, split: str, cache: Path, advance: Callable[[str], None] = lambda _: None, workers: int | None = None
) -> Clips:
    """Return the clips of one split of a corpus of any kind (see `models.corpus`), decoded into `cache` the first time.

    The cache's folder is named by a fingerprint of the corpus's files, so that a changed corpus is decoded again.
    Recordings are not cut. Unusable ones are counted in the log and listed in `faults.csv` beside the samples. Raises
    FileNotFoundError or CorpusInvalid if there is no such corpus or split, or no usable recording.
    """
    return load_source(open_source(corpus, split), cache, advance, workers)


def load_source(
    source: Source, cache: Path, advance: Callable[[str], None] = lambda _: None, workers: int | None = None
) -> Clips:
    """Return the clips of a source; see `load`."""
    folder = cache / "corpus" / f"{source.name}-{source.split}-{fingerprint(source)}-{LAYOUT}"
    if not folder.exists():
        # After waiting for another process, its result exists.
        with exclusive_lock(_beside(folder, "lock"), waits=True):
            if not folder.exists():
                _decode_all(source, folder, advance, workers or usable_cores())
    return open_folder(folder)


def open_folder(folder: Path) -> Clips:
    """Return the clips that were decoded into a folder."""
    with (folder / "clips.jsonl").open(encoding="utf-8") as lines, _without_collection():
        clips = [_clip(line) for line in lines]
    # As plain arrays: every slice of a `memmap` costs more than the slice's sum.
    samples = np.asarray(np.memmap(folder / "samples.int16", dtype=np.int16, mode="r"))
    energies = np.asarray(np.memmap(folder / "energies.float32", dtype=np.float32, mode="r"))
    return Clips(samples, clips, energies)


def decode(row: Recording | Fault) -> tuple[Recording | None, Samples, list[Fault]]:
    """Decode a recording; return it with its samples and faults, or None in its place if it is unusable."""
    if isinstance(row, Fault):
        return None, np.zeros(0, np.int16), [row]
    faults: list[Fault] = []
    try:
        blocks = list(row.audio.blocks(lambda detail: faults.append(Fault(row.place, "damaged", detail))))
        samples = np.concatenate(blocks) if blocks else np.zeros(0, np.int16)
        if not len(samples):
            raise Unusable("undecodable", "no samples")
    except Unusable as error:
        return None, np.zeros(0, np.int16), [Fault(row.place, error.reason, error.detail)]
    except OSError as error:
        return None, np.zeros(0, np.int16), [Fault(row.place, "unreadable", str(error))]
    return row, samples, faults


def write_faults(faults: Iterable[Fault], path: Path) -> None:
    """Write faults as CSV: place, reason, detail."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["place", "reason", "detail"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(fault) for fault in faults)


def _decode_all(
    source: Iterable[Recording | Fault], folder: Path, advance: Callable[[str], None], workers: int
) -> None:
    # Renamed when complete; the next call removes what an interrupted one has left.
    partial = _beside(folder, "partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    faults: list[Fault] = []
    clips = start = frames = 0
    with (
        (partial / "samples.int16").open("wb") as samples_file,
        (partial / "energies.float32").open("wb") as energies_file,
        (partial / "clips.jsonl").open("w", encoding="utf-8") as clips_file,
    ):
        for recording, samples, found in in_order(decode, source, workers):
            faults += found
            if recording is None:
                continue
            samples_file.write(samples.tobytes())
            samples_file.write(bytes(samples.itemsize * (-len(samples) % ENERGY_HOP)))
            energies_file.write(energies_of(samples).tobytes())
            clips_file.write(json.dumps(_describe(recording, start, len(samples))) + "\n")
            start += -(-len(samples) // ENERGY_HOP) * ENERGY_HOP  # the next clip begins with a step of the energies
            frames += len(samples)
            clips += 1
            if clips % REPORT == 0:
                advance(f"{clips} clips, {frames / RATE / 3600:.2f} h")
    if faults:
        write_faults(faults, partial / "faults.csv")
    if not clips:
        raise CorpusInvalid(f"nothing of {folder.name} can be used: {summarise(faults)}")
    if faults:
        log.warning("%s: %s; listed in %s", folder.name, summarise(faults), folder / "faults.csv")
    advance(f"{clips} clips, {frames / RATE / 3600:.2f} h")
    partial.rename(folder)


def _clip(line: str) -> Clip:
    record = json.loads(line)
    return Clip(**record | {"mids": tuple(map(sys.intern, record["mids"])), "kind": sys.intern(record["kind"])})


@contextmanager
def _without_collection() -> Iterator[None]:
    """Let the garbage collector rest: it would go through all clips again and again while they are read."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f"{folder.name}.{ending}")


def _describe(recording: Recording, start: int, frames: int) -> dict:
    described = {
        "key": recording.key,
        "start": start,
        "frames": frames,
        "mids": recording.mids,
        "group": recording.group,
        "kind": recording.kind,
        "source": {name: recording.source[name] for name in _SOURCE if name in recording.source},
    }
    song = recording.source.get("song")
    return described | {"song": str(song)} if song else described
