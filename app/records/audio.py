"""Records of uploads in Redis, which workers read too; the bytes are in the store under `audio/ID`."""

import math
from typing import Any

from pydantic import BaseModel, ConfigDict
from redis import Redis
from redis.client import Pipeline
from redis.lock import Lock

from app.errors import AudioInUse, NotFound, OffsetMismatch, QuotaExceeded, RecordUnreadable
from app.records.orphans import LEDGER_KEY, OrphanLedger, postpone
from app.records.quarantine import Model, Quarantine, parse_record
from app.records.shared import OPEN_JOBS_KEY
from app.records.usage import Usage
from app.redis_client import server_clock
from app.settings import Settings

SCHEMA = 1
AUDIO_EXPIRY_KEY = "earmark:audio:expiry"
# A user counts while its job is unfinished: the record of one that was deleted may not have told which uploads it used.
_DELETE = """#!lua flags=allow-oom
local record, users, open_jobs, expiry, ledger, ids = unpack(KEYS)
for _, job in ipairs(redis.call('SMEMBERS', users)) do
  if redis.call('SISMEMBER', open_jobs, job) == 1 then return 'in use' end
end
local deleted = redis.call('DEL', record)
redis.call('DEL', users)
redis.call('ZREM', ids, ARGV[1])
-- An upload that is to expire has bytes, though Redis may have lost its record.
if redis.call('ZREM', expiry, ARGV[1]) == 1 or deleted == 1 then
  redis.call('ZADD', ledger, 'GT', ARGV[3], ARGV[2])
end
return deleted == 1 and 'deleted' or 'missing'
"""
_ADVANCE = """
local document = redis.call('GET', KEYS[1])
if not document then return 'missing' end
if document == ARGV[2] then return 'advanced' end -- by this call, the reply to which was lost before
if cjson.decode(document).offset ~= tonumber(ARGV[1]) then return 'moved' end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 'advanced'
"""
_STORING_SECONDS = 600.0  # after so long a waveform is stored, or its writer is dead


class TrackRecord(BaseModel):
    """An audio track of an upload, by its header: `track` is its number, from 1; hertz and channels may be 0."""

    track: int
    codec: str
    sample_rate: int
    channels: int
    language: str | None = None
    title: str | None = None
    readable: bool


class Audio(BaseModel):
    """One upload: size and digest of its bytes, and the result of the probe. Times are seconds since 1970."""

    model_config = ConfigDict(extra="ignore")

    schema_version: int = SCHEMA
    id: str
    owner: str = ""  # id of the API key that made it; empty where keys are switched off
    filename: str | None
    bytes: int
    sha256: str
    content_type: str
    container: str
    codec: str
    duration: float | None  # seconds; None where the headers do not say
    sample_rate: int  # hertz
    channels: int
    tracks: list[TrackRecord] = []  # none in records of earlier releases
    created_at: float
    expires_at: float


def audio_key(audio_id: str) -> str:
    """Return the Redis key of an upload's record."""
    return f"earmark:audio:{audio_id}"


def users_key(audio_id: str) -> str:
    """Return the Redis key of the set of unfinished jobs that use the upload."""
    return f"earmark:audio:{audio_id}:jobs"


def pending_key(audio_id: str) -> str:
    """Return the Redis key of the record of a pending upload."""
    return f"earmark:audio:{audio_id}:awaited"


def _pending_ids_key(owner: str) -> str:
    return f"earmark:awaited:{owner}"  # ids by expiry time


def _ids_key(owner: str) -> str:
    return f"earmark:audio:of:{owner}"  # ids by expiry time


def _keep_until(pipe: Pipeline, ids_key: str, expires_at: float) -> None:
    """Let an index expire no earlier than what was added to it; other entries may last longer."""
    for condition in ({"nx": True}, {"gt": True}):
        pipe.expireat(ids_key, math.ceil(expires_at), **condition)


def store_key(audio_id: str) -> str:
    """Return the key of the upload's bytes in the store."""
    return f"audio/{audio_id}"


def waveform_key(audio_id: str) -> str:
    """Return the key of the upload's waveform in the store, which is written on the first request for its peaks."""
    return f"outlines/{audio_id}"


