"""`python -m tests.load`: load measurements on this machine, compared with a bare FastAPI route and bare RQ.

wrk sends polls and new jobs, an asyncio client sends uploads, and a single client runs jobs one after the other. The
table is printed, or written with `--into docker/capacity.md`. For meaningful figures, run nothing else.
"""

import asyncio
import contextlib
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import psutil
import typer

from app.jobs import lifecycle
from app.jobs.lifecycle import Progress
from app.jobs.listing import record_key
from app.jobs.repository import JobRepository
from app.settings import Settings
from tests.end_to_end.deployment import eventually
from tests.end_to_end.topology import Topology, topology
from tests.load import wrk
from tests.ports import free_ports

BEGIN, END = "<!-- load: begin -->", "<!-- load: end -->"
MIB = 1 << 20
CONNECTIONS = 32
RATE = 44_100
SHARED_SECONDS = 10.0
_WANTED_SHARED = {1: "60", 2: "90"}  # seconds of audio a second, by worker processes, on two cores
_IDLE_LOAD = 0.3  # load average up to which the machine counts as idle


@dataclass
class Table:
    """Rows of what, Earmark, beside it, ratio, wanted."""

    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Add a row and print it, since the next may take minutes."""
        self.rows.append(cells)
        print("  ".join(cells), file=sys.stderr)

    def __str__(self) -> str:
        head = ("what", "Earmark", "beside it", "ratio", "wanted")
        return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * 5, *self.rows))


@contextlib.contextmanager
def deployment(folder: Path) -> Iterator[tuple[Topology, str, str]]:
    """Run Valkey, an API with a local store, and the bare application; yield the topology and both URLs."""

    def store(prefix: str, **settings: Any) -> Settings:
        return Settings(store=str(folder / "store"), **{**settings, "store_public_endpoint": None})  # a folder has none

    limits = {"queue_jobs": 10_000_000, "queue_audio_seconds": 1e12, "log_level": "warning"}
    limits |= {"upload_slots": 64, "key_share": 1.0, "budget_patience": 300.0}  # one key sends all uploads
    with topology(folder, store, **limits) as running:
        api, bare = free_ports(2)
        running.start_apis(api)
        words = ["-m", "uvicorn", "tests.load.bare:app", "--port", str(bare), "--log-level", "warning"]
        program = running.spawn("bare", [sys.executable, *words], {**os.environ, **running.settings.as_environment()})
        eventually(lambda: running.responds(program, f"http://127.0.0.1:{bare}/poll"), 60)
        yield running, f"http://127.0.0.1:{api}", f"http://127.0.0.1:{bare}"


def recording(seconds: float, channels: int = 2) -> bytes:
    """Return noise as 16-bit WAV."""
    samples = np.random.default_rng(0).integers(-9000, 9000, (round(seconds * RATE), channels), dtype=np.int16)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def register_model(running: Topology) -> None:
    """Register a model without workers, so that jobs wait."""
    classes = [{"label": "Dog", "mid": "/m/0bt9lr", "slug": "dog", "path": ["Dog"], "askable": True}]
    figures = {"embedding_size": 8, "labels": 1, "askable_labels": 1, "sample_rate": 32000}
    running.registry.announce({"name": "base", "version": "1", **figures, "classes": classes}, "worker")
    running.registry.leave("base@1", "worker")


def polls_and_jobs(table: Table, running: Topology, api: str, bare: str, seconds: int) -> None:
    """Measure polls and new jobs, and the bare counterpart of each."""
    headers = {"Authorization": f"Bearer {running.key}"}
    with httpx.Client(base_url=api, headers=headers, timeout=60) as client:
        audio = client.post("/v1/audio", files={"file": recording(10.0)}).raise_for_status().json()
        body = {"mixture": {"audio_id": audio["id"]}, "targets": [{"name": "dog", "label": "Dog"}]}
        job = client.post("/v1/separations", json=body).raise_for_status().json()
    load: dict[str, Any] = {"seconds": seconds, "connections": CONNECTIONS}
    poll = f"{api}/v1/separations/{job['id']}"
    plain = wrk.measure(f"{bare}/poll", running.folder, **load)
    ours = wrk.measure(poll, running.folder, headers=headers, **load)
    table.add("polls a second", f"{ours.rate:.0f}", f"bare route {plain.rate:.0f}", _ratio(ours, plain), "at least 0.5")
    with ProgressWriter(running, job["id"]) as writer:
        changed = wrk.measure(poll, running.folder, headers=headers, **load)
    what = f"polls a second of a running job that changes {writer.count / seconds:.0f} times a second"
    table.add(what, f"{changed.rate:.0f}", f"bare route {plain.rate:.0f}", _ratio(changed, plain), "")
    pause = CONNECTIONS / (ours.rate / 2)
    half_rate = wrk.measure(poll, running.folder, headers=headers, pause=pause, **load)
    table.add(
        f"polls at {half_rate.rate:.0f} a second, 99th percentile",
        f"{half_rate.p99 * 1000:.1f} ms",
        "",
        "",
        "under 20 ms",
    )
    queued = wrk.measure(f"{bare}/jobs", running.folder, body=body, **load)
    created = wrk.measure(f"{api}/v1/separations", running.folder, headers=headers, body=body, **load)
    cells = (f"{created.rate:.0f}", f"bare RQ {queued.rate:.0f}", _ratio(created, queued))
    table.add("new jobs a second", *cells, "at least 0.33")
    failures = sum(each.failures for each in (plain, ours, changed, half_rate, queued, created))
    if failures:
        table.add("failed requests", str(failures), "", "", "0")
    running.redis.delete("rq:queue:bare")


def _ratio(ours: wrk.Measurement, other: wrk.Measurement) -> str:
    return f"{ours.rate / other.rate:.2f}"


class ProgressWriter(threading.Thread):
    """Starts a job and changes its progress all the time; it only writes the record, which costs little."""

    def __init__(self, running: Topology, job_id: str) -> None:
        super().__init__(daemon=True)
        self._redis = running.redis
        self._key = record_key(job_id)
        job = JobRepository(running.redis, running.settings).claim(job_id, "execution")
        assert job is not None
        steps = (Progress(ratio=number / 100, stage="separating") for number in range(100))
        self._records = [job.model_copy(update={"progress": step}).model_dump_json() for step in steps]
        self._stopping = threading.Event()
        self.count = 0

    def run(self) -> None:
        while not self._stopping.wait(0.001):
            self._redis.set(self._key, self._records[self.count % len(self._records)])
            self.count += 1

    def __enter__(self) -> "ProgressWriter":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join()


class PeakMemory(threading.Thread):
    """Peak memory of a process, sampled ten times per second."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._stopping = threading.Event()
        self.initial = self.peak = process.memory_info().rss

    def run(self) -> None:
        while not self._stopping.wait(0.1):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def stop(self) -> None:
        self._stopping.set()
        self.join()


