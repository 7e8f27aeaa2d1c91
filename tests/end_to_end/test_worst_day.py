"""One key's worst day is nobody else's: it attacks in every known way while another key uploads, polls and separates.

In full under `make soak`, where the other key's times before and during the attacks become a table in docker/README.md.
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import soundfile

from app.keys.repository import KeyRepository
from tests.conftest import REPOSITORY, S3Server
from tests.end_to_end.attacks import Account, Plan
from tests.end_to_end.deployment import FAST, eventually
from tests.end_to_end.figures import SOAK, Figures
from tests.end_to_end.topology import Topology, topology
from tests.media_files import write_undecodable_packets
from tests.ports import free_ports

BEFORE, DURING = (60.0, 120.0) if SOAK else (0.5, 2.0)  # s
# Workers have machines of their own in a deployment: here they yield to the rest, and long jobs to short ones.
NICENESS, SHORT_NICENESS = 10, 5
SCALE = 1.0 if SOAK else 0.01  # of the files of the attacks
COUNTS = {
    True: {"streams": 550, "probes": 24, "waveforms": 6, "stalled": 20, "name_bytes": 1_000_000, "pause": 0.2},
    False: {"streams": 45, "probes": 2, "waveforms": 2, "stalled": 2, "name_bytes": 900_000, "pause": 0.02},
}[SOAK]
# Defaults in full; otherwise low enough for the attacks of a few seconds to use them up.
BOUNDS = {} if SOAK else {"connections": 400, "requests_in_progress": 120, "event_streams": 60}
RATE, AUDIO_SECONDS = 600, 86_400  # the defaults of `keys create`
REFUSALS = {"404", "408", "409", "413", "422", "429", "503"}
SEPARATION = "separation, from its request to its end"
# s between two requests of the other key's threads: in full, it alone uses less than half of two slow cores.
PAUSE = 0.25 if SOAK else 0.05
PATIENCE = 30.0  # s after the end of a measurement, for the separation that is not done

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900 if SOAK else 300)]


@dataclass
class Times:
    """Durations of a key's operations, in seconds, and what failed."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    canceled: int = 0  # separations that were still waiting `PATIENCE` after the end; their waits are counted

    def percentile(self, operation: str, percent: float) -> float:
        """Return a percentile of the durations of one operation."""
        return float(np.percentile(self.seconds[operation], percent))


class Client:
    """The other key: a thread for each operation, one request after another.

    An operation may return its duration, where it is not that of the whole call.
    """

    def __init__(self, url: str, key: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=300, headers={"Authorization": f"Bearer {key}"})
        self._public = httpx.Client(base_url=url, timeout=30)
        file = io.BytesIO()
        noise = 0.1 * np.random.default_rng(7).standard_normal(16_000)
        soundfile.write(file, noise, 16_000, format="WAV", subtype="PCM_16")
        self._recording = file.getvalue()
        self._mixture = self._upload()
        self._job = self._separate(Times(), time.monotonic() + 300)

    def measure(self, seconds: float) -> Times:
        """Repeat every operation for so long, each at least once."""
        times, end = Times(), time.monotonic() + seconds
        operations: dict[str, Callable[[], object]] = {
            "upload of a second of sound": self._upload,
            "peaks of a new upload": self._peaks,
            "poll": lambda: self._require(self._client.get(self._job), 200),
            "all events of a finished job": lambda: self._require(self._client.get(f"{self._job}/events"), 200),
            SEPARATION: lambda: self._separate(times, end + PATIENCE),
            "`/livez`": lambda: self._require(self._public.get("/livez"), 200),
            "`/readyz`": lambda: self._require(self._public.get("/readyz"), 200),
        }

        def repeat(name: str, operation: Callable[[], object]) -> None:
            samples = times.seconds.setdefault(name, [])
            while not samples or time.monotonic() < end:
                begin = time.perf_counter()
                try:
                    seconds = operation()
                except (httpx.TransportError, AssertionError) as error:
                    times.failures.append(f"{name}: {error!r}")
                    return
                samples.append(seconds if isinstance(seconds, float) else time.perf_counter() - begin)
                time.sleep(PAUSE)

        threads = [threading.Thread(target=repeat, args=each) for each in operations.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return times

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._public.close()

    def _require(self, response: httpx.Response, status: int) -> Any:
        assert response.status_code == status, f"{response.request.url.path}: {response.status_code} {response.text}"
        return response

    def _upload(self) -> str:
        answer = self._client.post("/v1/audio", files={"file": ("street.wav", self._recording)})
        return self._require(answer, 201).json()["id"]

    def _peaks(self) -> float:
        """Return the seconds of the peaks alone: those of a recording are computed once."""
        audio_id = self._upload()
        begin = time.perf_counter()
        self._require(self._client.get(f"/v1/audio/{audio_id}/peaks"), 200)
        return time.perf_counter() - begin

    def _separate(self, times: Times, end: float) -> str:
        """Return the path of a separation that is done, or canceled at the end."""
        body = {"mixture": {"audio_id": self._mixture}, "targets": [{"name": "dog", "label": "Dog"}]}
        job = self._require(self._client.post("/v1/separations", json=body), 202).json()
        path = f"/v1/separations/{job['id']}"
        while job["status"] in ("queued", "running") and time.monotonic() < end:
            job = self._require(self._client.get(path, headers={"Prefer": "wait=5"}), 200).json()
        if job["status"] in ("queued", "running"):
            self._require(self._client.post(f"{path}/cancel"), 202)
            times.canceled += 1
        else:
            assert job["status"] == "succeeded", job
        return path


@contextlib.contextmanager
def attack(plan: Plan) -> Iterator[tuple[int, Account]]:
    """Attack while the block runs, with a client of the returned process id; then fill in the account."""
    command = [sys.executable, "-m", "tests.end_to_end.attacks", json.dumps(asdict(plan))]
    account = Account()
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as attacker:
        try:
            assert attacker.stdout is not None
            assert attacker.stdout.readline() == "begun\n"
            yield attacker.pid, account
        finally:
            output, _ = attacker.communicate("", 60)
        outcome = json.loads(output)
        account.statuses, account.faults = outcome["statuses"], outcome["faults"]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server, small_model: Path) -> Iterator[Topology]:
    port, metrics_port = free_ports(2)
    bounds: dict[str, Any] = {**FAST, **BOUNDS, "metrics_port": metrics_port}
    with topology(tmp_path_factory.mktemp("worst-day"), seaweed.settings, **bounds) as running:
        running.redis.config_set("maxmemory", 1 << 30)  # as in docker-compose.yml
        running.python("housekeeping", "app", "housekeeping")
        short = [(SHORT_NICENESS, ["--short"])] if SOAK else []  # as docker/README.md advises against long jobs
        for niceness, more in [(NICENESS, []), *short]:
            worker = running.python("worker", "worker", "--model", str(small_model), "--device", "cpu", *more)
            os.setpriority(os.PRIO_PROCESS, worker.pid, niceness)  # before its threads and its decoders begin
        running.start_apis(port)
        eventually(lambda: running.registry.workers_by_name().get("base", 0) == (2 if SOAK else 1))
        for worker in workers_of(running):
            for process in (worker, *worker.children(recursive=True)):
                lower_session(process)
        yield running
        print(running.read_logs()[-30_000:])  # shown if the test fails


