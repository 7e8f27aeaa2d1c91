"""Fuzzing of uploads: mutated files get a response, and leave neither memory, files nor records.

One run sends all files, 100 in `make test` and 12,000 in `make soak` (EARMARK_SOAK_UPLOADS: as many), and each test
checks one property of it. The numbers are printed.
"""

import gc
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.media.zygote import CHILD_NAME
from app.settings import Settings
from models.errors import MediaError
from tests.app.audio.test_audio import assert_nothing_left
from tests.app.conftest import LIMITS, Service, serve
from tests.app.media.mutations import MUTATIONS, MutatedFile, mutate, write_originals
from worker.decode import decode

SOAK = bool(os.environ.get("EARMARK_SOAK"))
COUNT = int(os.environ.get("EARMARK_SOAK_UPLOADS", 12_000)) if SOAK else 100
DECODE_EVERY = 4 if SOAK else 16  # of the accepted uploads, by number
CONCURRENCY = 4
MAX_GROWTH = 48 << 20  # bytes of memory

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]


@dataclass(frozen=True)
class Outcome:
    """What came of one file: the response to its upload and, if it was accepted, to further requests."""

    file: MutatedFile
    upload: httpx.Response
    peaks: httpx.Response | None = None
    decoded: str | None = None  # error code of the worker's decoder, or `sound`
    deletion: httpx.Response | None = None


@dataclass
class Run:
    """Outcomes of all files. Only counts are kept of good ones, since the memory of this process is measured."""

    service: Service
    temporary: Path  # the folder for temporary files of front end and worker
    growth: int = 0  # of memory, in bytes
    mutations: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)  # of refusals
    peaks: Counter[int] = field(default_factory=Counter)
    decoded: Counter[str] = field(default_factory=Counter)
    deletions: Counter[int] = field(default_factory=Counter)
    bad: list[tuple[int, str, str]] = field(default_factory=list)  # number, mutation, response
    leaks: list[tuple[int, str, str]] = field(default_factory=list)  # responses that show internals

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.mutations[outcome.file.mutation] += 1
        self.statuses[outcome.upload.status_code] += 1
        self._check(outcome.file, outcome.upload, (201, 413, 422))
        if outcome.upload.status_code != 201:
            self.codes[outcome.upload.json().get("code", "")] += 1
        if outcome.peaks is not None:
            self.peaks[outcome.peaks.status_code] += 1
            self._check(outcome.file, outcome.peaks, (200, 422))
        if outcome.decoded is not None:
            self.decoded[outcome.decoded] += 1
        if outcome.deletion is not None:
            self.deletions[outcome.deletion.status_code] += 1

    def _check(self, file: MutatedFile, response: httpx.Response, good: tuple[int, ...]) -> None:
        if response.status_code not in good:
            self.bad.append((file.number, file.mutation, response.text))
        if "/tmp" in response.text or "Traceback" in response.text:
            self.leaks.append((file.number, file.mutation, response.text))


def send(file: MutatedFile, client: httpx.Client, temporary: Path) -> Outcome:
    """Upload a file, and delete it if it was accepted; decode some of these to the end, as peaks and as the worker."""
    upload = client.post("/v1/audio", files={"file": ("a.wav", file.content)})
    if upload.status_code != 201:
        return Outcome(file, upload)
    url = upload.headers["location"]
    peaks, decoded = None, None
    if file.number % DECODE_EVERY == 0:
        peaks = client.get(f"{url}/peaks", params={"points": 100})
        decoded = decode_as_worker(file, temporary)
    return Outcome(file, upload, peaks, decoded, client.delete(url))


def decode_as_worker(file: MutatedFile, temporary: Path) -> str:
    """Return `sound`, or the code of the typed error that the worker's decoder raises."""
    path = temporary / f"{file.number}.upload"
    path.write_bytes(file.content)
    try:
        decode(path, path.with_suffix(".wav"))
        return "sound"
    except MediaError as error:
        return error.code
    finally:
        path.unlink()
        path.with_suffix(".wav").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def run(valkey: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Send all files to a front end of this module's own, a tenth of them before memory is measured."""
    folder = tmp_path_factory.mktemp("mutated")
    temporary = folder / "temporary"
    temporary.mkdir()
    originals = write_originals(folder)
    files = (mutate(number, originals) for number in range(COUNT))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(temporary))
        for service in serve(Settings(home=folder, redis_url=valkey.connection_url, **LIMITS), folder):
            service.deps.redis.flushall()
            run = Run(service, temporary)
            with (
                httpx.Client(base_url=service.client.base_url, timeout=120) as client,
                ThreadPoolExecutor(CONCURRENCY) as senders,
            ):
                send_one = partial(send, client=client, temporary=temporary)
                for file in islice(files, COUNT // 10):
                    run.add(send_one(file))
                before = _memory()
                while batch := list(islice(files, 4 * CONCURRENCY)):
                    for outcome in senders.map(send_one, batch):
                        run.add(outcome)
                run.growth = _memory() - before
            yield run


def _memory() -> int:
    """Resident bytes of this process, in which the front end runs."""
    gc.collect()
    return psutil.Process().memory_info().rss


def test_every_file_gets_a_response(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        outcomes = {"201": run.statuses[201], **run.codes}
        print(f"\n{run.statuses.total()} mutated uploads: {outcomes}; peaks {dict(run.peaks)};", end=" ")
        print(f"decoded {dict(run.decoded)}; memory {run.growth / 2**20:+.1f} MiB")
    assert run.bad == []
    assert run.statuses.total() == COUNT


def test_every_mutation_is_tried(run: Run) -> None:
    assert set(run.mutations) == set(MUTATIONS)


def test_some_files_are_accepted_and_some_refused(run: Run) -> None:
    assert 0 < run.statuses[201] < COUNT


def test_responses_show_no_internals(run: Run) -> None:
    assert run.leaks == []


def test_accepted_files_are_decoded_to_the_end_or_refused(run: Run) -> None:
    """By the front end, for peaks, and by the worker, whose decoder raises typed errors only."""
    assert set(run.peaks) <= {200, 422}
    assert run.peaks.total() == run.decoded.total() > 0


def test_accepted_files_can_be_deleted(run: Run) -> None:
    assert run.deletions == {204: run.statuses[201]}


def test_memory_does_not_grow(run: Run) -> None:
    assert run.growth < MAX_GROWTH


def test_no_temporary_file_is_left(run: Run) -> None:
    assert list(run.temporary.iterdir()) == []


def test_no_object_and_no_record_is_left(run: Run) -> None:
    assert_nothing_left(run.service)


def test_no_child_process_is_left(run: Run) -> None:
    children = psutil.Process().children(recursive=True)
    assert [child for child in children if child.name() == CHILD_NAME] == []


def test_an_intact_file_is_accepted_afterwards(run: Run) -> None:
    audio = run.service.upload()
    assert run.service.client.delete(f"/v1/audio/{audio['id']}").status_code == 204