async def _upload(client: httpx.AsyncClient, head: bytes, block: bytes, blocks: int) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + head
        for _ in range(blocks):
            yield block
        yield b"\r\n--x--\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    (await client.post("/v1/audio", content=content(), headers=kind)).raise_for_status()


def uploads(table: Table, running: Topology, api: str, count: int, megabytes: int) -> None:
    """Measure concurrent uploads, and one process that writes the same bytes to the same disk."""
    block = os.urandom(MIB)
    whole = recording(0.0)
    size = megabytes * MIB
    head = whole[:4] + (size + 36).to_bytes(4, "little") + whole[8:40] + size.to_bytes(4, "little")

    started = time.monotonic()
    for number in range(count):
        with (running.folder / f"plain-{number}").open("wb") as file:
            for _ in range(megabytes):
                file.write(block)
    os.sync()
    disk = count * megabytes / (time.monotonic() - started)
    for path in running.folder.glob("plain-*"):
        path.unlink()

    async def upload_all() -> None:
        limits = httpx.Limits(max_connections=count)
        headers = {"Authorization": f"Bearer {running.key}"}
        async with httpx.AsyncClient(base_url=api, headers=headers, timeout=3600, limits=limits) as client:
            await asyncio.gather(*(_upload(client, head, block, megabytes) for _ in range(count)))

    memory = PeakMemory(psutil.Process(next(iter(running.apis.values())).pid))
    memory.start()
    started = time.monotonic()
    asyncio.run(upload_all())
    os.sync()
    rate = count * megabytes / (time.monotonic() - started)
    memory.stop()
    what = f"{count} uploads of {megabytes} MiB at once, MiB a second"
    table.add(what, f"{rate:.0f}", f"plain writing {disk:.0f}", f"{rate / disk:.2f}", "the disk's")
    growth = (memory.peak - memory.initial) / MIB
    table.add("the API's memory meanwhile", f"{memory.initial / MIB:.0f} MiB, then +{growth:.0f}", "", "", "flat")


