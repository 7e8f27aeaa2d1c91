"""Uploads over HTTP: stored whole and probed, or refused without leaving anything behind."""

import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.records.audio import store_key
from tests.app.conftest import Service, eventually, problem, wav

MIB = 1024 * 1024


def assert_nothing_left(service: Service) -> None:
    """Assert that store, ledger of orphans, records and partial files are empty."""
    assert service.stored_keys() == []
    assert service.orphans() == []
    assert service.deps.redis.keys("earmark:audio:*") == []
    assert [path for path in service.folder.rglob("*#*") if path.is_file()] == []


def test_an_upload_is_stored_and_probed(service: Service) -> None:
    content = wav(1.5, 22050, 2)
    answer = service.client.post("/v1/audio", files={"file": ("C:\\music/street.wav", content, "image/png")})
    assert answer.status_code == 201
    audio = answer.json()
    assert answer.headers["location"] == f"/v1/audio/{audio['id']}"
    assert audio == {
        "id": audio["id"],
        "status": "ready",
        "filename": "street.wav",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "content_type": "audio/wav",
        "container": "wav",
        "codec": "pcm_s16le",
        "duration": 1.5,
        "sample_rate": 22050,
        "channels": 2,
        "tracks": [
            {
                "track": 1,
                "codec": "pcm_s16le",
                "sample_rate": 22050,
                "channels": 2,
                "language": None,
                "title": None,
                "readable": True,
            }
        ],
        "created_at": audio["created_at"],
        "expires_at": audio["expires_at"],
        "url": f"/v1/audio/{audio['id']}/content",
        "peaks_url": f"/v1/audio/{audio['id']}/peaks",
        "spectrogram_url": f"/v1/audio/{audio['id']}/spectrogram",
    }
    assert audio["created_at"].endswith("Z") and audio["created_at"] < audio["expires_at"]
    assert service.client.get(answer.headers["location"]).json() == audio
    assert service.client.get(audio["url"]).content == content
    assert service.orphans() == []


def test_deletion_removes_record_and_bytes(service: Service) -> None:
    audio = service.upload()
    assert service.stored_keys() == [store_key(audio["id"])]
    assert service.client.delete(f"/v1/audio/{audio['id']}").status_code == 204
    assert_nothing_left(service)
    for answer in (
        service.client.get(f"/v1/audio/{audio['id']}"),
        service.client.get(audio["url"]),
        service.client.delete(f"/v1/audio/{audio['id']}"),
    ):
        problem(answer, 404, "not_found")


@pytest.mark.parametrize(
    "content",
    [b"", b"hello, this is text", b"PK\x03\x04" + bytes(500), wav()[:30], b"#EXTM3U\n/etc/passwd\n", bytes(70_000)],
    ids=["empty", "text", "zip", "cut header", "playlist", "zeros"],
)
def test_files_that_are_no_audio_leave_nothing(service: Service, content: bytes) -> None:
    answer = service.client.post("/v1/audio", files={"file": ("song.mp3", content, "audio/mpeg")})
    problem(answer, 422, "audio_undecodable")
    assert_nothing_left(service)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (wav(31.0, 8000), "audio_too_long"),
        (wav(0.1, 8000, 9), "audio_too_wide"),
        (wav(1.0, 4000), "audio_undecodable"),
    ],
)
def test_recordings_outside_the_limits_leave_nothing(folder_service: Service, content: bytes, code: str) -> None:
    problem(folder_service.client.post("/v1/audio", files={"file": ("a.wav", content)}), 422, code)
    assert_nothing_left(folder_service)


