"""An upload goes on, by tus and with its own client, when the API that receives it is killed."""

import hashlib
import io
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tusclient.client import TusClient

from app.storage import PART_BYTES
from tests.app.conftest import wav
from tests.end_to_end.deployment import TIMEOUT, Deployment, eventually
from tests.ports import free_ports

CHUNK = 3_000_000
VERSION = {"Tus-Resumable": "1.0.0"}


class PausedFile(io.BytesIO):
    """A file whose reader waits at a position until it may go on."""

    def __init__(self, content: bytes, position: int) -> None:
        super().__init__(content)
        self._position = position
        self.is_reached = threading.Event()
        self.may_go_on = threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() == self._position:
            self.is_reached.set()
            assert self.may_go_on.wait(TIMEOUT)
        return super().read(size)


@pytest.fixture(params=["folder", "s3"])
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deployment]:
    """A queue and a store of each kind, without housekeeping and workers."""
    store: dict[str, Any] = {}
    if request.param == "s3":
        on_s3 = request.getfixturevalue("seaweed").settings("killed")
        store = {name: getattr(on_s3, name) for name in on_s3.model_fields_set}
    deployment = Deployment(tmp_path / "deployment", Path("base"), {"auth": "off", "upload_idle": 300.0, **store})
    yield deployment
    deployment.close()
    print(deployment.logs())  # shown if the test fails


def test_an_upload_goes_on_after_its_api_was_killed(deployment: Deployment) -> None:
    content = wav(240.0, 44100)  # 21 MB
    port, other_port = free_ports(2)
    url = f"http://127.0.0.1:{port}/v1/audio"
    api = deployment.start_api(port)

    # Killed between two requests: the client repeats by itself what had no answer.
    file = PausedFile(content, 2 * CHUNK)
    upload = TusClient(url).uploader(file_stream=file, chunk_size=CHUNK, retries=round(TIMEOUT), retry_delay=1)
    failures: list[BaseException] = []

    def send(stop_at: int) -> None:
        try:
            upload.upload(stop_at)
        except BaseException as failure:
            failures.append(failure)

    sender = threading.Thread(target=send, args=(3 * CHUNK,))
    sender.start()
    assert file.is_reached.wait(TIMEOUT)
    deployment.kill(api)
    file.may_go_on.set()
    api = deployment.start_api(port)
    sender.join(TIMEOUT)
    assert not failures and not sender.is_alive() and upload.offset == 3 * CHUNK and upload.url is not None

    # Killed during a request: its whole pieces count.
    path = httpx.URL(upload.url).path
    head = f"PATCH {path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: {upload.offset}\r\n"
    head += f"Content-Type: application/offset+octet-stream\r\nContent-Length: {len(content) - upload.offset}\r\n\r\n"
    with (
        socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as connection,
        httpx.Client(timeout=TIMEOUT, headers=VERSION) as client,
    ):
        connection.sendall(head.encode() + content[upload.offset : 3 * PART_BYTES + 1000])

        def whole_pieces() -> bool:
            return client.head(upload.url or "").headers["upload-offset"] == str(3 * PART_BYTES)

        eventually(whole_pieces)
        deployment.kill(api)

    # Another API goes on, whether or not the first one ever comes back.
    deployment.start_api(other_port)
    rest = TusClient("unused").uploader(file_stream=io.BytesIO(content), url=f"http://127.0.0.1:{other_port}{path}")
    assert rest.offset == 3 * PART_BYTES
    rest.upload()
    audio = httpx.get(f"http://127.0.0.1:{other_port}{path}", timeout=TIMEOUT).raise_for_status().json()
    assert audio["sha256"] == hashlib.sha256(content).hexdigest()
    stored = httpx.get(f"http://127.0.0.1:{other_port}{audio['url']}", timeout=TIMEOUT).content
    assert hashlib.sha256(stored).hexdigest() == audio["sha256"]
    assert deployment.storage.keys("incoming") == []
