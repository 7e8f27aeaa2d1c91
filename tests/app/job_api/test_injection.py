"""Names, ids and parameters that try to be paths, headers or commands: told apart from what they look like."""

import socket
import time
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.exceptions import RequestValidationError

from app.errors import RequestInvalid
from app.http.validation import validate
from app.separations import names
from app.separations.schemas import SeparationCreate
from tests.app.audio.test_audio import FORM, form_ends
from tests.app.conftest import Service, wav

NASTY = [
    *(
        "../../etc/passwd",
        "..%2f..%2fetc",
        "..\\..\\x",
        "/etc/passwd",
        "a\r\nSet-Cookie: x=y",
        "a\nb",
        "a\rb",
        "a\x00b",
        "\x7f",
    ),
    *(
        "ü",
        "名前",
        "\u202egpj.exe",
        "\ud7ff",
        "a" * 500,
        "%0d%0aX-Evil:%201",
        "*",
        "?",
        "#",
        ";rm -rf /",
        "$(id)",
        "`id`",
    ),
    *(
        "' OR 1=1 --",
        '"><script>',
        "{{7*7}}",
        "aud_*",
        "earmark:audio:*",
        "a b",
        ".",
        "..",
        "...",
        "-",
        "con",
        "\u2028",
        "%",
    ),
]


def is_unsafe(answer: bytes | str) -> bool:
    text = answer.decode("latin-1") if isinstance(answer, bytes) else answer
    return any(word in text.lower() for word in ("root:", "traceback", "x-evil", "set-cookie"))


def test_malicious_ids_are_not_found_on_any_path(folder_service: Service) -> None:
    """Every path of the document with every malicious id: a response below 500 without injected headers."""
    ours = set(folder_service.client.get("/livez").headers) | {"allow", "cache-control", "location"}
    asked = 0
    for path, calls in folder_service.client.get("/openapi.json").json()["paths"].items():
        if "{" not in path:
            continue
        for nasty in NASTY:
            filled = "/".join(quote(nasty, safe="") if step.startswith("{") else step for step in path.split("/"))
            method = next(iter(calls)).upper()
            answer = folder_service.client.request(method, filled)
            # A dot alone is folded away by clients: it is another address then.
            assert answer.status_code in ((404, 405, 200) if nasty in (".", "..") else (404, 422)), (
                filled,
                answer.text,
            )
            assert set(answer.headers) <= ours and not is_unsafe(str(answer.headers)), filled
            asked += 1
    assert asked > 300


def test_raw_paths_reach_no_file(folder_service: Service) -> None:
    for target in (
        *("/../../../../etc/passwd", "/docs/../../../etc/passwd", "/docs/..%2f..%2f..%2fetc%2fpasswd", "//etc/passwd"),
        *(
            "/v1/audio/../../livez",
            "/v1/audio/%2e%2e/%2e%2e/x",
            "http://other.example/v1/audio/x",
            "/docs/%00",
            "/\x01",
        ),
    ):
        with socket.create_connection(folder_service.address, timeout=60) as connection:
            connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode("latin-1"))
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        assert not is_unsafe(answer) and b" 500 " not in answer.split(b"\r\n")[0], target


@pytest.mark.parametrize(
    "nasty", [name for name in NASTY if "\x00" not in name and "\n" not in name and "\r" not in name]
)
def test_file_names_stay_text(folder_service: Service, nasty: str) -> None:
    head, tail = form_ends(nasty.replace("\\", "\\\\").replace('"', '\\"'))
    answer = folder_service.client.post("/v1/audio", content=head + wav(0.05) + tail, headers=FORM)
    assert answer.status_code == 201, answer.text
    kept = answer.json()["filename"]
    assert kept is None or (kept.isprintable() and "/" not in kept and "\\" not in kept and len(kept) <= 255)
    content = folder_service.client.get(answer.json()["url"])
    assert content.status_code == 200 and not is_unsafe(str(content.headers))
    assert all(key.count("/") == 1 for key in folder_service.stored_keys())


def is_name(text: str) -> bool:
    try:
        return names.normalize(text) == text
    except ValueError:
        return False


@pytest.mark.parametrize("nasty", [text for text in NASTY if not is_name(text)])
def test_what_names_may_not_have_is_refused(folder_service: Service, nasty: str) -> None:
    audio = folder_service.recording()["id"]
    for target in ({"name": nasty, "label": "Dog"}, {"label": nasty}):
        body = {"mixture": {"audio_id": audio}, "targets": [target]}
        answer = folder_service.client.post("/v1/separations", json=body)
        assert answer.status_code == 422 and not is_unsafe(answer.text)


@pytest.mark.parametrize("nasty", [text for text in NASTY if is_name(text)])
def test_target_names_stay_text(folder_service: Service, nasty: str) -> None:
    job = folder_service.separate(targets=[{"name": nasty, "label": "Dog"}])
    assert job["targets"][0]["name"] == nasty
    folder_service.finish(job["id"], {nasty: b"0123456789"})
    (stem,) = folder_service.client.get(job["url"]).json()["stems"]
    content = folder_service.client.get(stem["url"], params={"download": 1})
    assert content.content == b"0123456789" and stem["name"] == nasty
    assert not {"x-evil", "set-cookie"} & set(content.headers)
    assert all(key.count("/") == (3 if key.startswith("separations/") else 1) for key in folder_service.stored_keys())


@pytest.mark.parametrize(
    "sent",
    [
        {"targets": [0] * 500_000},
        {"targets": [{}] * 340_000},
        {"targets": [{"label": "Dog"}] * 70_000},
        {"targets": [{"name": "x", "spans": [{}] * 300_000}]},
        {"targets": [{"name": "x", "embedding": [""] * 60_000}]},
        {"metadata": {str(number): 0 for number in range(90_000)}},
        {str(number): 0 for number in range(90_000)},
    ],
    ids=lambda sent: f"{next(iter(sent))}, {len(str(sent))}",
)
def test_a_body_full_of_errors_costs_little(sent: dict[str, Any]) -> None:
    """A megabyte holds half a million of them, and each takes longer to describe than to find."""
    began = time.thread_time()
    with pytest.raises((RequestValidationError, RequestInvalid)) as refused:
        validate(SeparationCreate, sent)
    assert time.thread_time() - began < 0.5
    assert not isinstance(refused.value, RequestValidationError) or len(refused.value.errors()) <= 256
