"""Records of uploads in Redis, which workers read too; the bytes are in the store under `audio/ID`."""

import math
import time
from typing import Any

from pydantic import BaseModel, ConfigDict
from redis import Redis
from redis.exceptions import WatchError
from redis.lock import Lock

from app.errors import AudioInUse, NotFound, QuotaExceeded
from app.records.orphans import OrphanLedger
from app.settings import Settings

SCHEMA = 1
_EXPIRY = "earmark:audio:expiry"
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
    """Return the Redis key of the record of a pending presigned upload."""
    return f"earmark:audio:{audio_id}:awaited"


def _pending_ids_key(owner: str) -> str:
    return f"earmark:awaited:{owner}"  # ids by expiry time


def store_key(audio_id: str) -> str:
    """Return the key of the upload's bytes in the store."""
    return f"audio/{audio_id}"


def waveform_key(audio_id: str) -> str:
    """Return the key of the upload's waveform in the store, which is written on the first request for its peaks."""
    return f"outlines/{audio_id}"


def incoming_key(audio_id: str) -> str:
    """Return the key to which a client writes a presigned upload, as long as its signed address is valid."""
    return f"incoming/{audio_id}"


class PendingUpload(BaseModel):
    """A presigned upload that is not completed yet, as its client announced it."""

    id: str
    owner: str = ""
    filename: str | None
    bytes: int
    created_at: float
    expires_at: float  # it may be completed until then


class AudioRepository:
    """All uploads of one deployment."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._orphans = OrphanLedger(redis)

    def register_write(self, audio_id: str) -> None:
        """Register bytes before they are written; orphans unless `create` follows within the upload's time."""
        self._orphans.add(None, store_key(audio_id), time.time() + 2 * self._settings.upload_timeout)

    def create(self, audio: Audio) -> None:
        """Write the record of a stored upload, which owns its bytes from then on."""
        with self._redis.pipeline() as pipe:
            pipe.set(audio_key(audio.id), audio.model_dump_json())
            pipe.zadd(_EXPIRY, {audio.id: audio.expires_at})
            self._orphans.remove(pipe, store_key(audio.id))
            pipe.execute()

    def unregister_write(self, audio_id: str) -> None:
        """Unregister the bytes and the waveform of an upload that failed or was deleted, after their deletion."""
        self._orphans.remove(None, store_key(audio_id))
        self._orphans.remove(None, waveform_key(audio_id))

    def register_waveform_write(self, audio: Audio) -> None:
        """Register a waveform before it is written; deleted when the upload expires, but not while it is written."""
        self._orphans.add(None, waveform_key(audio.id), max(audio.expires_at, time.time() + _STORING_SECONDS))

    def create_pending(self, pending: PendingUpload, address_expires_at: float) -> None:
        """Register a presigned upload; its bytes are deleted as orphans when its address is valid no more.

        Raises `QuotaExceeded` while the owner has as many pending uploads as it may; concurrent calls may exceed that
        a little.
        """
        ids_key = _pending_ids_key(pending.owner)
        with self._redis.pipeline() as pipe:
            pipe.zremrangebyscore(ids_key, 0, pending.created_at)
            pipe.zcard(ids_key)
            pipe.zrange(ids_key, 0, 0, withscores=True)
            _, count, first = pipe.execute()
        if count >= self._settings.awaited_uploads:
            detail = f"{count} uploads are pending already: complete them, or wait."
            raise QuotaExceeded(detail, math.ceil(first[0][1] - pending.created_at))
        with self._redis.pipeline() as pipe:
            pipe.set(pending_key(pending.id), pending.model_dump_json(), exat=math.ceil(pending.expires_at))
            pipe.zadd(ids_key, {pending.id: pending.expires_at})
            pipe.expireat(ids_key, math.ceil(pending.expires_at))
            due = max(pending.expires_at, address_expires_at + self._settings.upload_timeout)
            self._orphans.add(pipe, incoming_key(pending.id), due + self._settings.upload_timeout)
            pipe.execute()

    def get_pending(self, audio_id: str) -> PendingUpload:
        """Return a pending upload. Raises `NotFound`."""
        document = self._redis.get(pending_key(audio_id))
        if document is None:
            raise NotFound("There is no such audio.")
        return PendingUpload.model_validate_json(document)

    def delete_pending(self, audio_id: str, owner: str) -> None:
        """Delete the record of a pending upload: it is completed, or was refused."""
        with self._redis.pipeline() as pipe:
            pipe.delete(pending_key(audio_id))
            pipe.zrem(_pending_ids_key(owner), audio_id)
            pipe.execute()

    def completion_lock(self, audio_id: str, seconds: float) -> Lock:
        """Return a lock for completing an upload once at a time; it expires after so many seconds."""
        return self._redis.lock(f"{pending_key(audio_id)}:lock", timeout=seconds, blocking=False, thread_local=False)

    def get(self, audio_id: str) -> Audio:
        """Return the record. Raises `NotFound`."""
        document = self._redis.get(audio_key(audio_id))
        if document is None:
            raise NotFound("There is no such audio.")
        return Audio.model_validate_json(document)

    def delete(self, audio_id: str) -> None:
        """Delete the record; the caller then deletes the bytes and calls `unregister_write`.

        Raises `NotFound`, and `AudioInUse` while a waiting or running job uses it.
        """
        with self._redis.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(audio_key(audio_id), users_key(audio_id))
                    if not pipe.exists(audio_key(audio_id)):
                        raise NotFound("There is no such audio.")
                    if pipe.scard(users_key(audio_id)):
                        raise AudioInUse("A waiting or running job uses this audio.")
                    pipe.multi()
                    pipe.delete(audio_key(audio_id))
                    pipe.zrem(_EXPIRY, audio_id)
                    self._orphans.add(pipe, store_key(audio_id), time.time())
                    pipe.execute()
                    return
                except WatchError:
                    continue

    def postpone_expiry(self, audio_id: str, seconds: float) -> None:
        """Let an expired upload be due again after some seconds."""
        self._redis.zadd(_EXPIRY, {audio_id: time.time() + seconds}, xx=True)

    def expired_ids(self, limit: int) -> list[str]:
        """Return ids of expired uploads, the oldest first; some may still be in use."""
        members: Any = self._redis.zrange(_EXPIRY, 0, time.time(), byscore=True, offset=0, num=limit)
        return [member.decode() for member in members]
