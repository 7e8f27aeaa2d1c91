"""Records as the front end writes them, for tests without HTTP."""

import time
from typing import Any

from app.jobs.kinds import SEPARATION, Kind
from app.jobs.lifecycle import Job, TargetState
from app.records.audio import Audio
from app.records.ids import new_id


def new_audio(**fields: Any) -> Audio:
    """Return an upload of a second of mono sound, whose bytes are not stored."""
    now = time.time()
    defaults = {
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
    return Audio.model_validate(defaults | fields)


def new_job(*uploads: str, kind: Kind = SEPARATION) -> Job:
    """Return a job with these uploads that is not created in Redis yet."""
    time.sleep(0.001)  # ids of one millisecond sort at random, and so do jobs with equal start tags
    now = time.time()
    return Job(
        id=new_id(kind.prefix),
        kind=kind.name,
        model="base",
        request={},
        audio_ids=list(uploads),
        targets=[TargetState(name="dog")],
        created_at=now,
        # By the server's clock, whose estimate may lag behind this one by a round trip, it lies in the past too.
        changed_at=now - 1,
        expires_at=now + 60,
    )
