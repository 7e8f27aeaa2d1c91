"""Services hide the records of one caller from others."""

from dataclasses import replace

import pytest

from app.audio import service as audio
from app.dependencies import Dependencies
from app.errors import EarmarkError, NotFound
from app.keys.callers import Caller
from app.separations import service as separations
from app.separations.schemas import SeparationCreate
from tests.app.conftest import Service


def as_key(service: Service, key_id: str) -> Dependencies:
    """Dependencies as a request with this key gets them."""
    return replace(service.deps, caller=Caller(key_id))


def test_a_list_has_only_the_callers_jobs(folder_service: Service) -> None:
    mine, yours = as_key(folder_service, "mine"), as_key(folder_service, "yours")
    job_ids: dict[str, list[str]] = {"mine": [], "yours": []}
    for deps in (mine, yours, mine):
        upload = folder_service.recording()
        owned = deps.audio.get(upload["id"]).model_copy(update={"owner": deps.caller.key_id})
        deps.audio.create(owned)
        request = {"mixture": {"audio_id": upload["id"]}, "targets": [{"label": "Dog"}]}
        job = separations.create(deps, SeparationCreate.model_validate(request)).job
        assert job.owner == deps.caller.key_id
        job_ids[deps.caller.key_id].append(job.id)
    for deps in (mine, yours):
        jobs, _ = separations.SEPARATIONS.page(deps, None, 10, None)
        assert sorted(job.id for job in jobs) == sorted(job_ids[deps.caller.key_id])
    assert folder_service.client.get("/v1/separations").json()["data"] == []


def test_an_id_of_another_caller_is_answered_like_an_unknown_one(folder_service: Service) -> None:
    mine, yours = as_key(folder_service, "mine"), as_key(folder_service, "yours")
    upload = folder_service.recording()["id"]
    mine.audio.create(mine.audio.get(upload).model_copy(update={"owner": "mine"}))
    request = SeparationCreate.model_validate({"mixture": {"audio_id": upload}, "targets": [{"label": "Dog"}]})
    job = separations.create(mine, request).job.id
    for deps in (yours, folder_service.deps):
        for find, known, unknown in (
            (audio.find, upload, upload[:-1] + ("0" if upload[-1] != "0" else "1")),
            (separations.SEPARATIONS.get, job, job[:-1] + ("0" if job[-1] != "0" else "1")),
        ):
            errors: list[EarmarkError] = []
            for record_id in (known, unknown):
                with pytest.raises(NotFound) as refused:
                    find(deps, record_id)
                errors.append(refused.value)
            assert (errors[0].detail, errors[0].errors) == (errors[1].detail, errors[1].errors)
        with pytest.raises(NotFound):
            separations.create(deps, request)
        for delete in (
            lambda deps=deps: separations.SEPARATIONS.delete(deps, job),
            lambda deps=deps: audio.delete(deps, upload),
        ):
            with pytest.raises(NotFound):
                delete()
    assert audio.find(mine, upload).id == upload and separations.SEPARATIONS.get(mine, job).id == job
