"""Recordings of labelled audio, faults of invalid ones, and the interface of sources."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.corpus.relations import ancestors
from models.errors import LabelUnknown, ModelsError
from models.labels import find

Samples = NDArray[np.int16]

_SPEECH, _MUSIC, _INSTRUMENT = "/m/09x0r", "/m/04rlf", "/m/04szw"


@dataclass(frozen=True)
class Fault:
    """A problem in a corpus: its place (file and line, shard and member), reason and detail.

    Faults of one `reason` are counted together.
    """

    place: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


class Unusable(ModelsError):
    """A row or a recording cannot be used; becomes a Fault where its place is known."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail


class Audio(Protocol):
    """Reference to a recording's samples; small and picklable, so that another process can read them."""

    def blocks(self, damaged: Callable[[str], None]) -> Iterator[Samples]:
        """Yield mono int16 at 32 kHz, block by block. `damaged` is called with a description of parts left out.

        Raises Unusable, MediaError or OSError if nothing can be read.
        """
        ...


@dataclass(frozen=True)
class Recording:
    """One labelled recording, not yet read.

    key: unique in its split, of letters, digits, `-` and `_`; mids: the classes of its labels, at least one; group:
    shared by recordings that may be the same sound; kind: effect, speech, music or instrument; source: package, path
    and licence if known; place: for faults.
    """

    key: str
    mids: tuple[str, ...]
    group: str
    kind: str
    source: dict[str, Any]
    audio: Audio
    place: str


class Source(Protocol):
    """One split of a corpus. Iterating, which can be repeated, yields each row in a fixed order as a recording or a
    fault, and reads no audio."""

    @property
    def root(self) -> Path:
        """The corpus's folder, or its single file."""
        ...

    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str: ...

    def files(self) -> Iterator[Path]:
        """Yield every file of the split, on which the cache's name depends."""
        ...

    def __iter__(self) -> Iterator[Recording | Fault]: ...


def key_of(text: str) -> str:
    """Return a key for any text: other characters become `_`, and a hash then keeps keys distinct."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", text)
    return safe if safe == text else f"{safe}-{hashlib.blake2s(text.encode(), digest_size=4).hexdigest()}"


def mids_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the mids of classes given by mid, name or slug, each once, in order. Raises Unusable if there is none, or
    an unknown one."""
    mids: dict[str, None] = {}
    for text in texts:
        found = _find_mid(text)
        if isinstance(found, LabelUnknown):
            raise Unusable("unknown label", str(found)) from found
        mids[found] = None
    if not mids:
        raise Unusable("no label")
    return tuple(mids)


@lru_cache(4096)
def _find_mid(text: str) -> str | LabelUnknown:
    """Return a class's mid, or the error, which is cached too since similar names take some time to find."""
    try:
        return find(text).mid
    except LabelUnknown as error:
        return error


def kind_of(mids: tuple[str, ...]) -> str:
    """Return the kind of a recording by its first class's place in the ontology."""
    lineage = {mids[0]} | ancestors(mids[0])
    for mid, kind in ((_SPEECH, "speech"), (_INSTRUMENT, "instrument"), (_MUSIC, "music")):
        if mid in lineage:
            return kind
    return "effect"


def unique(rows: Iterable[Recording | Fault]) -> Iterator[Recording | Fault]:
    """Yield the same rows, with a fault in place of a recording with a duplicate key."""
    seen: set[str] = set()
    for row in rows:
        if isinstance(row, Recording):
            if row.key in seen:
                yield Fault(row.place, "duplicate key", row.key)
                continue
            seen.add(row.key)
        yield row


def by_reason(faults: Iterable[Fault]) -> list[tuple[str, int]]:
    """Return the number of faults of each reason, most frequent first."""
    return Counter(fault.reason for fault in faults).most_common()


def summarise(faults: Iterable[Fault]) -> str:
    """Describe the faults by reason, or return "no faults"."""
    return ", ".join(f"{count} × {reason}" for reason, count in by_reason(faults)) or "no faults"
