"""What a request for a separation may say, and what is refused where it stands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.records.separations import SeparationRequest
from tests import media_files
from tests.app.conftest import MODEL, VECTOR, Service, problem, wav

UNKNOWN = "aud_01HZZZZZZZZZZZZZZZZZZZZZZZ"
DOG = {"name": "dog", "label": "Dog"}
GIVEN = {"name": "mine", "embedding": list(VECTOR), "model": "base@1"}
WRONG: dict[str, tuple[Any, str, list[str]]] = {
    "no targets": ({"targets": []}, "request_invalid", ["/targets"]),
    "missing targets": ({"targets": None}, "request_invalid", [""]),
    "too many targets": (
        {"targets": [{"name": f"t{number}", "label": "Dog"} for number in range(4)]},
        "request_invalid",
        ["/targets"],
    ),
    "unknown field": ({"colour": 1}, "request_invalid", ["/colour"]),
    "unknown target field": ({"targets": [{**DOG, "loud": True}]}, "request_invalid", ["/targets/0/loud"]),
    "webhook, later": ({"webhook": {"url": "https://x.example"}}, "request_invalid", ["/webhook"]),
    "targets and auto": ({"auto": {}}, "request_invalid", [""]),
    "auto, none": ({"targets": None, "auto": {"max_targets": 0}}, "request_invalid", ["/auto/max_targets"]),
    "auto, too many": ({"targets": None, "auto": {"max_targets": 4}}, "request_invalid", ["/auto/max_targets"]),
    "auto, never": ({"targets": None, "auto": {"threshold": 1.1}}, "request_invalid", ["/auto/threshold"]),
    "auto, unknown field": ({"targets": None, "auto": {"loud": 1}}, "request_invalid", ["/auto/loud"]),
    "saved query, no id": (
        {"targets": [{"name": "x", "query_id": "qry_1"}]},
        "request_invalid",
        ["/targets/0/query_id"],
    ),
    "two negatives": (
        {"targets": [{**DOG, "not_label": "Siren", "not_examples": [{"audio_id": UNKNOWN}]}]},
        "request_invalid",
        ["/targets/0"],
    ),
    "only a negative": ({"targets": [{"name": "x", "not_label": "Siren"}]}, "request_invalid", ["/targets/0"]),
    "not itself": ({"targets": [{**DOG, "not_label": "dog"}]}, "request_invalid", ["/targets/0/not_label"]),
    "no such negative": ({"targets": [{**DOG, "not_label": "Bark"}]}, "label_unknown", ["/targets/0/not_label"]),
    "no such sound": ({"targets": [{"text": "unicorn"}]}, "text_unknown", ["/targets/0/text"]),
    "sound not askable": ({"targets": [{"text": "a dog barking"}]}, "text_unknown", ["/targets/0/text"]),
    "two sounds": ({"targets": [DOG, {"text": "dog and siren"}]}, "request_invalid", ["/targets/1/text"]),
    "negation": ({"targets": [{"text": "without the dog"}]}, "request_invalid", ["/targets/0/text"]),
    "empty text": ({"targets": [{"text": ""}]}, "request_invalid", ["/targets/0/text"]),
    "long text": ({"targets": [{"text": "dog " * 51}]}, "request_invalid", ["/targets/0/text"]),
    "label and text": ({"targets": [{**DOG, "text": "dog"}]}, "request_invalid", ["/targets/0"]),
    "text and spans": (
        {"targets": [{"text": "dog", "spans": [{"start": 0, "end": 1}]}]},
        "request_invalid",
        ["/targets/0"],
    ),
    "examples, label and text": (
        {"targets": [{**DOG, "text": "dog", "examples": [{"audio_id": UNKNOWN}]}]},
        "request_invalid",
        ["/targets/0"],
    ),
    "not itself, in words": (
        {"targets": [{"text": "my dog", "not_label": "dog"}]},
        "request_invalid",
        ["/targets/0/not_label"],
    ),
    "embedding without a model": (
        {"targets": [{"name": "x", "embedding": [0.1] * 8}]},
        "request_invalid",
        ["/targets/0"],
    ),
    "model without an embedding": ({"targets": [{**DOG, "model": "base"}]}, "request_invalid", ["/targets/0"]),
    "embedding too short": (
        {"targets": [{**GIVEN, "embedding": [0.1] * 7}]},
        "request_invalid",
        ["/targets/0/embedding"],
    ),
    "embedding of zeros": (
        {"targets": [{**GIVEN, "embedding": [0, 1e-60] * 4}]},
        "request_invalid",
        ["/targets/0/embedding"],
    ),
    "embedding of text": ({"targets": [{**GIVEN, "embedding": ["1"]}]}, "request_invalid", ["/targets/0/embedding/0"]),
    "embedding too large": (
        {"targets": [{**GIVEN, "embedding": [1e7]}]},
        "request_invalid",
        ["/targets/0/embedding/0"],
    ),
    "another model's embedding": (
        {"targets": [{**GIVEN, "model": "base@2"}]},
        "query_model_mismatch",
        ["/targets/0/model"],
    ),
    "two kinds": (
        {"targets": [{**DOG, "spans": [{"start": 0, "end": 0.5}]}]},
        "request_invalid",
        ["/targets/0"],
    ),
    "no kind": ({"targets": [{"name": "x"}]}, "request_invalid", ["/targets/0"]),
    "no name": ({"targets": [{"spans": [{"start": 0, "end": 1}]}]}, "request_invalid", ["/targets/0"]),
    "bad name": ({"targets": [{"name": "../x", "label": "Dog"}]}, "request_invalid", ["/targets/0/name"]),
    "name with newline": ({"targets": [{"name": "x\n", "label": "Dog"}]}, "request_invalid", ["/targets/0/name"]),
    "long name": ({"targets": [{"name": "x" * 65, "label": "Dog"}]}, "request_invalid", ["/targets/0/name"]),
    "same name": ({"targets": [DOG, {**DOG, "name": "DOG"}]}, "request_invalid", ["/targets/1/name"]),
    "reserved": ({"targets": [{**DOG, "name": "Residual"}]}, "name_reserved", ["/targets/0/name"]),
    "no such label": ({"targets": [{"name": "x", "label": "Sirene"}]}, "label_unknown", ["/targets/0/label"]),
    "label not askable": ({"targets": [{"name": "x", "label": "Bark"}]}, "label_unknown", ["/targets/0/label"]),
    "span after the end": (
        {"targets": [{"name": "x", "spans": [{"start": 0, "end": 0.5}, {"start": 0.5, "end": 1.3}]}]},
        "span_outside",
        ["/targets/0/spans/1"],
    ),
    "span in the slack after the end": (
        {"targets": [{"name": "x", "spans": [{"start": 0, "end": 1.05}, {"start": 1.0, "end": 1.05}]}]},
        "span_outside",
        ["/targets/0/spans/1"],
    ),
    "span backwards": (
        {"targets": [{"name": "x", "spans": [{"start": 0.5, "end": 0.5}]}]},
        "request_invalid",
        ["/targets/0/spans/0"],
    ),
    "span too short": (
        {"targets": [{"name": "x", "spans": [{"start": 0, "end": 0.5}, {"start": 0.5, "end": 0.599}]}]},
        "request_invalid",
        ["/targets/0/spans/1"],
    ),
    "span before": (
        {"targets": [{"name": "x", "spans": [{"start": -1, "end": 0.5}]}]},
        "request_invalid",
        ["/targets/0/spans/0/start"],
    ),
    "too many spans": (
        {"targets": [{"name": "x", "spans": [{"start": 0, "end": 0.5}] * 3}]},
        "request_invalid",
        ["/targets/0/spans"],
    ),
    "example unknown id": (
        {"targets": [{"name": "x", "examples": [{"audio_id": "x"}]}]},
        "request_invalid",
        ["/targets/0/examples/0/audio_id"],
    ),
    "format": ({"output": {"format": "wma"}}, "request_invalid", ["/output/format"]),
    "bit depth": ({"output": {"format": "flac", "bit_depth": 32}}, "format_unsupported", ["/output/bit_depth"]),
    "bit depth of mp3": ({"output": {"format": "mp3", "bit_depth": 16}}, "format_unsupported", ["/output/bit_depth"]),
    "quality": ({"output": {"quality": "best"}}, "request_invalid", ["/output/quality"]),
    "type": ({"output": {"joint": "yes"}}, "request_invalid", ["/output/joint"]),
    "metadata": ({"metadata": {"a": 1}}, "request_invalid", ["/metadata/a"]),
    "model": ({"model": "../x"}, "request_invalid", ["/model"]),
    "pointer escapes": ({"a/b~c": 1}, "request_invalid", ["/a~1b~0c"]),
}


@pytest.mark.parametrize(("change", "code", "pointers"), WRONG.values(), ids=WRONG)
def test_invalid_requests_point_at_the_field(
    folder_service: Service, change: Any, code: str, pointers: list[str]
) -> None:
    mixture = folder_service.recording()
    sent = {"mixture": {"audio_id": mixture["id"]}, "targets": [DOG]} | change
    told = problem(folder_service.client.post("/v1/separations", json=sent), 422, code)
    assert [fault.get("pointer") for fault in told["errors"]] == pointers
    assert folder_service.deps.jobs.unfinished_count() == 0


def test_an_estimated_duration_refuses_nothing(folder_service: Service, tmp_path: Path) -> None:
    """By the bit rate of its beginning, seven seconds are one, and one is too long for an example."""
    sound, silence = media_files.noise(48000), np.zeros((2, 48000), np.float32)
    made = []
    for kind in ((sound, *[silence] * 6), (silence, sound[:, :12000])):
        media_files.write_packets(tmp_path / "a", np.concatenate(kind, axis=1), 48000, "adts", "aac")
        made.append(folder_service.upload((tmp_path / "a").read_bytes()))
    long, short = made
    assert long["duration"] < 2 and short["duration"] > folder_service.deps.settings.example_seconds + 0.5
    targets = [
        {"name": "late", "spans": [{"start": 5.5, "end": 6.5}]},
        {"name": "short", "examples": [{"audio_id": short["id"]}]},
    ]
    folder_service.separate(mixture={"audio_id": long["id"]}, targets=targets)


def test_the_duration_of_the_first_track_refuses_no_span_of_another(folder_service: Service, tmp_path: Path) -> None:
    media_files.write_tracks(tmp_path / "a.mov", [media_files.noise(seconds * 8000) for seconds in (1, 3)], 8000)
    mixture = {"audio_id": folder_service.upload((tmp_path / "a.mov").read_bytes())["id"]}
    late = [{"name": "late", "spans": [{"start": 2.0, "end": 2.5}]}]
    folder_service.separate(mixture=mixture | {"track": 2}, targets=late)
    told = problem(
        folder_service.client.post("/v1/separations", json={"mixture": mixture, "targets": late}), 422, "span_outside"
    )
    assert told["errors"][0]["pointer"] == "/targets/0/spans/0"


def test_spans_and_examples_may_be_as_short_as_a_query_needs(folder_service: Service) -> None:
    """3.3 - 3.2 is less than 0.1, in binary numbers."""
    mixture, shortest = (folder_service.upload(wav(seconds))["id"] for seconds in (4.0, 0.1))
    spans = [{"start": 3.2, "end": 3.3}, {"start": 0, "end": 0.1}]
    targets = [{"name": "span", "spans": spans}, {"name": "example", "examples": [{"audio_id": shortest}]}]
    folder_service.separate(mixture={"audio_id": mixture}, targets=targets)


@pytest.mark.parametrize("field", ["examples", "not_examples"])
def test_an_example_that_is_too_short_is_refused_at_once(folder_service: Service, field: str) -> None:
    crumb = {"audio_id": folder_service.upload(wav(0.05))["id"]}
    target = {**(DOG if field == "not_examples" else {"name": "x"}), field: [crumb]}
    sent = {"mixture": {"audio_id": folder_service.recording()["id"]}, "targets": [target]}
    told = problem(folder_service.client.post("/v1/separations", json=sent), 422, "request_invalid")
    assert told["errors"][0]["pointer"] == f"/targets/0/{field}/0/audio_id"
    assert "at least 0.1 s; this one lasts 0.050 s" in told["detail"]


def test_every_field_of_a_target(folder_service: Service) -> None:
    other = {"audio_id": folder_service.recording()["id"]}
    job = folder_service.separate(
        targets=[
            {**DOG, "not_examples": [other]},
            {**GIVEN, "not_label": "Siren"},
            {"name": "saved", "query_id": folder_service.saved_query()},
        ]
    )
    record = folder_service.deps.jobs.get(job["id"])
    dog, mine, saved = SeparationRequest.model_validate(record.request).targets
    assert [example.model_dump() for example in dog.not_examples] == [other] and other["audio_id"] in record.audio_ids
    assert mine.not_label == "Siren" and mine.embedding is not None and saved.embedding is not None
    assert mine.embedding.vector == saved.embedding.vector and mine.embedding.model.id == "base@1"


def test_embeddings_that_are_not_json(folder_service: Service) -> None:
    mixture = folder_service.recording()["id"]
    for number in ("NaN", "Infinity", "1e999"):
        target = f'{{"name": "x", "model": "base", "embedding": [{number}]}}'
        content = f'{{"mixture": {{"audio_id": "{mixture}"}}, "targets": [{target}]}}'
        headers = {"Content-Type": "application/json"}
        problem(folder_service.client.post("/v1/separations", content=content, headers=headers), 422, "request_invalid")


def test_automatic_targets(folder_service: Service) -> None:
    mixture = {"audio_id": folder_service.recording()["id"]}
    answer = folder_service.client.post("/v1/separations", json={"mixture": mixture, "auto": {"max_targets": 2}})
    assert answer.status_code == 202, answer.text
    assert answer.json()["targets"] == []
    request = SeparationRequest.model_validate(folder_service.deps.jobs.get(answer.json()["id"]).request)
    assert request.auto is not None and request.auto.model_dump() == {"max_targets": 2, "threshold": 0.3}
    assert request.targets == []


def test_unknown_labels_come_with_near_names(folder_service: Service) -> None:
    mixture = {"audio_id": folder_service.recording()["id"]}
    for text, near in (("Sirene", "Siren"), ("male speech", "Male speech, man speaking"), ("Bark", "Dog")):
        answer = folder_service.client.post(
            "/v1/separations", json={"mixture": mixture, "targets": [{"name": "x", "label": text}]}
        )
        detail = problem(answer, 422, "label_unknown")["errors"][0]["detail"]
        assert near in detail and "`text`" in detail


def test_the_advice_beside_long_near_names_is_whole(folder_service: Service) -> None:
    names = [f"Hubbub, speech noise, speech babble of {kind} people" for kind in ("many", "some", "few", "loud")]
    classes = [
        {
            "label": name,
            "mid": f"/m/{index}",
            "slug": f"hubbub-{index}",
            "path": [name],
            "askable": True,
            "synonyms": [],
        }
        for index, name in enumerate(names)
    ]
    folder_service.deps.model_registry.announce(MODEL | {"name": "hall", "classes": classes}, "worker-1")
    mixture = {"audio_id": folder_service.recording()["id"]}
    answer = folder_service.client.post(
        "/v1/separations", json={"mixture": mixture, "targets": [{"label": "Hubbub, speech"}], "model": "hall"}
    )
    detail = problem(answer, 422, "label_unknown")["detail"]
    assert "Hubbub" in detail and detail.endswith("in words of your own.")


def test_a_text_means_one_class_or_a_mean_of_close_ones(folder_service: Service) -> None:
    kin = {"askable": True, "synonyms": ["hound"]}
    classes = [
        {"label": "Dog", "mid": "/m/0bt9lr", "slug": "dog", "path": ["Animal", "Pets", "Dog"], **kin},
        {"label": "Wolf", "mid": "/m/01z5f", "slug": "wolf", "path": ["Animal", "Pets", "Wolf"], **kin},
    ]
    model = MODEL | {"name": "kennel", "classes": classes}
    folder_service.deps.model_registry.announce(model, "worker-1")
    example = {"audio_id": folder_service.recording()["id"]}
    mine = {"name": "mine", "text": "dog", "examples": [example]}
    job = folder_service.separate(model="kennel", targets=[{"text": "a hound"}, mine, {**DOG, "examples": [example]}])
    told = [(target["name"], target["label"], target.get("matched")) for target in job["targets"]]
    both = [{"label": "Dog", "weight": 0.5}, {"label": "Wolf", "weight": 0.5}]
    assert told == [("a-hound", None, both), ("mine", None, [{"label": "Dog", "weight": 1.0}]), ("dog", "Dog", None)]
    record = folder_service.deps.jobs.get(job["id"])
    hound, named, dog = SeparationRequest.model_validate(record.request).targets
    assert [match.model_dump() for match in hound.matched] == both
    assert (hound.label, named.label, dog.label) == ("Dog", "Dog", "Dog")  # for workers of an earlier release
    assert [len(target.examples) for target in (hound, named, dog)] == [0, 1, 1] and dog.matched == []
    assert example["audio_id"] in record.audio_ids


def test_formats_that_cannot_hold_the_channels(folder_service: Service) -> None:
    mixture = {"audio_id": folder_service.upload(wav(0.2, 48000, 4))["id"]}
    for name in ("mp3", "ogg", "opus", "m4a"):
        answer = folder_service.client.post(
            "/v1/separations", json={"mixture": mixture, "targets": [DOG], "output": {"format": name}}
        )
        told = problem(answer, 422, "format_unsupported")
        assert told["errors"][0]["pointer"] == "/output/format"
    for output in ({"format": "flac", "bit_depth": 16}, {"format": "wav", "bit_depth": 32}):
        folder_service.separate(mixture=mixture, output=output)


def test_examples_that_are_too_long(folder_service: Service) -> None:
    example = folder_service.upload(wav(3.0, 8000))
    sent = {
        "mixture": {"audio_id": folder_service.recording()["id"]},
        "targets": [{"name": "x", "examples": [{"audio_id": example["id"]}]}],
    }
    told = problem(folder_service.client.post("/v1/separations", json=sent), 422, "audio_too_long")
    assert told["errors"][0]["pointer"] == "/targets/0/examples/0/audio_id"


def test_unknown_uploads_are_not_found(folder_service: Service) -> None:
    known = {"audio_id": folder_service.recording()["id"]}
    unknown = {"audio_id": UNKNOWN}
    for mixture, target, place in (
        (unknown, DOG, "/mixture/audio_id"),
        (known, {"name": "x", "examples": [known, unknown]}, "/targets/0/examples/1/audio_id"),
    ):
        answer = folder_service.client.post("/v1/separations", json={"mixture": mixture, "targets": [target]})
        assert problem(answer, 404, "not_found")["errors"][0]["pointer"] == place


def test_unknown_models_are_unavailable(folder_service: Service) -> None:
    mixture = {"audio_id": folder_service.recording()["id"]}
    for model in ("paper", "base@2"):
        answer = folder_service.client.post(
            "/v1/separations", json={"mixture": mixture, "targets": [DOG], "model": model}
        )
        problem(answer, 503, "model_unavailable")
    assert folder_service.separate(model="base@1")["model"] == {"name": "base", "version": "1"}
    folder_service.deps.model_registry.leave("base@1", "worker-1")
    assert folder_service.separate()["status"] == "queued"


def test_a_full_queue_sends_retry_after(folder_service: Service) -> None:
    mixture = {"audio_id": folder_service.recording()["id"]}
    for _ in range(folder_service.deps.settings.queue_jobs):
        folder_service.separate(mixture=mixture)
    answer = folder_service.client.post("/v1/separations", json={"mixture": mixture, "targets": [DOG]})
    problem(answer, 503, "queue_full")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1", b"\xff\xfe", b'{"a": NaN}', b"[" * 9000],
    ids=["empty", "open", "list", "bytes", "nan", "deep"],
)
def test_bodies_that_are_not_json(folder_service: Service, body: bytes) -> None:
    answer = folder_service.client.post("/v1/separations", content=body, headers={"Content-Type": "application/json"})
    problem(answer, 422, "request_invalid")


@pytest.mark.parametrize("body", [b"null", b"[]", b'"x"', b"1", b"{}"])
def test_json_that_is_not_a_request(folder_service: Service, body: bytes) -> None:
    answer = folder_service.client.post("/v1/separations", content=body, headers={"Content-Type": "application/json"})
    assert problem(answer, 422, "request_invalid")["errors"]


def test_bodies_of_another_type_or_size(folder_service: Service) -> None:
    post: Callable[..., httpx.Response] = folder_service.client.post
    problem(post("/v1/separations", content=b"a=b"), 415, "media_type_unsupported")
    problem(post("/v1/separations", data={"a": "b"}), 415, "media_type_unsupported")
    large = json.dumps({"a": "x" * 20_000})
    problem(
        post("/v1/separations", content=large, headers={"Content-Type": "application/json"}), 413, "upload_too_large"
    )
