"""One key uses all that its budgets allow: the API keeps its memory, and another key its time.

`make soak` runs the attacks at full length and writes what another key notices of them into docker/capacity.md.
"""

import contextlib
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.keys.repository import KeyRepository
from app.storage import CONCURRENT_PARTS, PART_BYTES
from tests import media_files
from tests.app.audio.test_audio import FORM
from tests.app.conftest import wav
from tests.conftest import S3Server
from tests.end_to_end.figures import SOAK, Figures
from tests.end_to_end.topology import Topology, topology
from tests.ports import free_ports

MIB = 1 << 20
UPLOADS = 5  # at once, of one key
LARGE = (500 if SOAK else 48) * MIB
LIMIT = 2048 * MIB  # of the API's memory in docker-compose.yml (tests/docker/test_resources.py)
UPLOAD = (CONCURRENT_PARTS + 1) * PART_BYTES  # of memory of a write of the store, at most
SPARE = 64 * MIB
CONNECTIONS = 24
SECONDS = 30.0  # that an attack lasts
FEW = 10  # requests of the other key before an attack
HOURS = 52  # of a recording without an end
PATIENCE = 900.0  # s until an answer to 500 MiB, of which a busy machine needs most for their digest and the store
MOST = 10  # times as long as before: a key that shares its slots with the attack waits 100 times as long and more

# In small, `test_worst_day.py` has both attacks, and `tests/app/audio/test_upload_budgets.py` their bounds.
measurement = pytest.mark.skipif(not SOAK, reason="compares durations: make soak")
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800 if SOAK else 300)]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server) -> Iterator[Topology]:
    """An API on S3, whose folder for temporary files is on a disk, as in docker-compose.yml."""
    folder = tmp_path_factory.mktemp("capacity")
    with pytest.MonkeyPatch.context() as patched, topology(folder, seaweed.settings) as running:
        patched.setenv("TMPDIR", str(folder))
        running.start_apis(*free_ports(1))
        yield running


@pytest.fixture
def client(deployment: Topology) -> Iterator[Callable[[], httpx.Client]]:
    """Return a function that creates a key, without limits, and returns a client of it."""
    with contextlib.ExitStack() as clients:
        [port] = deployment.apis

        def create() -> httpx.Client:
            _, key = KeyRepository(deployment.redis).create("capacity", 0, 0, 1)
            headers = {"Authorization": f"Bearer {key}"}
            limits = httpx.Limits(max_connections=None)
            return clients.enter_context(
                httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=PATIENCE, limits=limits)
            )

        yield create


def upload(client: httpx.Client, content: bytes) -> httpx.Response:
    return client.post("/v1/audio", files={"file": ("a.wav", content)})


# Memory


@contextlib.contextmanager
def memory_limit(process: psutil.Process, limit: int) -> Iterator[None]:
    """Limit the memory of a process, its children and their page cache, as a container does, if this machine can."""
    group = Path(f"/sys/fs/cgroup/memory/earmark-{process.pid}")
    try:
        group.mkdir()
    except OSError:
        yield
        return
    (group / "memory.limit_in_bytes").write_text(str(limit))
    (group / "cgroup.procs").write_text(str(process.pid))
    try:
        yield
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(pid)
        group.rmdir()