@pytest.mark.parametrize("announced", [True, False])
def test_files_that_are_too_large_are_refused_while_they_arrive(service: Service, announced: bool) -> None:
    content = wav(1.0) + bytes(5 * MIB)
    if announced:
        answer = service.client.post("/v1/audio", files={"file": ("a.wav", content)})
    else:
        head, tail = form_ends("a.wav")

        def chunked() -> Iterator[bytes]:
            yield head
            for start in range(0, len(content), 65536):
                yield content[start : start + 65536]
            yield tail

        answer = service.client.post("/v1/audio", content=chunked(), headers=FORM)
    problem(answer, 413, "upload_too_large")
    assert_nothing_left(service)


def test_a_file_of_exactly_the_limit_is_accepted(folder_service: Service) -> None:
    limit = folder_service.deps.settings.upload_bytes
    content = wav(1.0)
    content += bytes(limit - len(content))
    assert folder_service.upload(content)["bytes"] == limit
    problem(folder_service.client.post("/v1/audio", files={"file": ("a", content + b"1")}), 413, "upload_too_large")


FORM = {"Content-Type": "multipart/form-data; boundary=XX"}


def form_ends(filename: str) -> tuple[bytes, bytes]:
    """The bytes of a form before and after the content of its file."""
    head = f'--XX\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'
    return head.encode(), b"\r\n--XX--\r\n"


def disconnect(service: Service, content_start: bytes, announced: int) -> None:
    with socket.create_connection(service.address) as connection:
        head = f"POST /v1/audio HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM['Content-Type']}\r\n"
        connection.sendall(head.encode() + f"Content-Length: {announced}\r\n\r\n".encode() + content_start)
        eventually(lambda: service.deps.budgets.upload_room.used)


@pytest.mark.parametrize("size", [10, MIB])
def test_a_client_that_disconnects_leaves_nothing(service: Service, size: int) -> None:
    disconnect(service, form_ends("a.wav")[0] + os.urandom(size), 2 * MIB)
    eventually(lambda: not service.deps.budgets.uploads.used)
    assert_nothing_left(service)


def test_the_local_copy_for_the_probe_has_no_name(
    s3_service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a process that is killed during an upload leaves no file in its temporary folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    head, tail = form_ends("a.wav")
    files: list[list[Path]] = []  # in the temporary folder, during the upload

    def chunks() -> Iterator[bytes]:
        yield head + wav(2.0)
        eventually(lambda: s3_service.deps.budgets.upload_room.used)
        files.append(list(tmp_path.iterdir()))
        yield tail

    assert s3_service.client.post("/v1/audio", content=chunks(), headers=FORM).status_code == 201
    assert files == [[]]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b"", None),
        (b"--XX--\r\n", "/file"),
        (b'--XX\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n--XX--\r\n', "/file"),
        (b'--XX\r\nContent-Disposition: form-data; name="other"; filename="a"\r\n\r\nabc\r\n--XX--\r\n', "/other"),
        (b"--XX\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--XX--\r\n", None),
        (b"--XX\r\n\r\nabc\r\n--XX--\r\n", None),
        (b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nab', None),
        (b"nonsense", None),
        (b"--XX\r\n" + b"A: b\r\n" * 1000 + b"\r\n", None),
    ],
    ids=["empty", "no part", "no file", "other field", "no name", "no header", "cut", "nonsense", "headers"],
)
def test_broken_forms_are_refused_and_leave_nothing(folder_service: Service, body: bytes, pointer: str | None) -> None:
    document = problem(folder_service.client.post("/v1/audio", content=body, headers=FORM), 422, "request_invalid")
    assert [error["pointer"] for error in document.get("errors", [])] == ([pointer] if pointer else [])
    assert_nothing_left(folder_service)


def test_a_second_file_discards_the_first(service: Service) -> None:
    files = [("file", ("a.wav", wav())), ("file", ("b.wav", wav()))]
    problem(service.client.post("/v1/audio", files=files), 422, "request_invalid")
    assert_nothing_left(service)


