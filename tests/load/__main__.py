"""`python -m tests.load`: what the service carries on this machine, beside a bare FastAPI route and bare RQ.

Polls and new jobs by wrk, uploads by an asyncio client, jobs by one client after the other. Prints a table; with
`--into docker/README.md` it is written there. For figures that mean something, let nothing else run.
"""

import asyncio
import contextlib
import io
import os
import platform
import statistics
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
from tests.end_to_end.topology import Topology, free_ports, topology
from tests.load import wrk

BEGIN, END = "<!-- load: begin -->", "<!-- load: end -->"
MIB = 1 << 20
CONNECTIONS = 32
RATE = 44_100
SHARED_SECONDS = 30.0
_QUIET = 0.3  # a load average that leaves the machine to us


@dataclass
class Table:
    """Rows of what, measured, beside it, ratio, wanted."""

    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """A row; it is told at once, since the next may take minutes."""
        self.rows.append(cells)
        print("  ".join(cells), file=sys.stderr)

    def __str__(self) -> str:
        head = ("what", "Earmark", "beside it", "ratio", "wanted")
        return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * 5, *self.rows))


@contextlib.contextmanager
def deployed(folder: Path) -> Iterator[tuple[Topology, str, str]]:
    """A queue's server, an API on a folder, and the bare application; their addresses."""

    def store(prefix: str, **settings: Any) -> Settings:
        return Settings(store=str(folder / "store"), **settings)

    limits = {"queue_jobs": 10_000_000, "queue_audio_seconds": 1e12, "log_level": "warning"}
    with topology(folder, store, **limits) as made:
        api, bare = free_ports(2)
        made.start_apis(api)
        words = ["-m", "uvicorn", "tests.load.bare:app", "--port", str(bare), "--log-level", "warning"]
        program = made.spawn("bare", [sys.executable, *words], {**os.environ, **made.settings.as_environment()})
        eventually(lambda: made.answers(program, f"http://127.0.0.1:{bare}/poll"), 60)
        yield made, f"http://127.0.0.1:{api}", f"http://127.0.0.1:{bare}"


def recording(seconds: float, channels: int = 2) -> bytes:
    """Noise as 16-bit WAV."""
    samples = np.random.default_rng(0).integers(-9000, 9000, (round(seconds * RATE), channels), dtype=np.int16)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def announce(made: Topology) -> None:
    """A model, whose workers are at home: jobs wait."""
    classes = [{"label": "Dog", "mid": "/m/0bt9lr", "slug": "dog", "path": ["Dog"], "askable": True}]
    figures = {"embedding_size": 8, "labels": 1, "askable_labels": 1, "sample_rate": 32000}
    made.registry.announce({"name": "base", "version": "1", **figures, "classes": classes}, "nobody")
    made.registry.leave("base", "nobody")


def polls_and_jobs(table: Table, made: Topology, api: str, bare: str, seconds: int) -> None:
    """Polls and new jobs, each beside its bare twin, one after the other."""
    headers = {"Authorization": f"Bearer {made.key}"}
    with httpx.Client(base_url=api, headers=headers, timeout=60) as client:
        audio = client.post("/v1/audio", files={"file": recording(10.0)}).raise_for_status().json()
        body = {"mixture": {"audio_id": audio["id"]}, "targets": [{"name": "dog", "label": "Dog"}]}
        job = client.post("/v1/separations", json=body).raise_for_status().json()
    load: dict[str, Any] = {"seconds": seconds, "connections": CONNECTIONS}
    poll = f"{api}/v1/separations/{job['id']}"
    plain = wrk.measure(f"{bare}/poll", made.folder, **load)
    ours = wrk.measure(poll, made.folder, headers=headers, **load)
    table.add("polls a second", f"{ours.rate:.0f}", f"bare route {plain.rate:.0f}", _ratio(ours, plain), "at least 0.5")
    with Changing(made, job["id"]) as changing:
        changed = wrk.measure(poll, made.folder, headers=headers, **load)
    what = f"polls a second of a running job that changes {changing.times / seconds:.0f} times a second"
    table.add(what, f"{changed.rate:.0f}", f"bare route {plain.rate:.0f}", _ratio(changed, plain), "")
    pause = CONNECTIONS / (ours.rate / 2)
    calm = wrk.measure(poll, made.folder, headers=headers, pause=pause, **load)
    table.add(f"polls at {calm.rate:.0f} a second, 99th percentile", f"{calm.p99 * 1000:.1f} ms", "", "", "under 20 ms")
    queued = wrk.measure(f"{bare}/jobs", made.folder, body=body, **load)
    created = wrk.measure(f"{api}/v1/separations", made.folder, headers=headers, body=body, **load)
    told = (f"{created.rate:.0f}", f"bare RQ {queued.rate:.0f}", _ratio(created, queued))
    table.add("new jobs a second", *told, "at least 0.33")
    failed = plain.failed + ours.failed + changed.failed + calm.failed + queued.failed + created.failed
    if failed:
        table.add("answers that were no success", str(failed), "", "", "0")
    made.redis.delete("rq:queue:bare")