def overhead(table: Table, running: Topology, api: str, model: str, count: int) -> None:
    """Measure jobs of 10 s, one after the other, and the engine alone on the same file with as many threads."""
    running.redis.delete("earmark:models")
    (port,) = free_ports(1)
    started = time.monotonic()
    running.start_workers(model, port)
    ready = time.monotonic() - started
    content = recording(10.0)
    durations = []
    with httpx.Client(base_url=api, headers={"Authorization": f"Bearer {running.key}"}, timeout=90) as client:
        audio = client.post("/v1/audio", files={"file": content}).raise_for_status().json()
        body = {"mixture": {"audio_id": audio["id"]}, "targets": [{"name": "a", "spans": [{"start": 1, "end": 3}]}]}
        for _ in range(count):
            job = client.post("/v1/separations", json=body).raise_for_status().json()
            while job["status"] in ("queued", "running"):
                job = client.get(f"/v1/separations/{job['id']}", headers={"Prefer": "wait=30"}).json()
            assert job["status"] == "succeeded", job
            record = running.redis.get(f"earmark:job:{job['id']}")
            assert isinstance(record, bytes)
            finished = lifecycle.parse(record)
            durations.append((finished.finished_at or 0.0) - finished.created_at)
    first, second = durations[:2]
    table.add("a worker's start, until it takes jobs", f"{ready:.1f} s", "", "", "at most 5 s")
    table.add("its first job of 10 s", f"{first:.2f} s", f"the second {second:.2f} s", f"{first / second:.2f}", "1.5")
    alone = _engine_alone(running, model, content, count)
    extra = statistics.median(durations) - alone
    table.add(
        "a job of 10 s, beyond its engine's time, median",
        f"{extra:.2f} s",
        f"engine alone {alone:.2f} s, job {statistics.median(durations):.2f} s",
        "",
        "under 0.3 s",
    )


def _engine_alone(running: Topology, model: str, content: bytes, count: int) -> float:
    import torch

    from models.audio import Waveform
    from models.engine import Engine

    torch.set_num_threads(1)
    engine = Engine.load(model, device="cpu")
    path = running.folder / "alone.wav"
    path.write_bytes(content)
    samples = torch.from_numpy(np.frombuffer(content[44:], np.int16).reshape(-1, 2).T.astype(np.float32) / 2**15)
    seconds = []
    for number in range(count):
        started = time.monotonic()
        query = engine.embed([Waveform(samples[:, RATE : 3 * RATE].mean(0, keepdim=True), RATE)])
        engine.separate_file(path, {"a": query}, running.folder / f"alone-{number}")
        seconds.append(time.monotonic() - started)
    return statistics.median(seconds)