@pytest.mark.parametrize(
    "kind", ["application/octet-stream", "audio/wav", "multipart/form-data", "multipart/mixed; boundary=X"]
)
def test_other_media_types_are_refused(folder_service: Service, kind: str) -> None:
    answer = folder_service.client.post("/v1/audio", content=wav(), headers={"Content-Type": kind})
    problem(answer, 415, "not_multipart")


def test_range_requests_follow_rfc_9110(service: Service) -> None:
    content = wav(0.1)
    size = len(content)
    url = service.upload(content)["url"]
    etag = service.client.get(url).headers["etag"]
    table = {
        "bytes=0-0": (206, content[:1], f"bytes 0-0/{size}"),
        "Bytes = 0-": (206, content, f"bytes 0-{size - 1}/{size}"),
        "bytes=100-199": (206, content[100:200], f"bytes 100-199/{size}"),
        "bytes=-5": (206, content[-5:], f"bytes {size - 5}-{size - 1}/{size}"),
        f"bytes=-{size + 9}": (206, content, f"bytes 0-{size - 1}/{size}"),
        f"bytes=10-{size + 9}": (206, content[10:], f"bytes 10-{size - 1}/{size}"),
        "bytes=5-2": (200, content, None),
        "bytes=0-1,5-6": (200, content, None),
        "bytes=a-b": (200, content, None),
        "bytes=-": (200, content, None),
        "lines=1-2": (200, content, None),
    }
    for header, (status, body, content_range) in table.items():
        answer = service.client.get(url, headers={"Range": header})
        assert (answer.status_code, answer.content) == (status, body), header
        assert answer.headers.get("content-range") == content_range
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["content-type"] == "audio/wav"
        head = service.client.head(url, headers={"Range": header})
        assert (head.status_code, head.content) == (status, b"")
        assert head.headers["content-length"] == str(len(body))
    for header in (f"bytes={size}-", f"bytes={size + 5}-{size + 9}", "bytes=-0"):
        answer = service.client.get(url, headers={"Range": header})
        problem(answer, 416, "range_not_satisfiable")
        assert answer.headers["content-range"] == f"bytes */{size}"
    assert service.client.get(url, headers={"Range": "bytes=0-0", "If-Range": etag}).status_code == 206
    assert service.client.get(url, headers={"Range": "bytes=0-0", "If-Range": '"old"'}).content == content
    assert service.client.get(url, headers={"If-None-Match": f'"x", {etag}'}).status_code == 304
    for known in (f"W/{etag}", "*"):
        assert service.client.get(url, headers={"If-None-Match": known}).status_code == 304


def test_audio_in_use_cannot_be_deleted(service: Service) -> None:
    mixture, example = service.upload(), service.upload()
    job = service.separate(
        mixture={"audio_id": mixture["id"]}, targets=[{"name": "x", "examples": [{"audio_id": example["id"]}]}]
    )
    for audio in (mixture, example):
        refusal = problem(service.client.delete(f"/v1/audio/{audio['id']}"), 409, "audio_in_use")
        assert "wait until it has finished, or cancel it" in refusal["detail"]
    service.finish(job["id"])
    for audio in (mixture, example):
        assert service.client.delete(f"/v1/audio/{audio['id']}").status_code == 204


@pytest.mark.parametrize("name", ["aud_1", "sep_01HZZZZZZZZZZZZZZZZZZZZZZZ", "..%2F..%2Fetc", "aud_" + "0" * 26, "%00"])
def test_malformed_and_unknown_ids_are_not_found(folder_service: Service, name: str) -> None:
    problem(folder_service.client.get(f"/v1/audio/{name}"), 404, "not_found")


def test_file_names_are_sanitized(folder_service: Service) -> None:
    for filename, sanitized in (("../../a\x07 b.wav", "a b.wav"), ("x" * 999, "x" * 255), ("/", None)):
        head, tail = form_ends(filename)
        answer = folder_service.client.post("/v1/audio", content=head + wav() + tail, headers=FORM)
        assert answer.json()["filename"] == sanitized, answer.text
