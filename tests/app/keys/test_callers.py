"""What one caller makes is not there for another one: on services, which routes ask for everything by id."""

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
    """The deps as a request with this key gets them."""
    return replace(service.deps, caller=Caller(key_id))


def test_a_list_shows_ones_own(folder_service: Service) -> None:
    mine, yours = as_key(folder_service, "mine"), as_key(folder_service, "yours")
    made: dict[str, list[str]] = {"mine": [], "yours": []}
    for deps in (mine, yours, mine):
        upload = folder_service.recording()
        owned = deps.audio.get(upload["id"]).model_copy(update={"owner": deps.caller.key_id})
        deps.audio.create(owned)
        request = {"mixture": {"audio_id": upload["id"]}, "targets": [{"label": "Dog"}]}
        job = separations.create(deps, SeparationCreate.model_validate(request)).job
        assert job.owner == deps.caller.key_id
        made[deps.caller.key_id].append(job.id)
    for deps in (mine, yours):
        found, _ = separations.SEPARATIONS.page(deps, None, 10, None)
        assert sorted(job.id for job in found) == sorted(made[deps.caller.key_id])
    assert folder_service.client.get("/v1/separations").json()["data"] == []


def test_anothers_id_is_answered_like_one_that_does_not_exist(folder_service: Service) -> None:
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
            told: list[EarmarkError] = []
            for asked in (known, unknown):
                with pytest.raises(NotFound) as refused:
                    find(deps, asked)
                told.append(refused.value)
            assert (told[0].detail, told[0].errors) == (told[1].detail, told[1].errors)
        with pytest.raises(NotFound):
            separations.create(deps, request)
        for refuse in (
            lambda deps=deps: separations.SEPARATIONS.delete(deps, job),
            lambda deps=deps: audio.delete(deps, upload),
        ):
            with pytest.raises(NotFound):
                refuse()
    assert audio.find(mine, upload).id == upload and separations.SEPARATIONS.get(mine, job).id == job
