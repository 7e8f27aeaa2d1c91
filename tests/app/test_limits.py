"""`GET /v1/limits` tells what a key keeps and may still keep; refusals are tested with what they limit."""

import time

from app.records.audio import PendingUpload
from app.records.ids import new_id
from tests.app.audio.test_resumable_uploads import create_upload
from tests.app.conftest import Service
from tests.app.records import new_audio

KEPT = ("kept_jobs", "kept_uploads", "awaited_uploads")


def used(service: Service) -> dict[str, int]:
    """Return how much of each limit is used, by the limits and what is left of them."""
    told = service.client.get("/v1/limits").json()
    settings = service.deps.settings
    assert [told["limits"][name] for name in KEPT] == [getattr(settings, name) for name in KEPT]
    return {name: told["limits"][name] - told["left"][name] for name in KEPT}


def test_jobs_and_uploads_of_a_key_are_counted_until_they_are_deleted(keyed_service: Service) -> None:
    service, other = keyed_service.with_key(), keyed_service.with_key()
    assert used(service) == {"kept_jobs": 0, "kept_uploads": 0, "awaited_uploads": 0}
    audio_id = service.recording()["id"]
    job = service.separate(mixture={"audio_id": audio_id})
    query = {"name": "mine", "examples": [{"audio_id": audio_id}]}
    assert service.client.post("/v1/queries", json=query).status_code == 202
    create_upload(service)
    assert used(service) == {"kept_jobs": 2, "kept_uploads": 1, "awaited_uploads": 1}
    assert used(other) == {"kept_jobs": 0, "kept_uploads": 0, "awaited_uploads": 0}
    service.finish(job["id"])
    assert used(service)["kept_jobs"] == 2, "a job is kept after its end"
    assert service.client.delete(job["url"].partition("?")[0]).status_code == 204
    assert used(service)["kept_jobs"] == 1


def test_what_has_expired_is_not_counted(keyed_service: Service) -> None:
    service, past = keyed_service.with_key(), time.time() - 60
    owner = service.deps.caller.key_id
    service.deps.audio.create(new_audio(owner=owner, expires_at=past + 3600))
    service.deps.audio.create(new_audio(owner=owner, expires_at=past))
    for expires_at in (past, past + 3600):
        pending = PendingUpload(
            id=new_id("aud"), owner=owner, filename=None, bytes=9, created_at=past, expires_at=expires_at
        )
        service.deps.audio.create_pending(pending, past)
    assert used(service) == {"kept_jobs": 0, "kept_uploads": 1, "awaited_uploads": 1}


def test_without_keys_only_pending_uploads_are_limited(folder_service: Service) -> None:
    folder_service.recording()
    folder_service.separate()
    create_upload(folder_service)
    told = folder_service.client.get("/v1/limits").json()
    allowed = folder_service.deps.settings.awaited_uploads
    assert [told["limits"][name] for name in KEPT] == [None, None, allowed]
    assert [told["left"][name] for name in KEPT] == [None, None, allowed - 1]