def _ratio(ours: wrk.Measured, other: wrk.Measured) -> str:
    return f"{ours.rate / other.rate:.2f}"


class Changing(threading.Thread):
    """A job that is begun, and further on all the time: by its record alone, so that it costs the machine little."""

    def __init__(self, made: Topology, job_id: str) -> None:
        super().__init__(daemon=True)
        self._redis = made.redis
        self._key = record_key(job_id)
        job = JobRepository(made.redis, made.settings).claim(job_id, "nobody")
        assert job is not None
        told = [job.model_copy(update={"progress": Progress(ratio=n / 100, stage="separating")}) for n in range(100)]
        self._records = [each.model_dump_json() for each in told]
        self._over = threading.Event()
        self.times = 0

    def run(self) -> None:
        while not self._over.wait(0.001):
            self._redis.set(self._key, self._records[self.times % len(self._records)])
            self.times += 1

    def __enter__(self) -> "Changing":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


class Peak(threading.Thread):
    """The most memory that a process held, looked at ten times a second."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._over = threading.Event()
        self.before = self.most = process.memory_info().rss

    def run(self) -> None:
        while not self._over.wait(0.1):
            self.most = max(self.most, self._process.memory_info().rss)

    def stop(self) -> None:
        self._over.set()
        self.join()


async def _upload(client: httpx.AsyncClient, head: bytes, block: bytes, blocks: int) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + head
        for _ in range(blocks):
            yield block
        yield b"\r\n--x--\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    (await client.post("/v1/audio", content=content(), headers=kind)).raise_for_status()


def uploads(table: Table, made: Topology, api: str, count: int, megabytes: int) -> None:
    """So many uploads at once; beside it, the same bytes written to the same disk by one process."""
    block = os.urandom(MIB)
    whole = recording(0.0)
    size = megabytes * MIB
    head = whole[:4] + (size + 36).to_bytes(4, "little") + whole[8:40] + size.to_bytes(4, "little")

    begun = time.monotonic()
    for number in range(count):
        with (made.folder / f"plain-{number}").open("wb") as file:
            for _ in range(megabytes):
                file.write(block)
    os.sync()
    disk = count * megabytes / (time.monotonic() - begun)
    for path in made.folder.glob("plain-*"):
        path.unlink()

    async def all_at_once() -> None:
        limits = httpx.Limits(max_connections=count)
        headers = {"Authorization": f"Bearer {made.key}"}
        async with httpx.AsyncClient(base_url=api, headers=headers, timeout=3600, limits=limits) as client:
            await asyncio.gather(*(_upload(client, head, block, megabytes) for _ in range(count)))

    peak = Peak(psutil.Process(next(iter(made.apis.values())).pid))
    peak.start()
    begun = time.monotonic()
    asyncio.run(all_at_once())
    os.sync()
    rate = count * megabytes / (time.monotonic() - begun)
    peak.stop()
    what = f"{count} uploads of {megabytes} MiB at once, MiB a second"
    table.add(what, f"{rate:.0f}", f"plain writing {disk:.0f}", f"{rate / disk:.2f}", "the disk's")
    grown = (peak.most - peak.before) / MIB
    table.add("the API's memory meanwhile", f"{peak.before / MIB:.0f} MiB, then +{grown:.0f}", "", "", "flat")


def overhead(table: Table, made: Topology, api: str, model: str, count: int) -> None:
    """Jobs of 10 s, one after the other, beside the engine alone on the same file with as many threads."""
    made.redis.delete("earmark:models")
    (port,) = free_ports(1)
    made.start_workers(model, port)
    content = recording(10.0)
    lasted = []
    with httpx.Client(base_url=api, headers={"Authorization": f"Bearer {made.key}"}, timeout=90) as client:
        audio = client.post("/v1/audio", files={"file": content}).raise_for_status().json()
        body = {"mixture": {"audio_id": audio["id"]}, "targets": [{"name": "a", "spans": [{"start": 1, "end": 3}]}]}
        for _ in range(count):
            job = client.post("/v1/separations", json=body).raise_for_status().json()
            while job["status"] in ("queued", "running"):
                job = client.get(f"/v1/separations/{job['id']}", headers={"Prefer": "wait=30"}).json()
            assert job["status"] == "succeeded", job
            record = made.redis.get(f"earmark:job:{job['id']}")
            assert isinstance(record, bytes)
            told = lifecycle.parse(record)
            lasted.append((told.finished_at or 0.0) - told.created_at)
    alone = _engine_alone(made, model, content, count)
    extra = statistics.median(lasted) - alone
    table.add(
        "a job of 10 s, beyond its engine's time, median",
        f"{extra:.2f} s",
        f"engine alone {alone:.2f} s, job {statistics.median(lasted):.2f} s",
        "",
        "under 0.3 s",
    )


def _engine_alone(made: Topology, model: str, content: bytes, count: int) -> float:
    import torch

    from models.audio import Waveform
    from models.engine import Engine

    torch.set_num_threads(1)
    engine = Engine.load(model, device="cpu")
    path = made.folder / "alone.wav"
    path.write_bytes(content)
    samples = torch.from_numpy(np.frombuffer(content[44:], np.int16).reshape(-1, 2).T.astype(np.float32) / 2**15)
    took = []
    for number in range(count):
        begun = time.monotonic()
        query = engine.embed([Waveform(samples[:, RATE : 3 * RATE].mean(0, keepdim=True), RATE)])
        engine.separate_file(path, {"a": query}, made.folder / f"alone-{number}")
        took.append(time.monotonic() - begun)
    return statistics.median(took)


def sharing(table: Table, made: Topology, api: str, model: str, jobs: int) -> None:
    """Jobs of 30 s by one, two and four workers that share the device, each with its part of the cores."""
    content = recording(SHARED_SECONDS)
    alone = 0.0
    with httpx.Client(base_url=api, headers={"Authorization": f"Bearer {made.key}"}, timeout=90) as client:
        audio = client.post("/v1/audio", files={"file": content}).raise_for_status().json()
        body = {"mixture": {"audio_id": audio["id"]}, "targets": [{"name": "a", "spans": [{"start": 1, "end": 3}]}]}
        for processes in (1, 2, 4):
            words = ["-m", "worker", "--model", model, "--processes", str(processes)]
            program = made.spawn("workers", [sys.executable, *words], {**os.environ, **made.settings.as_environment()})
            eventually(lambda processes=processes: made.registry.worker_count("base") == processes)
            begun = time.monotonic()
            urls = [client.post("/v1/separations", json=body).raise_for_status().json()["url"] for _ in range(jobs)]
            for url in urls:
                while client.get(url, headers={"Prefer": "wait=30"}).json()["status"] != "succeeded":
                    assert program.poll() is None, made.told()
            rate = jobs * SHARED_SECONDS / (time.monotonic() - begun)
            family = [psutil.Process(program.pid), *psutil.Process(program.pid).children(recursive=True)]
            memory = sum(process.memory_full_info().pss for process in family) / MIB
            program.terminate()
            program.wait(60)
            alone = alone or rate
            table.add(
                f"{processes} worker process{'es' if processes > 1 else ''}, seconds of audio a second",
                f"{rate:.0f}",
                f"{memory:.0f} MiB in all",
                f"{rate / alone:.2f}",
                "",
            )


def main(
    into: Annotated[Path | None, typer.Option(help="A Markdown file to write the table into.")] = None,
    seconds: Annotated[int, typer.Option(help="Of each measurement of a rate.")] = 10,
    count: Annotated[int, typer.Option("--uploads", help="At once.")] = 64,
    megabytes: Annotated[int, typer.Option(help="Of one upload.")] = 100,
    jobs: Annotated[int, typer.Option(help="Measured one by one.")] = 15,
    model: Annotated[str, typer.Option(help="A preset's name, or a folder of weights.")] = "base",
) -> None:
    """Measures what the service carries on this machine."""
    table, others = Table(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="earmark-load-") as place, deployed(Path(place) / "load") as run:
        made, api, bare = run
        announce(made)
        polls_and_jobs(table, made, api, bare, seconds)
        uploads(table, made, api, count, megabytes)
        made.redis.flushdb()
        made.renew_key()
        overhead(table, made, api, model, jobs)
        made.stop_workers()
        sharing(table, made, api, model, jobs)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; one API process"
    if others > _QUIET:
        machine += f"; while other work ran on the machine (load average {others:.1f})"
    print(f"{table}\n\n{machine}.")
    if into is not None:
        text = into.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        _, found, after = rest.partition(END)
        if not found:
            raise SystemExit(f"{into} has no marks {BEGIN} and {END}")
        into.write_text(f"{before}{BEGIN}\n{table}\n\n{machine}.\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