def incoming_key(audio_id: str) -> str:
    """Return the key to which a client writes a presigned upload, as long as its signed address is valid; the pieces
    of a resumable upload are below it."""
    return f"incoming/{audio_id}"


def piece_key(audio_id: str, piece: str) -> str:
    """Return the key of a piece of a resumable upload."""
    return f"{incoming_key(audio_id)}/{piece}"


class PendingUpload(BaseModel):
    """A presigned or resumable upload that is not completed yet, as its client announced it.

    A resumable upload has an offset: its bytes up to there are in the store, in `pieces` of equal size but the last.
    """

    id: str
    owner: str = ""
    filename: str | None
    bytes: int
    created_at: float
    expires_at: float  # it may be completed until then
    offset: int | None = None
    pieces: list[str] = []
    metadata: str = ""  # `Upload-Metadata` as the client sent it


class AudioRepository:
    """All uploads of one deployment."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._clock = server_clock(redis)
        self._settings = settings
        self._orphans = OrphanLedger(redis)
        self._quarantine = Quarantine(redis)
        self._usage = Usage(redis, settings)
        self._delete = redis.register_script(_DELETE)
        self._advance = redis.register_script(_ADVANCE)

    def require_room(self, owner: str) -> None:
        """Raise `QuotaExceeded` if an API key keeps as many uploads as it may; concurrent ones may exceed that a
        little."""
        if owner:
            detail = "uploads are kept already: delete some, or wait until they expire."
            self._require_room(_ids_key(owner), self._settings.kept_uploads, detail)

    def kept_count(self, owner: str) -> int:
        """Return how many uploads an owner keeps."""
        return self._count(_ids_key(owner))

    def awaited_count(self, owner: str) -> int:
        """Return how many pending uploads an owner has."""
        return self._count(_pending_ids_key(owner))

    def register_write(self, audio_id: str) -> None:
        """Register bytes before they are written; orphans unless `create` follows within the upload's time."""
        self._orphans.add(None, store_key(audio_id), self._clock.now() + 2 * self._settings.upload_timeout)

    def create(self, audio: Audio) -> None:
        """Write the record of a stored upload, which owns its bytes from then on."""
        with self._redis.pipeline() as pipe:
            pipe.set(audio_key(audio.id), audio.model_dump_json())
            pipe.zadd(AUDIO_EXPIRY_KEY, {audio.id: audio.expires_at})
            pipe.zadd(_ids_key(audio.owner), {audio.id: audio.expires_at})
            _keep_until(pipe, _ids_key(audio.owner), audio.expires_at)
            self._orphans.remove(pipe, store_key(audio.id))
            self._usage.add_stored(pipe, audio.owner, audio.bytes)
            pipe.execute()

    def unregister_write(self, audio_id: str) -> None:
        """Unregister the bytes and the waveform of an upload that failed or was deleted, after their deletion."""
        self._orphans.remove(None, store_key(audio_id))
        self._orphans.remove(None, waveform_key(audio_id))

    def register_waveform_write(self, audio: Audio) -> None:
        """Register a waveform before it is written; deleted when the upload expires, but not while it is written."""
        self._orphans.add(None, waveform_key(audio.id), max(audio.expires_at, self._clock.now() + _STORING_SECONDS))

    def create_pending(self, pending: PendingUpload, address_expires_at: float) -> None:
        """Register a pending upload; its bytes are deleted as orphans when it and its address are valid no more.

        Raises `QuotaExceeded` while the owner has as many pending uploads as it may; concurrent calls may exceed that
        a little.
        """
        ids_key = _pending_ids_key(pending.owner)
        detail = "uploads are pending already: complete them, or wait."
        self._require_room(ids_key, self._settings.awaited_uploads, detail)
        with self._redis.pipeline() as pipe:
            pipe.set(pending_key(pending.id), pending.model_dump_json(), exat=math.ceil(pending.expires_at))
            pipe.zadd(ids_key, {pending.id: pending.expires_at})
            _keep_until(pipe, ids_key, pending.expires_at)
            due = max(pending.expires_at, address_expires_at + self._settings.upload_timeout)
            self._orphans.add(pipe, incoming_key(pending.id), due + self._settings.upload_timeout)
            pipe.execute()

    def get_pending(self, audio_id: str) -> PendingUpload:
        """Return a pending upload. Raises `NotFound` and `RecordUnreadable`."""
        return self._read(PendingUpload, pending_key(audio_id))

    def advance_pending(self, offset: int, advanced: PendingUpload) -> None:
        """Replace the record of a resumable upload by one with more pieces, if it still ends at `offset`.

        Raises `NotFound`, and `OffsetMismatch` if another request has advanced it.
        """
        outcome = self._advance(keys=[pending_key(advanced.id)], args=[offset, advanced.model_dump_json()])
        if outcome == b"missing":
            raise NotFound("There is no such audio.")
        if outcome == b"moved":
            raise OffsetMismatch("Another request has continued this upload.")

    def delete_pending(self, audio_id: str, owner: str) -> None:
        """Delete the record of a pending upload: it is completed, or was refused or given up."""
        with self._redis.pipeline() as pipe:
            pipe.delete(pending_key(audio_id))
            pipe.zrem(_pending_ids_key(owner), audio_id)
            pipe.execute()

    def completion_lock(self, audio_id: str, seconds: float) -> Lock:
        """Return a lock for completing an upload once at a time; it expires after so many seconds."""
        return self._redis.lock(f"{pending_key(audio_id)}:lock", timeout=seconds, blocking=False, thread_local=False)

    def get(self, audio_id: str) -> Audio:
        """Return the record. Raises `NotFound`, `RecordTooNew` and `RecordUnreadable`."""
        return self._read(Audio, audio_key(audio_id), SCHEMA)

    def owns(self, owner: str, audio_id: str) -> bool:
        """Whether an upload is an owner's, by the index of its uploads: its record may be unreadable."""
        return self._redis.zscore(_ids_key(owner), audio_id) is not None

    def delete(self, audio_id: str, owner: str = "") -> None:
        """Delete the record, readable or not; the caller then deletes the bytes and calls `unregister_write`.

        owner: in whose index it is; not needed for one that has expired.
        Raises `NotFound`, and `AudioInUse` while a waiting or running job uses it.
        """
        keys = [audio_key(audio_id), users_key(audio_id), OPEN_JOBS_KEY, AUDIO_EXPIRY_KEY, LEDGER_KEY, _ids_key(owner)]
        outcome = self._delete(keys=keys, args=[audio_id, store_key(audio_id), self._clock.now()])
        if outcome == b"missing":
            raise NotFound("There is no such audio.")
        if outcome == b"in use":
            raise AudioInUse("A waiting or running job uses this audio: wait until it has finished, or cancel it.")
        self._quarantine.remove(audio_key(audio_id))

    def postpone_expiry(self, audio_id: str, seconds: float) -> None:
        """Let an expired upload be due again after some seconds."""
        postpone(self._redis, AUDIO_EXPIRY_KEY, audio_id, seconds)

    def expired_ids(self, limit: int) -> list[str]:
        """Return ids of expired uploads, the oldest first; some may still be in use."""
        members: Any = self._redis.zrange(AUDIO_EXPIRY_KEY, 0, self._clock.now(), byscore=True, offset=0, num=limit)
        return [member.decode() for member in members]

    def _count(self, ids_key: str) -> int:
        count: Any = self._redis.zcount(ids_key, f"({self._clock.now()}", "+inf")
        return count

    def _require_room(self, ids_key: str, limit: int, detail: str) -> None:
        now = self._clock.now()
        with self._redis.pipeline() as pipe:
            pipe.zremrangebyscore(ids_key, 0, now)
            pipe.zcard(ids_key)
            pipe.zrange(ids_key, 0, 0, withscores=True)
            _, count, first = pipe.execute()
        if count >= limit:
            raise QuotaExceeded(f"{count} {detail}", math.ceil(first[0][1] - now))

    def _read(self, model: type[Model], key: str, schema: int | None = None) -> Model:
        try:
            document = self._quarantine.get(key)
            if document is None:
                raise NotFound("There is no such audio.")
            return parse_record(model, document, schema)
        except RecordUnreadable:
            self._quarantine.add(key)
            raise
