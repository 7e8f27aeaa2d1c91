"""Uploads as phones, recorders, editors and damage make them: the probe and the waveform agree with the decoder."""

import asyncio
from typing import Any

import numpy as np
import pytest

from app.media import probe, waveform
from app.settings import Settings
from models.media import open_audio
from tests.app.conftest import Service, problem
from tests.ffmpeg_files import Folder
from tests.field_truth import CONTAINERS
from tests.models.test_media_field import REFUSED

FAULTS = (
    *("chain.ogg", "chain.opus", "to-mono.mp3", "to-slow.mp3", "to-slow.aac", "wrong-total.flac"),
    *("tag.wav", "tag.aiff", "tag.m4a", "tag.ac3", "rifx.wav", "24-in-32.wav", "a.dsf", "obs.mkv"),
    *("gap.webm", "gap.mkv", "gap.mp4", "late.mkv", "late.mp4", "damaged.webm", "damaged.mp4", "cut.mp3", "cut.m4a"),
    "flac.avi",
    *("dts-ac3.mkv", "truehd-aac.mkv"),
)
# What FFmpeg adds to short Ogg Vorbis, which the decoder reads by libsndfile; padding that mp4's edit list tells.
TOLERANCE = 0.03  # seconds
# Headers of chains tell their last link, cut ones what there was, those of AVI whole frames of FLAC.
WRONG_HEADERS = (
    *("chain.ogg", "chain.opus", "to-mono.mp3", "to-slow.mp3", "to-slow.aac", "wrong-total.flac", "cut.mp3", "cut.m4a"),
    "flac.avi",
)


def decoded(field: Folder, name: str) -> dict[str, Any]:
    with open_audio(field.make(name)) as reader:
        highest = np.max([np.abs(block).max() for block in reader])
    info = reader.info
    return {"rate": info.rate, "channels": info.channels, "duration": info.duration, "highest": float(highest)}


@pytest.mark.parametrize("name", [*CONTAINERS, *FAULTS])
def test_every_accepted_file_is_probed_as_it_is_decoded(field: Folder, name: str) -> None:
    """In this process, where the sandbox's child has a process of its own."""
    expected, info = decoded(field, name), probe.read_headers(field.make(name))
    assert (info.sample_rate, info.channels) == (expected["rate"], expected["channels"])
    if name not in WRONG_HEADERS and info.duration is not None:
        assert info.duration == pytest.approx(expected["duration"], abs=0.15)


@pytest.mark.parametrize("name", [*FAULTS, "surround.opus"])
def test_waveforms_are_drawn_as_files_are_decoded(field: Folder, name: str) -> None:
    expected = decoded(field, name)
    drawn = waveform.read(field.make(name), 60, 10**8)
    assert drawn.samples / drawn.sample_rate == pytest.approx(expected["duration"], abs=TOLERANCE)
    highest = max(max(*maxima, -min(minima)) for minima, maxima in zip(drawn.minima, drawn.maxima, strict=True))
    assert highest == pytest.approx(expected["highest"], abs=0.05)


@pytest.mark.parametrize("name", ["gap.webm", "chain.ogg", "surround.m4a", "to-mono.mp3", "tag.wav", "narrow.amr"])
def test_uploads_are_probed_and_drawn(folder_service: Service, field: Folder, name: str) -> None:
    expected, audio = decoded(field, name), folder_service.upload(field.read(name))
    assert (audio["sample_rate"], audio["channels"]) == (expected["rate"], expected["channels"])
    drawn = folder_service.client.get(f"/v1/audio/{audio['id']}/peaks", params={"points": 64}).json()
    assert drawn["duration"] == pytest.approx(expected["duration"], abs=TOLERANCE)
    assert len(drawn["channels"]) == expected["channels"]


def test_refused_files_are_named(folder_service: Service, field: Folder) -> None:
    for name, words in REFUSED.items():
        upload = folder_service.client.post("/v1/audio", files={"file": (name, field.read(name))})
        assert words in problem(upload, 422, "audio_undecodable")["detail"]


def test_a_file_that_crashes_ffmpeg_is_refused(folder_service: Service, field: Folder) -> None:
    upload = folder_service.client.post("/v1/audio", files={"file": ("a.aiff", field.read("crash.aiff"))})
    problem(upload, 422, "audio_undecodable")