def workers_of(deployment: Topology) -> list[psutil.Process]:
    return [psutil.Process(program.pid) for program, log in deployment.logs.items() if log.name.startswith("worker-")]


def lower_session(process: psutil.Process) -> None:
    """Give the session of a process the niceness of the process.

    Where Linux groups processes by session (autogroup), sessions get equal parts of the processors, whatever the
    niceness of their processes is.
    """

    def write() -> bool:
        try:
            Path(f"/proc/{process.pid}/autogroup").write_text(str(process.nice()))
        except (FileNotFoundError, psutil.NoSuchProcess):
            pass  # not grouped by session, or ended
        except BlockingIOError:  # ordinary users may change ten in a second
            return False
        return True

    eventually(write)


@contextlib.contextmanager
def full_cores() -> Iterator[None]:
    """Keep each core busy while the block runs, with a loop of the niceness of long jobs."""
    command = [sys.executable, "-c", "while True: pass"]
    loops = [subprocess.Popen(command, start_new_session=True) for _ in os.sched_getaffinity(0)]
    try:
        for loop in loops:
            os.setpriority(os.PRIO_PROCESS, loop.pid, NICENESS)
            lower_session(psutil.Process(loop.pid))
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def prepare(folder: Path, scale: float) -> None:
    """Write the files of the attacks; scale: of their lengths, 1 for 52 hours of silence and 13 MiB of bad packets."""
    write_undecodable_packets(folder / "undecodable.mkv", round(750_000 * scale))
    with soundfile.SoundFile(folder / "endless.flac", "w", 8000, 1, "PCM_16", format="FLAC") as file:
        minutes = np.zeros(8000 * 600, np.int16)
        for _ in range(max(1, round(52 * 6 * scale))):
            file.write(minutes)
    content = bytearray((folder / "endless.flac").read_bytes())
    content[21] &= 0xF0  # STREAMINFO's number of samples: not known
    content[22:26] = bytes(4)
    (folder / "endless.flac").write_bytes(content)
    soundfile.write(folder / "wide.flac", np.zeros((round(44100 * 60 * scale), 8), np.int16), 44100, subtype="PCM_16")
    noise = 0.1 * np.random.default_rng(5).standard_normal(round(8000 * 600 * scale))
    soundfile.write(folder / "long.flac", noise, 8000, subtype="PCM_16")


def read_budgets(deployment: Topology, metric: str) -> dict[str, float]:
    """Return a metric of each budget of the API, except of its connections; of refusals, those of one key's share."""
    page = httpx.get(f"http://127.0.0.1:{deployment.settings.metrics_port}/metrics").text
    values = re.findall(rf'{metric}\{{budget="(\w+)"(?:,scope="key")?\}} (\S+)', page)
    return {name: float(value) for name, value in values if name != "connections"}


