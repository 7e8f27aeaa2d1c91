"""Reconciliation of the store with Redis: stored objects that no record owns are found, and deleted after a grace time.

While Redis keeps its content there are none, since the ledger of orphans knows every write. After a loss of Redis the
store is full of them. Reconciliation only enters what it finds into the ledger, due after `orphan_retention`; deletion
is left to the removal of what is due, as for all orphans.

An upload or an execution that is writing is in the ledger before its first byte, and leaves it in the transaction that
makes a record its owner. Record and ledger are looked at in one step, after the object was listed, so that nothing that
is being written, or is owned, is ever taken for an orphan.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from redis import Redis

from app.jobs.kinds import KINDS, kind_of_id
from app.jobs.large_fields import record_folder
from app.jobs.listing import record_key
from app.records import ids
from app.records.audio import audio_key, incoming_key, pending_key, store_key, waveform_key
from app.records.orphans import LEDGER_KEY
from app.redis_client import server_clock
from app.storage import Storage, StoredEntry

log = logging.getLogger("earmark.housekeeping")

FOLDERS = ("audio", "outlines", "incoming", "records", *(kind.folder for kind in KINDS.values()))  # of the store

_FIND = """#!lua flags=allow-oom
local orphans = {}
for number = 2, #KEYS do
  local prefix, parent = ARGV[2 * number - 2], ARGV[2 * number - 1]
  if redis.call('EXISTS', KEYS[number]) == 0 and not redis.call('ZSCORE', KEYS[1], prefix)
      and not redis.call('ZSCORE', KEYS[1], parent) then
    if ARGV[1] ~= '' then redis.call('ZADD', KEYS[1], 'GT', ARGV[1], prefix) end
    orphans[#orphans + 1] = prefix
  end
end
return orphans
"""


class Claim(NamedTuple):
    """Who may own an object: the record with this Redis key, or a writer that has put a prefix or its parent into the
    ledger. Orphaned are all objects with the prefix."""

    prefix: str
    parent: str
    record: str


def claim_on(key: str) -> Claim | None:
    """Return who may own the object with this key; None: it is not one of ours, and left alone."""
    folder, some_id, *rest = *key.split("/"), ""
    rest = rest[:-1]
    if folder in ("audio", "outlines", "incoming") and ids.is_id(some_id, ids.AUDIO):
        if folder == "incoming":
            return Claim(incoming_key(some_id), incoming_key(some_id), pending_key(some_id))
        prefix = store_key(some_id) if folder == "audio" else waveform_key(some_id)
        return None if rest else Claim(prefix, prefix, audio_key(some_id))
    kind = kind_of_id(some_id)
    if kind is None or not rest:
        return None
    if folder == "records":
        return Claim(key, record_folder(some_id), record_key(some_id))
    if folder == kind.folder:
        return Claim(f"{folder}/{some_id}/{rest[0]}", f"{folder}/{some_id}", record_key(some_id))
    return None


@dataclass
class Orphan:
    """Objects with one prefix that no record owns: their number and bytes."""

    prefix: str
    objects: int
    bytes: int


class Reconciliation:
    """Finds orphans in listings of the store. `grace`: seconds after which they are deleted; None: never, only told."""

    def __init__(self, redis: Redis, grace: float | None) -> None:
        self._clock = server_clock(redis)
        self._find = redis.register_script(_FIND)
        self._grace = grace

    def find(self, entries: Iterable[StoredEntry]) -> list[Orphan]:
        """Return the orphans among stored objects, and enter them into the ledger."""
        claims: dict[str, Claim] = {}
        objects: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for entry in entries:
            if (claim := claim_on(entry.key)) is not None:
                claims[claim.prefix] = claim
                objects[claim.prefix] += 1
                sizes[claim.prefix] += entry.bytes
        if not claims:
            return []
        due = "" if self._grace is None else self._clock.now() + self._grace
        keys = [LEDGER_KEY, *(claim.record for claim in claims.values())]
        arguments = [due, *(name for claim in claims.values() for name in (claim.prefix, claim.parent))]
        found: Any = self._find(keys=keys, args=arguments)
        prefixes = [prefix.decode() for prefix in found]
        return [Orphan(prefix, objects[prefix], sizes[prefix]) for prefix in prefixes]


def pages(storage: Storage) -> Iterator[list[StoredEntry]]:
    """Return all that the store holds of ours, page by page. Raises `StoreUnavailable`."""
    for folder in FOLDERS:
        yield from storage.pages(folder)


class SlowSweep:
    """Reconciles a store page by page, one at each call, so that nothing waits for it."""

    def __init__(self, redis: Redis, storage: Storage, grace: float) -> None:
        self._reconciliation = Reconciliation(redis, grace)
        self._grace = grace
        self._pages = pages(storage)
        self._found = 0

    def step(self) -> bool:
        """Reconcile one page; return whether there may be more."""
        page = next(self._pages, None)
        if page is not None:
            for orphan in self._reconciliation.find(page):
                self._found += 1
                log.info("%s: no record owns its %d objects, %d bytes", orphan.prefix, orphan.objects, orphan.bytes)
            return True
        if self._found:
            log.warning("%d orphans were found in the store; deleted in %g s", self._found, self._grace)
        return False