@pytest.mark.parametrize("name", ["stereo.mp3", "stereo.m4a", "link0.opus", "stereo.flac"])
def test_headers_that_say_exactly_the_limit_pass(field: Folder, name: str) -> None:
    assert asyncio.run(probe.probe(field.make(name), Settings(recording_seconds=1))).duration


# Tracks


def test_an_upload_lists_its_tracks(folder_service: Service, field: Folder) -> None:
    audio = folder_service.upload(field.read("obs.mkv"))
    assert [track["track"] for track in audio["tracks"]] == [1, 2, 3, 4]
    microphone = audio["tracks"][1]
    assert (microphone["language"], microphone["title"]) == ("deu", "Microphone")
    assert (microphone["channels"], microphone["readable"]) == (2, True)
    tracks = folder_service.upload(field.read("dts-ac3.mkv"))["tracks"]
    assert [(track["codec"], track["readable"]) for track in tracks] == [("dts", False), ("ac3", True)]


def test_requests_choose_tracks(folder_service: Service, field: Folder) -> None:
    obs, films = folder_service.upload(field.read("obs.mkv")), folder_service.upload(field.read("dts-ac3.mkv"))
    made = folder_service.separate(mixture={"audio_id": obs["id"], "track": 2})
    assert (made["mixture"]["track"], made["mixture"]["channels"]) == (2, 2)
    targets = [{"name": "mine", "examples": [{"audio_id": obs["id"], "track": track} for track in (1, 2)]}]
    assert folder_service.separate(mixture={"audio_id": films["id"]}, targets=targets)["mixture"].get("track") is None
    detection = folder_service.client.post("/v1/detections", json={"audio_id": obs["id"], "track": 4})
    assert detection.json()["audio"]["track"] == 4


def test_a_form_chooses_the_track_of_its_mixture(folder_service: Service, field: Folder) -> None:
    files = {"mixture": ("obs.mkv", field.read("obs.mkv"))}
    sent = folder_service.client.post("/v1/separations", files=files, data={"track": "2", "label": "Dog"})
    assert sent.status_code == 202, sent.text
    assert (sent.json()["mixture"]["track"], sent.json()["mixture"]["channels"]) == (2, 2)
    for track in ("9", "0", "x"):
        refused = folder_service.client.post("/v1/separations", files=files, data={"track": track, "label": "Dog"})
        assert problem(refused, 422, "request_invalid")["errors"][0]["pointer"].endswith("/track")


def test_peaks_are_of_the_chosen_track(folder_service: Service, field: Folder) -> None:
    obs = folder_service.upload(field.read("obs.mkv"))
    url = f"/v1/audio/{obs['id']}/peaks"
    drawn = {track: folder_service.client.get(url, params={"track": track}).json() for track in (1, 2)}
    assert [len(drawn[track]["channels"]) for track in (1, 2)] == [1, 2]
    assert folder_service.client.get(url).json() == drawn[1]
    problem(folder_service.client.get(url, params={"track": 9}), 422, "audio_undecodable")


@pytest.mark.parametrize(("track", "words"), [(5, "no such track"), (1, r"Track 1 (dts) cannot be read; readable: 2.")])
def test_tracks_that_cannot_be_read_are_refused(folder_service: Service, field: Folder, track: int, words: str) -> None:
    audio = folder_service.upload(field.read("dts-ac3.mkv"))
    body = {"mixture": {"audio_id": audio["id"], "track": track}, "targets": [{"name": "dog", "label": "Dog"}]}
    refused = problem(folder_service.client.post("/v1/separations", json=body), 422, "request_invalid")
    assert words in refused["detail"]
    assert refused["errors"][0]["pointer"] == "/mixture/track"


# Spans


@pytest.mark.parametrize("name", ["chain.opus", "wrong-total.flac"])
def test_spans_beyond_a_wrong_header_are_left_to_the_decoder(folder_service: Service, field: Folder, name: str) -> None:
    audio = folder_service.upload(field.read(name))
    assert audio["duration"] < 0.6
    targets = [{"name": "solo", "spans": [{"start": 0.7, "end": 0.9}]}]
    assert folder_service.separate(mixture={"audio_id": audio["id"]}, targets=targets)["status"] == "queued"
