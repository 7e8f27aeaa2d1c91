"""The proxy of docker/ in front of a real API and store: what it limits, refuses, logs, and lets pages do."""

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.storage import Storage
from tests import programs
from tests.app.origins import ok, origin
from tests.browser import launched, opened
from tests.conftest import S3Server
from tests.end_to_end.deployment import FAST, eventually
from tests.end_to_end.recordings import noise
from tests.end_to_end.topology import Topology, topology, write_proxy
from tests.ports import free_ports

CONNECTIONS = 128  # of an address
CLIENT, NEIGHBOUR, STRANGER = "127.0.0.2", "127.0.0.3", "127.0.0.4"
GRANT = "opensesame"
# The proxy that terminates TLS, as far as it matters here: it names its clients and limits nothing.
FRONT = """
worker_processes 1;
daemon off;
pid %(folder)s/nginx.pid;
error_log stderr;
events { worker_connections 1024; }
http {
    access_log off;
    client_body_temp_path %(folder)s/body;
    proxy_temp_path %(folder)s/proxy;
    fastcgi_temp_path %(folder)s/fastcgi;
    uwsgi_temp_path %(folder)s/uwsgi;
    scgi_temp_path %(folder)s/scgi;
    server {
        listen 127.0.0.1:%(port)d;
        location / {
            proxy_http_version 1.1;
            proxy_request_buffering off;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_pass http://127.0.0.1:%(behind)d;
        }
    }
}
"""


@pytest.fixture(scope="module")
def page_port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server, page_port: int) -> Iterator[Topology]:
    if programs.find("nginx") is None:
        pytest.skip("nginx is not installed, and `make tools` could not fetch it")
    origins = f"http://localhost:{page_port}"
    with topology(tmp_path_factory.mktemp("proxy"), seaweed.settings, **FAST, cors_origins=origins) as running:
        running.start_apis(*free_ports(1))
        running.start_proxy(trusted="127.0.0.1,10.0.0.0/8")
        yield running
        print(running.read_logs()[-30_000:])  # shown if a test fails


@pytest.fixture(scope="module")
def front(deployment: Topology) -> str:
    """Run another nginx in front of the proxy; return its URL."""
    folder = deployment.folder / "front"
    folder.mkdir()
    (port,) = free_ports(1)
    text = FRONT % {"folder": folder, "port": port, "behind": deployment.proxy_port}
    (folder / "nginx.conf").write_text(text)
    program = deployment.spawn(
        "front", [str(programs.find("nginx")), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    )
    url = f"http://127.0.0.1:{port}"
    eventually(lambda: deployment.responds(program, f"{url}/livez"))
    return url


@contextlib.contextmanager
def held_connections(deployment: Topology, url: str, address: str) -> Iterator[None]:
    """Hold as many connections of an address as it may have, by bodies without an end."""
    start = (
        f"POST /v1/queries HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {deployment.key}\r\n"
        "Content-Type: application/json\r\nContent-Length: 99\r\n\r\n["
    )
    server = (httpx.URL(url).host, httpx.URL(url).port or 0)
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            held = stack.enter_context(socket.create_connection(server, source_address=(address, 0)))
            held.sendall(start.encode())
        yield


def live(url: str, address: str, **headers: str) -> httpx.Response:
    """Ask for `/livez` from an address of the loopback network."""
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address)) as client:
        return client.get(f"{url}/livez", headers=headers)