def silence(size: int) -> Iterator[bytes]:
    """Yield a form with a WAV file of about `size` bytes."""
    yield b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    yield media_files.wav_bytes(b"", 2, 48000, 16, said=size)
    for _ in range(size // MIB):
        yield bytes(MIB)
    yield b"\r\n--XX--\r\n"


def test_large_uploads_need_no_memory(deployment: Topology, client: Callable[[], httpx.Client]) -> None:
    [api] = [psutil.Process(program.pid) for program in deployment.apis.values()]
    key, finished = client(), threading.Event()
    assert upload(key, wav()).status_code == 201
    before = peak = api.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not finished.wait(0.05):
            peak = max(peak, api.memory_info().rss)

    def send(_: int) -> httpx.Response:
        """Upload, again where the request has waited too long for the store, as on a busy machine."""
        while (answer := key.post("/v1/audio", content=silence(LARGE), headers=FORM)).status_code == 429:
            time.sleep(int(answer.headers["retry-after"]))
        return answer

    with memory_limit(api, LIMIT), ThreadPoolExecutor(UPLOADS + 1) as threads:
        watching = threads.submit(watch)
        try:
            answers = list(threads.map(send, range(UPLOADS)))
        finally:
            finished.set()
        watching.result()
    assert [answer.status_code for answer in answers] == [201] * UPLOADS, deployment.read_logs()[-2000:]
    print(f"{UPLOADS} uploads of {LARGE / MIB:.0f} MiB: {before / MIB:.0f} MiB before, {peak / MIB:.0f} at most")
    writes = min(UPLOADS, deployment.settings.store_slots)
    assert peak - before < writes * UPLOAD + SPARE < UPLOADS * LARGE
    for answer in answers:
        assert key.delete(answer.headers["location"]).status_code == 204


# Time


@dataclass(frozen=True)
class Attack:
    """A request that one key repeats on all connections: POST of a file, or GET of one path after the other."""

    url: str
    headers: dict[str, str]
    paths: list[str]
    content: bytes | None = None

    def run(self, stop: Any, statuses: Any) -> None:
        """Put a set into a queue, send requests until `stop` is set, and put the answers' statuses into the queue."""
        seen: set[int] = set()

        def repeat(number: int) -> None:
            path = self.paths[number % len(self.paths)]
            with httpx.Client(base_url=self.url, headers=self.headers, timeout=PATIENCE) as client:
                while True:
                    answer = client.get(path) if self.content is None else upload(client, self.content)
                    seen.add(answer.status_code)

        for number in range(CONNECTIONS):
            threading.Thread(target=repeat, args=(number,), daemon=True).start()
        statuses.put(seen)
        stop.wait()
        statuses.put(seen)


@contextlib.contextmanager
def run(attack: Attack) -> Iterator[set[int]]:
    """Run an attack in a process of its own while the block runs; yield a set that gets the answers' statuses."""
    spawn = multiprocessing.get_context("spawn")
    stop, statuses, result = spawn.Event(), spawn.Queue(), set[int]()
    process = spawn.Process(target=attack.run, args=(stop, statuses), daemon=True)
    process.start()
    statuses.get(timeout=PATIENCE)
    try:
        yield result
    finally:
        stop.set()
    result.update(statuses.get(timeout=PATIENCE))
    process.join()
    statuses.close()
    statuses.join_thread()


def measure(request: Callable[[], object], until: Callable[[int], bool]) -> list[float]:
    """Send requests one after the other until a condition on their number holds; return the seconds of each."""
    seconds = []
    while not until(len(seconds)):
        start = time.monotonic()
        request()
        seconds.append(time.monotonic() - start)
    return seconds


def compare(figures: Figures, what: str, noticed: str, request: Callable[[], object], attack: Attack) -> None:
    """Measure another key's request before and during an attack; add the row."""
    before = measure(request, lambda count: count >= FEW)
    with run(attack) as statuses:
        time.sleep(1)
        end = time.monotonic() + SECONDS
        during = measure(request, lambda count: count >= FEW and time.monotonic() > end)
    middle = [statistics.median(times) for times in (before, during)]
    figures.add("capacity", what, noticed, *(f"{x:.2f} s" for x in (middle[0], max(before), middle[1], max(during))))
    assert statuses and statuses <= {422, 429}
    assert middle[1] < MOST * middle[0]


@measurement
def test_files_that_cannot_be_decoded_do_not_delay_the_uploads_of_others(
    client: Callable[[], httpx.Client], tmp_path: Path, figures: Figures
) -> None:
    media_files.write_undecodable_packets(tmp_path / "a.mka", 750_000)
    content = (tmp_path / "a.mka").read_bytes()
    greedy, other = client(), client()
    compare(
        figures,
        f"{CONNECTIONS} connections upload {len(content) / MIB:.1f} MiB of Matroska, no packet of which can be decoded",
        "upload of 2 s",
        lambda: upload(other, wav(2.0)).raise_for_status(),
        Attack(str(greedy.base_url), dict(greedy.headers), ["/v1/audio"], content),
    )


@measurement
def test_recordings_without_an_end_do_not_delay_the_peaks_of_others(
    client: Callable[[], httpx.Client], tmp_path: Path, figures: Figures
) -> None:
    media_files.write_flac_silence(tmp_path / "a.flac", HOURS * 3600, rate=8000, hide_length=True)
    greedy, other = client(), client()
    endless = [upload(greedy, (tmp_path / "a.flac").read_bytes()).json()["id"] for _ in range(6)]

    def draw() -> None:
        audio_id = upload(other, wav(10.0)).json()["id"]
        other.get(f"/v1/audio/{audio_id}/peaks").raise_for_status()

    compare(
        figures,
        f"{CONNECTIONS} connections ask for the peaks of FLACs of {HOURS} h without a length",
        "upload of 10 s and its peaks",
        draw,
        Attack(str(greedy.base_url), dict(greedy.headers), [f"/v1/audio/{audio_id}/peaks" for audio_id in endless]),
    )
