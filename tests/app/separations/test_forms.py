"""Separations by one form that carries recordings, labels and options."""

import json
import re
import shlex
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from app.records.separations import SeparationRequest
from tests.app.conftest import Service, problem, wav
from tests.conftest import REPOSITORY


def form(*queries: bytes, mixture: bytes | None = None) -> list[tuple[str, Any]]:
    return [
        ("mixture", ("street.wav", mixture or wav())),
        *(("query", (f"{number}.wav", query)) for number, query in enumerate(queries)),
    ]


def test_everything_in_one_form(service: Service) -> None:
    options = {"output": {"format": "wav", "residual": False}, "metadata": {"order": "17"}}
    answer = service.client.post(
        "/v1/separations",
        files=form(wav(0.5), wav(0.7)),
        data={"label": ["Siren", "Male speech, man speaking"], "options": json.dumps(options)},
    )
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert [(target["name"], target["label"]) for target in job["targets"]] == [
        ("target", None),
        ("siren", "Siren"),
        ("male-speech-man-speaking", "Male speech, man speaking"),
    ]
    request = SeparationRequest.model_validate(service.deps.jobs.get(job["id"]).request)
    assert len(request.targets[0].examples) == 2
    assert (request.output.format, request.output.residual, job["metadata"]) == ("wav", False, {"order": "17"})
    assert len(service.stored_keys()) == 3
    assert service.client.get(f"/v1/audio/{job['mixture']['audio_id']}").json()["filename"] == "street.wav"


def test_each_text_of_a_form_is_a_target(service: Service) -> None:
    data = {"text": ["A dog", "the loud siren"], "label": "Male speech, man speaking"}
    answer = service.client.post("/v1/separations", files=form(), data=data)
    assert answer.status_code == 202, answer.text
    assert [(target["name"], target.get("matched")) for target in answer.json()["targets"]] == [
        ("male-speech-man-speaking", None),
        ("a-dog", [{"label": "Dog", "weight": 1.0}]),
        ("the-loud-siren", [{"label": "Siren", "weight": 1.0}]),
    ]


def test_a_form_has_spans_and_what_no_target_is(service: Service) -> None:
    data = {"span": ["0.1-0.3", "0.5-0.75"], "text": "a dog", "not_label": "Male speech, man speaking"}
    answer = service.client.post("/v1/separations", files=form(wav(0.5)), data=data)
    assert answer.status_code == 202, answer.text
    request = SeparationRequest.model_validate(service.deps.jobs.get(answer.json()["id"]).request)
    assert [target.name for target in request.targets] == ["target", "span", "a-dog"]
    assert [(span.start, span.end) for span in request.targets[1].spans] == [(0.1, 0.3), (0.5, 0.75)]
    assert {target.not_label for target in request.targets} == {"Male speech, man speaking"}


def test_a_form_has_examples_of_what_no_target_is(service: Service) -> None:
    unlike = [("not_query", (f"{number}.wav", wav(0.5))) for number in range(2)]
    answer = service.client.post("/v1/separations", files=[*form(wav(0.5)), *unlike], data={"text": "a dog"})
    assert answer.status_code == 202, answer.text
    job = service.deps.jobs.get(answer.json()["id"])
    targets = SeparationRequest.model_validate(job.request).targets
    assert [(target.name, len(target.examples)) for target in targets] == [("target", 1), ("a-dog", 0)]
    negatives = [[example.audio_id for example in target.not_examples] for target in targets]
    assert negatives[0] == negatives[1] and len(set(negatives[0])) == 2
    assert len(set(job.audio_ids)) == 4 and len(service.stored_keys()) == 4


@pytest.mark.parametrize(
    ("files", "fields", "pointer"),
    [
        ([], {"not_label": "Siren", "label": "Dog"}, "/not_label"),
        ([], {}, "/query"),
        ([], {"options": '{"auto": {}}'}, "/options/auto"),
        ([b"no audio"], {"label": "Dog"}, "/not_query/1"),
        ([wav(), wav()], {"label": "Dog"}, "/not_query"),
    ],
)
def test_examples_of_what_no_target_is_are_checked_and_deleted(
    folder_service: Service, files: list[bytes], fields: dict[str, Any], pointer: str
) -> None:
    unlike = [("not_query", ("a.wav", content)) for content in [wav(), *files]]
    answer = folder_service.client.post("/v1/separations", files=[*form(), *unlike], data=fields)
    assert answer.status_code == 422, answer.text
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]
    assert folder_service.stored_keys() == []


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"span": "3"}, "/span"),
        ({"span": "1:00-2:00"}, "/span"),
        ({"span": "0.5-0.2"}, "/span"),
        ({"span": "0-nan"}, "/span"),
        ({"span": "0.1-0.15"}, "/targets/0/spans/0"),
        ({"label": "Dog", "not_label": ""}, "/not_label"),
        ({"label": "Dog", "not_label": "Unicorn"}, "/targets/0/not_label"),
        ({"label": "Dog", "not_label": "dog"}, "/targets/0/not_label"),
        ({"not_label": "Dog"}, "/query"),
        ({"options": '{"auto": {}}', "not_label": "Dog"}, "/options/auto"),
    ],
)
def test_spans_and_not_label_of_a_form_have_pointers(
    folder_service: Service, fields: dict[str, Any], pointer: str
) -> None:
    answer = folder_service.client.post("/v1/separations", files=form(), data=fields)
    assert answer.status_code == 422, answer.text
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]
    assert folder_service.stored_keys() == []


