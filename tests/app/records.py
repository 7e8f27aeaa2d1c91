"""Records as the front end would write them, for tests that do not go through HTTP."""

import time
from typing import Any

from app.jobs.kinds import SEPARATION, Kind
from app.jobs.lifecycle import Job, TargetState
from app.records.audio import Audio
from app.records.ids import new_id


def new_audio(**fields: Any) -> Audio:
    """An upload of a second of mono sound; its bytes are the caller's to store."""
    now = time.time()
    usual = {
        "id": new_id("aud"),
        "filename": None,
        "bytes": 1,
        "sha256": "0",
        "content_type": "audio/wav",
        "container": "wav",
        "codec": "pcm_s16le",
        "duration": 1.0,
        "sample_rate": 16000,
        "channels": 1,
        "created_at": now,
        "expires_at": now + 60,
    }
    return Audio.model_validate(usual | fields)


def new_job(*uploads: str, kind: Kind = SEPARATION) -> Job:
    """A job with these uploads that nobody has queued yet."""
    time.sleep(0.001)  # ids of the same millisecond sort by chance, and so do jobs with the same turn
    now = time.time()
    return Job(
        id=new_id(kind.prefix),
        kind=kind.name,
        model="base",
        request={},
        audio_ids=list(uploads),
        targets=[TargetState(name="dog")],
        created_at=now,
        changed_at=now,
        expires_at=now + 60,
    )
