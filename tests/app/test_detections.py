"""Detections over HTTP: asked for, told, and their picture fetched."""

import hashlib
import json
from typing import Any

import pytest

from app.records.detections import DetectionRequest, DetectionResult, EventRecord, PictureRecord, TagRecord
from app.records.shared import ModelRecord, RecordingRecord
from tests.app.conftest import Service, problem, wav

OWN = ["timeline_url", "audio", "threshold", "top", "tags", "events", "metrics"]
PICTURE = b"\x89PNG and so on"


def finish(service: Service, job_id: str) -> None:
    """Act as the worker."""
    job = service.deps.jobs.get(job_id)
    audio = RecordingRecord(audio_id=job.audio_ids[0], duration=1.0, sample_rate=16000, channels=1)
    key = f"detections/{job_id}/e/timeline.png"
    result = DetectionResult(
        audio=audio,
        tags=[TagRecord(label="Dog", mid="/m/0bt9lr", probability=0.91)],
        events=[EventRecord(label="Dog", mid="/m/0bt9lr", start=0.2, end=0.6, confidence=0.8)],
        picture=PictureRecord(key=key, bytes=len(PICTURE), sha256=hashlib.sha256(PICTURE).hexdigest()),
        model=ModelRecord(name="base", version="1"),
        metrics={"detecting": 0.1},
    )
    service.publish(job_id, result, {"timeline.png": PICTURE})


def test_a_detection_from_creation_to_its_picture(service: Service) -> None:
    audio = service.upload()
    answer = service.client.post("/v1/detections", json={"audio_id": audio["id"]})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert list(job)[-len(OWN) :] == OWN
    assert (job["threshold"], job["top"], job["tags"], job["events"], job["metrics"]) == (0.2, 10, [], [], None)
    assert job["audio"] == {"audio_id": audio["id"], "duration": 1.0, "sample_rate": 16000, "channels": 1}
    problem(service.client.get(job["timeline_url"]), 404, "not_found")
    finish(service, job["id"])
    told = service.client.get(job["url"]).json()
    assert told["tags"] == [{"label": "Dog", "mid": "/m/0bt9lr", "probability": 0.91}]
    assert told["events"] == [{"label": "Dog", "mid": "/m/0bt9lr", "start": 0.2, "end": 0.6, "confidence": 0.8}]
    assert list(told["metrics"]) == ["queued", "detecting"]
    picture = service.client.get(told["timeline_url"])
    assert (picture.status_code, picture.content) == (200, PICTURE)
    assert picture.headers["content-type"] == "image/png"
    part = service.client.get(told["timeline_url"], headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, b"PNG")
    assert service.client.head(told["timeline_url"]).headers["content-length"] == str(len(PICTURE))
    service.deps.jobs.expire(job["id"])
    problem(service.client.get(told["timeline_url"]), 410, "stems_expired")
    assert service.client.get(job["url"]).json()["tags"] == told["tags"]


def test_a_detection_in_one_form(service: Service) -> None:
    options = {"threshold": 0.5, "top": 3, "metadata": {"a": "b"}}
    answer = service.client.post(
        "/v1/detections", files={"file": ("a.wav", wav())}, data={"options": json.dumps(options)}
    )
    assert answer.status_code == 202, answer.text
    job = service.deps.jobs.get(answer.json()["id"])
    request = DetectionRequest.model_validate(job.request)
    assert (request.threshold, request.top, job.metadata, job.audio_seconds) == (0.5, 3, {"a": "b"}, 1.0)
    assert service.stored_keys() == [f"audio/{request.audio.audio_id}"]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"threshold": 0}, "/threshold"),
        ({"threshold": 1.01}, "/threshold"),
        ({"threshold": "0.5"}, "/threshold"),
        ({"top": 0}, "/top"),
        ({"top": 528}, "/top"),
        ({"top": 1.5}, "/top"),
        ({"top": True}, "/top"),
        ({"colour": 1}, "/colour"),
        ({"audio_id": "aud_1"}, "/audio_id"),
        ({"audio_id": None}, "/audio_id"),
    ],
)
def test_invalid_detections(folder_service: Service, change: dict[str, Any], pointer: str) -> None:
    sent = {"audio_id": folder_service.recording()["id"]} | change
    told = problem(folder_service.client.post("/v1/detections", json=sent), 422, "request_invalid")
    assert [fault["pointer"] for fault in told["errors"]] == [pointer]


def test_unknown_audio_is_not_found(folder_service: Service) -> None:
    answer = folder_service.client.post("/v1/detections", json={"audio_id": "aud_01HZZZZZZZZZZZZZZZZZZZZZZZ"})
    assert problem(answer, 404, "not_found")["errors"][0]["pointer"] == "/audio_id"


@pytest.mark.parametrize(
    ("files", "fields", "code"),
    [
        ([], {"options": "{}"}, "request_invalid"),
        ([("file", b"no audio")], {}, "audio_undecodable"),
        ([("file", wav()), ("file", wav())], {}, "request_invalid"),
        ([("mixture", wav())], {}, "request_invalid"),
        ([("file", wav())], {"options": '{"audio_id": "x"}'}, "request_invalid"),
        ([("file", wav())], {"options": '{"top": 0}'}, "request_invalid"),
        ([("file", wav())], {"file": "text"}, "request_invalid"),
    ],
)
def test_a_form_that_fails_deletes_its_file(
    folder_service: Service, files: list[tuple[str, bytes]], fields: dict[str, str], code: str
) -> None:
    sent: list[Any] = [(name, ("a.wav", content)) for name, content in files]
    sent += [(name, (None, text)) for name, text in fields.items()]
    problem(folder_service.client.post("/v1/detections", files=sent), 422, code)
    assert folder_service.stored_keys() == [] and folder_service.orphans() == []
    assert folder_service.deps.jobs.unfinished_count() == 0
