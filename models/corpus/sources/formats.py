"""Recognition of a corpus's format, and the fingerprint that names its cache."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from models.corpus.sources import csv_tables, musdb18, packed_hdf5, shards
from models.corpus.sources.csv_tables import Tables
from models.corpus.sources.musdb18 import Musdb
from models.corpus.sources.packed_hdf5 import Packed
from models.corpus.sources.recordings import Source
from models.corpus.sources.shards import Shards
from models.errors import CorpusInvalid


class Files(Protocol):
    """Files that a fingerprint is taken of: a `Source`, or others that a split is made of."""

    @property
    def root(self) -> Path: ...

    @property
    def split(self) -> str: ...

    def files(self) -> Iterator[Path]: ...


class Kind(NamedTuple):
    """A kind of corpus. open: a path and a split of it -> its recordings. splits: of a path. is_at: whether a folder is
    one, or what is not empty then. suffixes: of files that are one by themselves."""

    open: Callable[[Path, str], Source]
    splits: Callable[[Path], tuple[str, ...]]
    is_at: Callable[[Path], object]
    suffixes: tuple[str, ...] = ()


# In the order in which a folder is taken for one.
KINDS = (
    Kind(Shards, shards.splits, shards.splits),
    Kind(Musdb, musdb18.splits, musdb18.is_musdb18),
    Kind(Tables, csv_tables.splits, csv_tables.table_files, (".csv",)),
    Kind(Packed, packed_hdf5.splits, packed_hdf5.hdf5_files, packed_hdf5.SUFFIXES),
)


def open_source(path: Path, split: str) -> Source:
    """Open one split of the corpus at `path`.

    A folder's format is, by its files and in this order: WebDataset shards (*.tar), MUSDB18 or MUSDB18-HQ, CSV files
    with their audio, packed HDF5 files. `path` may also be a CSV or HDF5 file.

    Raises CorpusInvalid if there is no known format or no such split, FileNotFoundError if there is no such path.
    """
    known = splits_of(path)
    if split not in known:
        named = f"a file's name is its split ({split}.csv, {split}-000.tar), or a CSV has a column split"
        raise CorpusInvalid(f"{path} has no split {split!r}; it has {', '.join(known)}: {named}")
    return _kind(path).open(path, split)


def splits_of(path: Path) -> tuple[str, ...]:
    """Return the splits of the corpus at `path`. Raises as `open_source`."""
    return _kind(path).splits(path)


def fingerprint(source: Files) -> str:
    """Return sixteen hexadecimal digits that depend on the names, sizes and modification times of the source's files
    and on its split, but not on its location."""
    digest = hashlib.blake2s(source.split.encode(), digest_size=8)
    root = source.root if source.root.is_dir() else source.root.parent
    for path in source.files():
        status = path.stat()
        digest.update(f"\n{os.path.relpath(path, root)} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _kind(path: Path) -> Kind:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    is_file = path.is_file()
    for kind in KINDS:
        if path.suffix.lower() in kind.suffixes if is_file else kind.is_at(path):
            return kind
    if is_file:
        raise CorpusInvalid(f"{path} is neither a CSV nor an HDF5 file; give its folder")
    raise CorpusInvalid(
        f"{path} holds no corpus: no WebDataset shards (SPLIT-000.tar), no MUSDB18, no CSV with AudioSet's segments or "
        "with columns path and labels, no packed HDF5"
    )
