"""Uploads' records in Redis. Workers read them too; the bytes are in the store under `audio/ID`."""

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
_STORING_SECONDS = 600.0  # an outline that was begun so long ago is stored, or never will be


class Audio(BaseModel):
    """One upload: its bytes' size and digest, and what the probe found. Times are seconds since 1970."""

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
    created_at: float
    expires_at: float


def audio_key(audio_id: str) -> str:
    """The Redis key of an upload's record."""
    return f"earmark:audio:{audio_id}"


def users_key(audio_id: str) -> str:
    """The Redis key of the set of unfinished jobs that need the upload."""
    return f"earmark:audio:{audio_id}:jobs"


def pending_key(audio_id: str) -> str:
    """The Redis key of the record of an upload that its client brings to the store itself."""
    return f"earmark:audio:{audio_id}:awaited"


def _pending_ids_key(owner: str) -> str:
    return f"earmark:awaited:{owner}"  # ids, by when they are awaited no more


def store_key(audio_id: str) -> str:
    """Where the upload's bytes are in the store."""
    return f"audio/{audio_id}"


def waveform_key(audio_id: str) -> str:
    """Where the upload's outline is in the store, once somebody has asked for its peaks."""
    return f"outlines/{audio_id}"


def incoming_key(audio_id: str) -> str:
    """Where a client puts an upload's bytes itself; whoever holds the signed address may write there until it ends."""
    return f"incoming/{audio_id}"


class PendingUpload(BaseModel):
    """An upload that its client brings to the store itself, by what it was said to be."""

    id: str
    owner: str = ""
    filename: str | None
    bytes: int
    created_at: float
    expires_at: float  # until then it may be completed


class AudioRepository:
    """All uploads of one deployment."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._leftovers = OrphanLedger(redis)

    def register_write(self, audio_id: str) -> None:
        """Note that bytes are about to be written; they are swept unless `create` follows within the upload's time."""
        self._leftovers.add(None, store_key(audio_id), time.time() + 2 * self._settings.upload_timeout)

    def create(self, audio: Audio) -> None:
        """Make a stored upload known."""
        with self._redis.pipeline() as pipe:
            pipe.set(audio_key(audio.id), audio.model_dump_json())
            pipe.zadd(_EXPIRY, {audio.id: audio.expires_at})
            self._leftovers.remove(pipe, store_key(audio.id))
            pipe.execute()

    def unregister_write(self, audio_id: str) -> None:
        """The bytes of an upload that failed, or was deleted, are gone, and its outline's."""
        self._leftovers.remove(None, store_key(audio_id))
        self._leftovers.remove(None, waveform_key(audio_id))

    def register_waveform_write(self, audio: Audio) -> None:
        """Note that an outline is about to be written; it is swept when the upload's own time is over, and not while
        it is written."""
        self._leftovers.add(None, waveform_key(audio.id), max(audio.expires_at, time.time() + _STORING_SECONDS))

    def create_pending(self, awaited: PendingUpload, address_expires_at: float) -> None:
        """Note that a client is about to bring an upload; swept when nobody can write there any more.

        Raises `QuotaExceeded` while so many are awaited of this owner that there may be no more. Many at once may go a
        little beyond.
        """
        all_of_owner = _pending_ids_key(awaited.owner)
        with self._redis.pipeline() as pipe:
            pipe.zremrangebyscore(all_of_owner, 0, awaited.created_at)
            pipe.zcard(all_of_owner)
            pipe.zrange(all_of_owner, 0, 0, withscores=True)
            _, count, first = pipe.execute()
        if count >= self._settings.awaited_uploads:
            detail = f"{count} uploads are awaited already: complete them, or wait."
            raise QuotaExceeded(detail, math.ceil(first[0][1] - awaited.created_at))
        with self._redis.pipeline() as pipe:
            pipe.set(pending_key(awaited.id), awaited.model_dump_json(), exat=math.ceil(awaited.expires_at))
            pipe.zadd(all_of_owner, {awaited.id: awaited.expires_at})
            pipe.expireat(all_of_owner, math.ceil(awaited.expires_at))
            due = max(awaited.expires_at, address_expires_at + self._settings.upload_timeout)
            self._leftovers.add(pipe, incoming_key(awaited.id), due + self._settings.upload_timeout)
            pipe.execute()

    def get_pending(self, audio_id: str) -> PendingUpload:
        """The upload that is awaited; raises `NotFound`."""
        document = self._redis.get(pending_key(audio_id))
        if document is None:
            raise NotFound("There is no such audio.")
        return PendingUpload.model_validate_json(document)

    def delete_pending(self, audio_id: str, owner: str) -> None:
        """The upload is not awaited any more: it is known, or was refused."""
        with self._redis.pipeline() as pipe:
            pipe.delete(pending_key(audio_id))
            pipe.zrem(_pending_ids_key(owner), audio_id)
            pipe.execute()

    def completion_lock(self, audio_id: str, seconds: float) -> Lock:
        """A lock for completing an upload once at a time; it ends by itself after so many seconds."""
        return self._redis.lock(f"{pending_key(audio_id)}:lock", timeout=seconds, blocking=False, thread_local=False)

    def get(self, audio_id: str) -> Audio:
        """The record; raises `NotFound`."""
        document = self._redis.get(audio_key(audio_id))
        if document is None:
            raise NotFound("There is no such audio.")
        return Audio.model_validate_json(document)

    def delete(self, audio_id: str) -> None:
        """Take the record away; the caller then deletes the bytes and calls `abandon`.

        Raises `NotFound`, and `AudioInUse` while a job that waits or runs needs it.
        """
        with self._redis.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(audio_key(audio_id), users_key(audio_id))
                    if not pipe.exists(audio_key(audio_id)):
                        raise NotFound("There is no such audio.")
                    if pipe.scard(users_key(audio_id)):
                        raise AudioInUse("A job that waits or runs needs this audio.")
                    pipe.multi()
                    pipe.delete(audio_key(audio_id))
                    pipe.zrem(_EXPIRY, audio_id)
                    self._leftovers.add(pipe, store_key(audio_id), time.time())
                    pipe.execute()
                    return
                except WatchError:
                    continue

    def postpone_expiry(self, audio_id: str, seconds: float) -> None:
        """Look at an expired upload again later."""
        self._redis.zadd(_EXPIRY, {audio_id: time.time() + seconds}, xx=True)

    def expired_ids(self, limit: int) -> list[str]:
        """Ids of uploads whose time is over, the oldest first; some may still be in use."""
        found: Any = self._redis.zrange(_EXPIRY, 0, time.time(), byscore=True, offset=0, num=limit)
        return [member.decode() for member in found]