def sharing(table: Table, running: Topology, api: str, model: str, jobs: int) -> None:
    """Measure jobs of 10 s with one, two and four workers that share the device, each with its share of the cores."""
    content = recording(SHARED_SECONDS)
    alone = 0.0
    with httpx.Client(base_url=api, headers={"Authorization": f"Bearer {running.key}"}, timeout=90) as client:
        audio = client.post("/v1/audio", files={"file": content}).raise_for_status().json()
        body = {"mixture": {"audio_id": audio["id"]}, "targets": [{"name": "a", "spans": [{"start": 1, "end": 3}]}]}
        for processes in (1, 2, 4):
            words = ["-m", "worker", "--model", model, "--processes", str(processes)]
            program = running.spawn(
                "workers", [sys.executable, *words], {**os.environ, **running.settings.as_environment()}
            )
            eventually(lambda processes=processes: running.registry.workers_by_name().get("base", 0) >= processes)
            started, before = time.monotonic(), _processor_seconds(running, program)
            urls = [client.post("/v1/separations", json=body).raise_for_status().json()["url"] for _ in range(jobs)]
            for url in urls:
                while client.get(url, headers={"Prefer": "wait=30"}).json()["status"] != "succeeded":
                    assert program.poll() is None, running.read_logs()
            rate = jobs * SHARED_SECONDS / (time.monotonic() - started)
            spent = {part: (end - before[part]) / jobs for part, end in _processor_seconds(running, program).items()}
            family = [psutil.Process(program.pid), *psutil.Process(program.pid).children(recursive=True)]
            memory = sum(process.memory_full_info().pss for process in family) / MIB
            program.terminate()
            program.wait(60)
            alone = alone or rate
            table.add(
                f"{processes} worker process{'es' if processes > 1 else ''}, jobs of 10 s, seconds of audio a second",
                f"{rate:.0f}",
                f"{memory:.0f} MiB in all",
                f"{rate / alone:.2f}",
                _WANTED_SHARED.get(processes, ""),
            )
            parts = ", ".join(f"{part} {seconds * 1000:.0f}" for part, seconds in spent.items())
            table.add(
                "the processors' time of each of these jobs", f"{sum(spent.values()):.2f} s", f"{parts} ms", "", ""
            )


def _processor_seconds(running: Topology, workers: subprocess.Popen) -> dict[str, float]:
    """Return the processor time, in seconds, that the parts of a deployment and this client have taken so far."""
    seconds = {"workers": 0.0, "decoders": 0.0, "API": 0.0, "queue": 0.0, "client": time.process_time()}
    programs = [(workers, "workers"), *((api, "API") for api in running.apis.values()), (running.queue, "queue")]
    for program, part in programs:
        root = psutil.Process(program.pid)
        for process in (root, *root.children(recursive=True)):
            times = process.cpu_times()
            own = times.user + times.system
            if "app.media.zygote" in process.cmdline():
                seconds["decoders"] += own + times.children_user + times.children_system
            else:
                seconds[part] += own
    return seconds


def main(
    into: Annotated[Path | None, typer.Option(help="Markdown file to write the table into.")] = None,
    seconds: Annotated[int, typer.Option(help="Seconds of each rate measurement.")] = 10,
    count: Annotated[int, typer.Option("--uploads", help="Concurrent uploads.")] = 64,
    megabytes: Annotated[int, typer.Option(help="MiB of one upload.")] = 100,
    jobs: Annotated[int, typer.Option(help="Number of jobs.")] = 15,
    model: Annotated[str, typer.Option(help="Name of a preset, or a folder of weights.")] = "base",
) -> None:
    """Measure the load that the service sustains on this machine."""
    table, other_load = Table(), os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory(prefix="earmark-load-") as temporary,
        deployment(Path(temporary) / "load") as (running, api, bare),
    ):
        register_model(running)
        polls_and_jobs(table, running, api, bare, seconds)
        uploads(table, running, api, count, megabytes)
        running.redis.flushdb()
        running.renew_key()
        overhead(table, running, api, model, jobs)
        running.stop_workers()
        sharing(table, running, api, model, jobs)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; one API process"
    if other_load > _IDLE_LOAD:
        machine += f"; while other work ran on the machine (load average {other_load:.1f})"
    print(f"{table}\n\n{machine}.")
    if into is not None:
        text = into.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not end:
            raise SystemExit(f"{into} has no marks {BEGIN} and {END}")
        into.write_text(f"{before}{BEGIN}\n{table}\n\n{machine}.\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