@dataclass(frozen=True)
class CpuReading:
    """Seconds of CPU time that programs have used so far, by what they are, and when it was read."""

    seconds: dict[str, float]
    time: float = field(default_factory=time.monotonic)

    def cores_since(self, earlier: "CpuReading", program: str) -> float:
        """Return how many cores a program has used on average."""
        # The system counts the machine's time otherwise than that of programs, so that the rest may come out negative.
        return max(0.0, (self.seconds[program] - earlier.seconds[program]) / (self.time - earlier.time))


def read_cpu(deployment: Topology, attacker: int) -> CpuReading:
    """Return the CPU time of all programs on the machine; attacker: process id of the attacking client, or 0."""

    def used(pid: int) -> float:
        return sum(psutil.Process(pid).cpu_times()[:2])

    def used_by_children(pid: int) -> float:
        process = psutil.Process(pid)
        total = sum(process.cpu_times()[2:4])  # of those that have ended
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(child.cpu_times()[:4])
        return total

    pids = {log.name.rpartition("-")[0]: program.pid for program, log in deployment.logs.items()}
    workers = [worker.pid for worker in workers_of(deployment)]
    stores = [child.pid for child in psutil.Process().children() if child.name() == "weed"]
    seconds = {
        "the API": used(pids["api"]),
        "its probes and waveforms": used_by_children(pids["api"]),
        "workers, with their decoders": sum(used(pid) + used_by_children(pid) for pid in workers),
        "Valkey and housekeeping": used(pids["queue"]) + used(pids["housekeeping"]),
        "the store": sum(map(used, stores)),
        "the other key's client": used(os.getpid()),
        "the attacking client": used(attacker) if attacker else 0.0,
    }
    machine = psutil.cpu_times()
    all_programs = machine.user + machine.nice + machine.system
    return CpuReading({**seconds, "what has nothing to do with it": all_programs - sum(seconds.values())})


def test_the_worst_day_of_one_key_is_nobody_elses(deployment: Topology, figures: Figures, tmp_path: Path) -> None:
    prepare(tmp_path, SCALE)
    keys = KeyRepository(deployment.redis)
    url = f"http://127.0.0.1:{next(iter(deployment.apis))}"
    plan = Plan(url=url, key=keys.create("attacker", RATE, AUDIO_SECONDS, 1)[1], folder=str(tmp_path), **COUNTS)
    with contextlib.closing(Client(url, keys.create("other", 0, 0, 1)[1])) as client:
        readings = [read_cpu(deployment, 0)]
        before = client.measure(BEFORE)
        readings.append(read_cpu(deployment, 0))
        with full_cores():
            beside_loops = client.measure(BEFORE)
        with attack(plan) as (attacker, account):
            readings.append(read_cpu(deployment, attacker))
            during = client.measure(DURING)
            readings.append(read_cpu(deployment, attacker))
    for operation in before.seconds:
        add_row(figures, operation, before, beside_loops, during)
    for program in readings[-1].seconds:
        cores = [new.cores_since(old, program) for old, new in zip(readings[::2], readings[1::2], strict=True)]
        figures.add("worst-day-cpu", program, *(f"{number:.2f} cores" for number in cores))
    for name, statuses in sorted(account.statuses.items()):
        answers = ", ".join(f"{count} × {status}" for status, count in sorted(statuses.items()))
        figures.add("attacks", name, answers)

    assert [*before.failures, *beside_loops.failures, *during.failures] == []
    assert account.faults == []
    assert account.statuses["long names"].keys() <= {"422", *REFUSALS}
    assert account.statuses["event streams"].keys() >= {"200", "429"}
    assert read_budgets(deployment, "earmark_budget_refused_total")["streams"] > 0, "never as many as a key may have"
    for name, statuses in account.statuses.items():
        assert statuses.keys() <= {"200", "201", "202", "broken", *REFUSALS}, name
    assert [name for program, name in deployment.logs.items() if program.poll() is not None] == []
    eventually(lambda: not any(read_budgets(deployment, "earmark_budget_used").values()), 60)
    for path in ("/livez", "/readyz"):
        assert httpx.get(f"{url}{path}", timeout=10).status_code == 200


def add_row(figures: Figures, operation: str, before: Times, beside_loops: Times, during: Times) -> None:
    """Add the row of one operation to the table."""
    measured, cells = (before, beside_loops, during), []
    for percent in (50, 99):
        old, *others = (times.percentile(operation, percent) * 1000 for times in measured)
        cells += [f"{old:.0f} ms", *(f"{new:.0f} ms ({new / old:.1f})" for new in others)]
    count = ", ".join(str(len(times.seconds[operation])) for times in measured)
    if operation == SEPARATION and during.canceled:
        operation += f" ({during.canceled} did not end)"
    figures.add("worst-day", operation, count, *cells)