def exchange(port: int, request: bytes) -> httpx.Response:
    """Send bytes and return the response, which ends with its Content-Length."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(20)
        connection.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += (chunk := connection.recv(65536))
            assert chunk, received
        head, _, body = received.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = httpx.Headers([(name, value) for name, _, value in (line.partition(": ") for line in lines)])
        while len(body) < int(headers["content-length"]):
            body += connection.recv(65536)
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)


def assert_problem(response: httpx.Response, status: int, code: str) -> None:
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["type"] == f"urn:earmark:problem:{code}" and problem["title"] and problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"] != ""
    assert ("retry-after" in response.headers) == (status in (429, 502))


# Connections


def test_the_proxy_limits_the_connections_of_an_address(deployment: Topology) -> None:
    """The API itself is not behind the limit."""
    with held_connections(deployment, deployment.url, CLIENT):
        eventually(lambda: live(deployment.url, CLIENT).status_code == 429)
        assert_problem(live(deployment.url, CLIENT), 429, "rate_limited")
        for port in deployment.apis:
            assert httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=60).status_code == 200
    eventually(lambda: live(deployment.url, CLIENT).status_code == 200)


def test_clients_of_a_trusted_proxy_do_not_share_its_connections(deployment: Topology, front: str) -> None:
    with held_connections(deployment, front, CLIENT):
        eventually(lambda: live(front, CLIENT).status_code == 429)
        assert live(front, NEIGHBOUR).status_code == 200
        assert live(front, CLIENT, **{"X-Forwarded-For": "192.0.2.7"}).status_code == 429, "of what a client claims"
        through_two = {"X-Forwarded-For": f"192.0.2.7, {CLIENT}, 10.1.2.3"}
        assert live(deployment.url, "127.0.0.1", **through_two).status_code == 429, "both proxies are trusted"
        assert live(deployment.url, STRANGER, **{"X-Forwarded-For": CLIENT}).status_code == 200, "not trusted"
    eventually(lambda: live(front, CLIENT).status_code == 200)


def test_the_api_logs_the_client_that_a_trusted_proxy_names(deployment: Topology, front: str) -> None:
    (api,) = deployment.apis.values()
    for number, (url, address) in enumerate([(front, NEIGHBOUR), (front, CLIENT), (deployment.url, STRANGER)]):
        live(url, address, **{"X-Request-Id": f"order-{number}", "X-Forwarded-For": "192.0.2.7"})
        lines = eventually(
            lambda number=number: [
                line for line in deployment.logs[api].read_text().splitlines() if f'"order-{number}"' in line
            ]
        )
        assert [json.loads(line)["client"] for line in lines] == [address]


def test_slow_clients_are_cut_off(deployment: Topology) -> None:
    """nginx allows 10 s for headers, by default 60; the timeout of bodies, 30 s, is tested on the API."""
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", deployment.proxy_port)) as slow:
        slow.settimeout(40)
        slow.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        with contextlib.suppress(ConnectionError):
            assert b"200" not in slow.recv(1024)
    assert time.monotonic() - started > 5, "a client may need a while"


# Problems


@pytest.mark.parametrize(
    ("request_line", "header", "status", "code"),
    [
        ("GET /metrics", "", 404, "not_found"),
        ("POST /v1/audio", f"Content-Length: {7 << 30}", 413, "upload_too_large"),
        ("DELETE /earmark/audio/a", "", 405, "method_not_allowed"),
        ("GET /earmark/audio/a", "", 403, "signature_invalid"),
        ("PUT /earmark/audio/a", "Content-Length: 0", 403, "signature_invalid"),
        ("GET /earmark/?list-type=2", "", 403, "signature_invalid"),
        ("GET /v1/audio/a", "", 401, "unauthorized"),  # of the API, through the proxy
    ],
)
def test_every_layer_refuses_with_a_problem(
    deployment: Topology, request_line: str, header: str, status: int, code: str
) -> None:
    lines = [f"{request_line} HTTP/1.1", "Host: x", "X-Request-Id: order-19", *header.splitlines(), "", ""]
    response = exchange(deployment.proxy_port, "\r\n".join(lines).encode())
    assert_problem(response, status, code)
    problem = response.json()
    assert (problem["request_id"], problem["instance"]) == ("order-19", request_line.split()[1].partition("?")[0])


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /livez HTTP/1.1\r\nHost: x\r\nHost: y", 400),
        ("GET /livez HTTP/1.1", 400),  # without a host
        ("GET /livez\x01 HTTP/1.1\r\nHost: x", 400),
        ("G=T /livez HTTP/1.1\r\nHost: x", 400),
        ("GET /livez HTTP/2.0\r\nHost: x", 505),
        ("POST /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip", 501),
        (f"GET /{'a' * 20_000} HTTP/1.1\r\nHost: x", 414),
        (f"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: {'a' * 20_000}", 431),
    ],
)
def test_what_is_not_http_is_refused_with_a_problem(deployment: Topology, head: str, status: int) -> None:
    assert_problem(exchange(deployment.proxy_port, f"{head}\r\n\r\n".encode()), status, "request_invalid")


def test_the_api_itself_refuses_what_is_not_http_with_a_problem(deployment: Topology) -> None:
    (port,) = deployment.apis
    assert_problem(exchange(port, b"GET /livez\x01 HTTP/1.1\r\nHost: x\r\n\r\n"), 400, "request_invalid")


def test_objects_that_are_gone_are_problems(deployment: Topology) -> None:
    url = Storage.open(deployment.settings).signed_url("audio/none", 60)
    assert_problem(httpx.get(url, timeout=60), 404, "not_found")


def test_ranges_that_an_object_does_not_have_are_problems(deployment: Topology) -> None:
    storage = Storage.open(deployment.settings)
    storage.put("audio/short", b"fLaC")
    url = storage.signed_url("audio/short", 60)
    assert httpx.get(url, headers={"Range": "bytes=1-2"}, timeout=60).content == b"La"
    assert_problem(httpx.get(url, headers={"Range": "bytes=7-9"}, timeout=60), 416, "range_not_satisfiable")


def test_an_api_and_a_store_that_are_away_are_problems(deployment: Topology) -> None:
    port, closed = free_ports(2)
    away = f"127.0.0.1:{closed}"
    command = write_proxy(deployment.folder / "nginx-alone", port, [away], away)
    program = deployment.spawn("proxy-alone", command, programs.environment())
    url = f"http://127.0.0.1:{port}"
    eventually(lambda: deployment.responds(program, f"{url}/metrics", 404))
    assert_problem(httpx.get(f"{url}/v1/models", timeout=60), 502, "unavailable")
    assert_problem(httpx.get(f"{url}/earmark/audio/a", timeout=60), 502, "store_unavailable")


# Pages


UPLOAD = """async ([api, key]) => {
  const headers = { Authorization: `Bearer ${key}`, "Content-Type": "application/json" };
  const file = document.querySelector("input").files[0];
  const body = JSON.stringify({ filename: file.name, bytes: file.size, content_type: file.type });
  const announced = await fetch(`${api}/v1/audio/presign`, { method: "POST", headers, body });
  const { audio, upload } = await announced.json();
  const put = await fetch(upload.url, { method: upload.method, headers: upload.headers, body: file });
  const done = await (await fetch(`${api}/v1/audio/${audio.id}/complete`, { method: "POST", headers })).json();
  const content = await fetch(new URL(done.url, api), { headers: { Range: "bytes=0-3" } });
  const refused = await fetch(upload.url.replace("Signature=", "Signature=0"));
  return { put: put.status, size: done.bytes, content: await content.text(), code: (await refused.json()).code };
}"""


def test_a_page_of_another_origin_uploads_to_the_store(deployment: Topology, page_port: int, tmp_path: Path) -> None:
    recording = noise(1.0)
    (tmp_path / "street.flac").write_bytes(recording)
    with origin("127.0.0.1", page_port) as server, launched() as browser, opened(browser) as page:
        server.answer = ok(b"<input type=file>", "Content-Type: text/html")
        page.goto(f"http://localhost:{page_port}/")
        page.locator("input").set_input_files(tmp_path / "street.flac")
        outcome = page.evaluate(UPLOAD, [deployment.url, deployment.key])
    assert outcome == {"put": 200, "size": len(recording), "content": "fLaC", "code": "signature_invalid"}


# Logs


def test_no_log_holds_a_grant(deployment: Topology) -> None:
    """Tokens of URLs and signatures, also where nginx cannot reach what it proxies, and in what browsers refer to."""
    storage = Storage.open(deployment.settings)
    signed = storage.signed_url("audio/none", 60)
    signature = re.findall(r"X-Amz-Signature=(\w{32,})", signed)[0]
    assert httpx.get(signed, timeout=60).status_code == 404
    too_large = (
        f'POST /v1/audio?a="b&token={GRANT} HTTP/1.1\r\nHost: x\r\nReferer: http://x/y?token={GRANT}\r\n'
        f"X-Request-Id: order-20\r\nContent-Length: {7 << 30}\r\n\r\n"
    )
    assert exchange(deployment.proxy_port, too_large.encode()).status_code == 413
    ((port, api),) = deployment.apis.items()
    api.kill()
    api.wait()
    away = httpx.get(
        f"{deployment.url}/v1/audio/a/content?token={GRANT}", headers={"Referer": f"http://x/?{GRANT}"}, timeout=60
    )
    assert_problem(away, 502, "unavailable")
    long = httpx.get(f"{deployment.url}/v1/{'a' * 1800}?pad={'b' * 400}&token={GRANT}", timeout=60)  # cut by nginx
    assert_problem(long, 502, "unavailable")
    deployment.start_apis(port)
    eventually(lambda: deployment.responds(deployment.proxy, f"{deployment.url}/livez"))
    assert httpx.get(f"{deployment.url}/v1/audio/a/content?token={GRANT}", timeout=60).status_code == 401

    log = deployment.logs[deployment.proxy]
    eventually(lambda: log.read_text().count("Connection refused") >= 2)
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert any(line["path"].endswith("/audio/none") and line["status"] == 404 for line in lines)
    assert any((line["method"], line["path"], line["status"]) == ("POST", "/v1/audio", 413) for line in lines)
    assert all(line["client"].startswith("127.0.0.") and line["request_id"] for line in lines)
    text = deployment.read_logs()
    assert 'request: "GET /v1/audio/a/content?... HTTP/1.1"' in text, "the rest of the line remains"
    assert GRANT not in text and signature not in text