@pytest.mark.parametrize(
    ("files", "fields", "code"),
    [
        (form(), {}, "request_invalid"),
        (form(wav())[1:], {}, "request_invalid"),
        (form(b"no audio"), {}, "audio_undecodable"),
        (form(mixture=b"no audio"), {"label": "Dog"}, "audio_undecodable"),
        (form(wav(3.0, 8000)), {}, "audio_too_long"),
        (form(wav()), {"label": "Unicorn"}, "label_unknown"),
        (form(wav()), {"label": ["Dog", "dog"]}, "request_invalid"),
        (form(wav()), {"text": "Unicorn"}, "text_unknown"),
        (form(wav()), {"text": ["a dog", "A dog"]}, "request_invalid"),
        (form(wav()), {"text": ""}, "request_invalid"),
        (form(wav()), {"options": '{"auto": {}}'}, "request_invalid"),
        (form(wav()), {"options": "{"}, "request_invalid"),
        (form(wav()), {"options": '{"targets": []}'}, "request_invalid"),
        (form(wav()), {"options": '{"output": {"bit_depth": 7}}'}, "format_unsupported"),
        (form(wav(), wav(), wav()), {}, "request_invalid"),
        ([*form(wav()), ("mixture", ("b.wav", wav()))], {}, "request_invalid"),
        (form(wav()), {"mixture": "text"}, "request_invalid"),
        (form(wav()), {"colour": "red"}, "request_invalid"),
    ],
)
def test_a_form_that_fails_deletes_its_files(
    folder_service: Service, files: list, fields: dict[str, Any], code: str
) -> None:
    service = folder_service
    problem(service.client.post("/v1/separations", files=files, data=fields), 422, code)
    assert service.stored_keys() == [] and service.orphans() == []
    assert service.deps.redis.keys("earmark:audio:*") == []
    assert service.deps.jobs.unfinished_count() == 0


def test_a_form_that_fails_leaves_nothing_on_s3(s3_service: Service) -> None:
    answer = s3_service.client.post("/v1/separations", files=form(wav()), data={"label": "Unicorn"})
    problem(answer, 422, "label_unknown")
    assert s3_service.stored_keys() == [] and s3_service.orphans() == []


def test_errors_in_options_have_pointers(folder_service: Service) -> None:
    answer = folder_service.client.post(
        "/v1/separations", files=form(wav()), data={"options": '{"output": {"format": "wma"}, "colour": {}}'}
    )
    told = problem(answer, 422, "request_invalid")
    assert [fault["pointer"] for fault in told["errors"]] == ["/options/colour", "/options/output/format"]


def test_unknown_labels_have_pointers(folder_service: Service) -> None:
    told = problem(
        folder_service.client.post("/v1/separations", files=form(wav()), data={"label": ""}), 422, "request_invalid"
    )
    assert [fault["pointer"] for fault in told["errors"]] == ["/label"]


def test_a_job_whose_creation_was_not_confirmed_keeps_its_uploads(
    folder_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, create = folder_service, folder_service.deps.jobs.create

    def unconfirmed(job: Any) -> None:
        create(job)
        raise RedisConnectionError("gone")

    with monkeypatch.context() as outage:
        outage.setattr(service.deps.jobs, "create", unconfirmed)
        answer = service.client.post("/v1/separations", files=form(), data={"label": "Dog"})
    problem(answer, 503, "queue_unavailable")
    assert service.deps.jobs.unfinished_count() == 1 and len(service.stored_keys()) == 1


def test_automatic_targets_in_one_form(folder_service: Service) -> None:
    answer = folder_service.client.post(
        "/v1/separations", files=form(), data={"options": '{"auto": {"threshold": 0.5}}'}
    )
    assert answer.status_code == 202, answer.text
    request = SeparationRequest.model_validate(folder_service.deps.jobs.get(answer.json()["id"]).request)
    assert request.auto is not None and request.auto.threshold == 0.5


@pytest.mark.parametrize(
    ("files", "pointer"),
    [
        ([("mixture", b"no audio"), ("query", None)], "/mixture"),
        ([("mixture", None), ("query", b"no audio")], "/query/0"),
        ([("mixture", None), ("query", None), ("query", b"")], "/query/1"),
    ],
)
def test_an_error_names_the_file_that_is_bad(
    folder_service: Service, files: list[tuple[str, bytes | None]], pointer: str
) -> None:
    sent = [(name, ("a.wav", wav() if content is None else content)) for name, content in files]
    answer = folder_service.client.post("/v1/separations", files=sent)
    document = problem(answer, 422, "audio_undecodable")
    assert document["errors"] == [{"pointer": pointer, "detail": document["detail"]}]


def _fields_of_the_readme() -> list[str]:
    table = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("| you want | in the form |")[2]
    return re.findall(r"`(-F [^`]*)`", table.partition("\n\n")[0])


@pytest.mark.parametrize("words", _fields_of_the_readme())
def test_the_forms_of_the_readme_are_accepted(folder_service: Service, words: str) -> None:
    """The tests' model has few classes, their recording is short, and there is no secret for webhooks."""
    known = {"vocals": "dog", "drums": "siren", "siren": "siren", "Car alarm": "Dog", "3.2-5.0": "0.2-0.5"}
    webhook = ', "webhook": {"url": "https://..."}'
    files, data = form(), dict[str, list[str]]()
    for field in shlex.split(words)[1::2]:
        name, _, value = field.partition("=")
        if value.startswith("@"):
            files.append((name, (value[1:], wav(0.5))))
        else:
            data.setdefault(name, []).append(known.get(value, value.replace(webhook, "")))
    answer = folder_service.client.post("/v1/separations", files=files, data=data)
    assert answer.status_code == 202, answer.text
