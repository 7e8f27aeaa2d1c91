"""Forms are read field by field, each as often as its route allows."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from fastapi import Request
from fastapi.exceptions import RequestValidationError

from app.errors import RequestInvalid, UploadTooLarge
from app.http.forms import FormField, file_field, json_field, read_form, text_field
from app.http.multipart import Part
from app.http.validation import RequestModel
from app.settings import Settings

FILE = ("file", "a.wav", b"RIFF")
SETTINGS = Settings(upload_bytes=1000, body_bytes=1024)


class Options(RequestModel):
    top: int = 10


async def receive(part: Part) -> bytes:
    return b"".join([chunk async for chunk in part.chunks])


def fields() -> tuple[FormField[bytes], FormField[str], FormField[Options]]:
    return (
        file_field("file", receive, limit=2, is_required=True),
        text_field("label", 8, limit=2),
        json_field("options", Options, 100),
    )


def read(parts: Sequence[tuple[str, str | None, bytes]], *into: FormField) -> None:
    body = b""
    for name, filename, content in parts:
        file = "" if filename is None else f'; filename="{filename}"'
        body += f'--x\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
    messages: Iterator[dict[str, Any]] = iter([{"type": "http.request", "body": body + b"--x--\r\n"}])

    async def receive_message() -> dict[str, Any]:
        return next(messages)

    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
    asyncio.run(read_form(Request(scope, receive_message), SETTINGS, *into))


def test_values_are_those_of_the_form_in_its_order() -> None:
    file, label, options = fields()
    parts = [("label", None, b"Dog"), FILE, ("options", None, b'{"top": 3}'), ("label", None, b"Siren")]
    read([*parts, ("file", "b.wav", b"DATA")], file, label, options)
    assert (file.values, label.values, options.value) == ([b"RIFF", b"DATA"], ["Dog", "Siren"], Options(top=3))


def test_fields_that_are_not_sent_have_no_value() -> None:
    file, label, options = fields()
    read([FILE], file, label, options)
    assert (file.value, label.values, options.value) == (b"RIFF", [], None)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ([FILE, FILE, FILE], "file"),
        ([("file", None, b"text")], "file"),
        ([("options", None, b"{}"), ("options", None, b"{}")], "options"),
        ([("colour", None, b"red")], "colour"),
        ([("colour", "a.wav", b"RIFF")], "colour"),
    ],
    ids=["too many files", "text for a file", "options twice", "unknown text", "unknown file"],
)
def test_parts_that_no_field_accepts_are_pointed_at(parts: Sequence[tuple[str, str | None, bytes]], name: str) -> None:
    with pytest.raises(RequestInvalid) as refused:
        read(parts, *fields())
    assert [error.pointer for error in refused.value.errors] == [f"/{name}"]


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([("file", None, b"/home/me/a.wav")], "The field file is a file: curl -F file=@PATH, with the @."),
        ([FILE, FILE, FILE], "The form may have 2 of file."),
        ([("options", None, b"{}"), ("options", None, b"{}")], "The form may have one options."),
        ([("audio", "a.wav", b"RIFF")], "The fields of this form are file, label, options; none is named audio."),
    ],
)
def test_parts_that_no_field_accepts_are_explained(
    parts: Sequence[tuple[str, str | None, bytes]], sentence: str
) -> None:
    with pytest.raises(RequestInvalid) as refused:
        read(parts, *fields())
    assert [refused.value.detail, *(error.detail for error in refused.value.errors)] == [sentence] * 2


def test_a_required_field_that_is_missing_is_named() -> None:
    with pytest.raises(RequestInvalid, match=r"The form has no file\.") as refused:
        read([("label", None, b"Dog")], *fields())
    assert [(error.pointer, error.detail) for error in refused.value.errors] == [("/file", "Field required.")]


def test_wrong_options_are_pointed_at() -> None:
    with pytest.raises(RequestValidationError) as refused:
        read([FILE, ("options", None, b'{"top": "x"}')], *fields())
    assert [error["loc"] for error in refused.value.errors()] == [("body", "options", "top")]


def test_options_that_are_no_json_are_pointed_at() -> None:
    with pytest.raises(RequestInvalid, match=r"The field options is not JSON: .*, line 1, column 2") as refused:
        read([FILE, ("options", None, b"{")], *fields())
    assert [error.pointer for error in refused.value.errors] == ["/options"]


def test_text_has_a_limit() -> None:
    with pytest.raises(RequestInvalid, match="label may have 8 bytes"):
        read([FILE, ("label", None, b"123456789")], *fields())


@pytest.mark.parametrize(("limit", "fits"), [(70, False), (140, True)])
def test_the_body_may_hold_as_many_files_as_the_fields_allow(limit: int, fits: bool) -> None:
    """Beside 64 KiB for boundaries; each file may have `upload_bytes`."""
    file = file_field("file", receive, limit=limit)
    parts = [("file", "a.wav", b"x" * 1900) for _ in range(70)]
    if fits:
        read(parts, file)
        assert len(file.values) == 70
        return
    with pytest.raises(UploadTooLarge):
        read(parts, file)
