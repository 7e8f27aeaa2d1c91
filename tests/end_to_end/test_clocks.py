"""Clocks of machines are wrong by minutes: recovery, expiry and webhooks go by the clock of the Redis server."""

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.jobs.kinds import DETECTION
from app.jobs.lifecycle import Job, Webhook
from app.records.audio import AudioRepository
from app.records.orphans import OrphanLedger
from tests.app.receivers import receiver
from tests.app.records import new_audio
from tests.end_to_end.deployment import Deployment, eventually
from tests.end_to_end.faults import DEFAULTS, RECOVERY_LIMIT
from tests.end_to_end.figures import SOAK, Figures

SKEWED_PATH = str(Path(__file__).parents[1] / "skew")
SKEWS = (-120, -60, 60, 120)  # s by which clocks of workers are wrong
INTERVALS = DEFAULTS if SOAK else {"heartbeat_seconds": 0.5, "heartbeat_timeout": 3, "lost_after": 1.0}


def start_skewed(deployment: Deployment, skew: int, *words: str) -> Any:
    return deployment.start(*words, PYTHONPATH=SKEWED_PATH, SKEW=str(skew))


def detect(deployment: Deployment, audio_id: str, **fields: Any) -> Job:
    request = {"audio": {"audio_id": audio_id, "duration": None, "sample_rate": 16000, "channels": 1}}
    return deployment.enqueue(DETECTION, request | {"threshold": 0.2, "top": 10}, [audio_id], **fields)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("housekeeping_skew", [-120, 120] if SOAK else [120])
def test_no_clock_of_a_machine_delays_or_hastens_anything(
    deploy: Callable[..., Deployment], figures: Figures, housekeeping_skew: int
) -> None:
    secret = SecretStr("whsec_" + base64.b64encode(bytes(range(32))).decode())
    with receiver() as served:
        port = served.url.rpartition(":")[2]
        addresses = {"outside_networks": "127.0.0.0/8", "outside_ports": port, "webhook_secret": secret}
        deployment = deploy(**INTERVALS, **addresses)
        redis, jobs, ledger = deployment.redis, deployment.jobs, OrphanLedger(deployment.redis)
        workers = {skew: start_skewed(deployment, skew, "tests.skew.holding_worker") for skew in SKEWS}
        eventually(lambda: redis.zcard("earmark:workers:base@small") == len(SKEWS))

        # Jobs that end one after another: their messages are due at once, and in this order.
        ended = []
        deployment.webhook = Webhook(url=served.url, events=["failed"])
        for _ in SKEWS:
            audio_id = deployment.upload(seconds=0.1)
            ended.append(detect(deployment, audio_id, metadata={"end": "fail"}))
            record = deployment.wait(ended[-1])
            assert record.finished_at == pytest.approx(time.time(), abs=20)
            assert record.expires_at == pytest.approx(time.time() + deployment.settings.stem_retention, abs=20)
        messages: Any = redis.zrange("earmark:webhooks:due", 0, -1, withscores=True)
        assert [member.decode() for member, _ in messages] == [job.id for job in ended]
        assert max(due for _, due in messages) < time.time() + 5

        # What has just expired is removed, what expires in a minute is not.
        uploads = AudioRepository(redis, deployment.settings)
        expired, kept = (new_audio(expires_at=time.time() + seconds) for seconds in (-1, 90))
        for audio, due in ((expired, -1), (kept, 90)):
            uploads.create(audio)
            ledger.add(None, f"separations/{audio.id}", time.time() + due)

        # Every worker holds a job; then half of them die.
        deployment.webhook = None
        held = [detect(deployment, deployment.upload(seconds=0.1)) for _ in SKEWS]
        running = {job.id: deployment.wait_running(job) for job in held}
        for record in running.values():
            assert record.started_at == pytest.approx(time.time(), abs=20)
        start_skewed(deployment, housekeeping_skew, "app", "housekeeping")
        eventually(lambda: len({request.headers["webhook-id"] for request in served.requests}) == len(ended))
        eventually(lambda: not redis.exists(f"earmark:audio:{expired.id}"))
        time.sleep(INTERVALS["heartbeat_timeout"] + INTERVALS["lost_after"])
        assert {job_id: jobs.get(job_id).execution for job_id in running} == {
            job_id: record.execution for job_id, record in running.items()
        }, "no job of a living worker is requeued"

        holders = _holders(deployment, held)
        survivor = holders.pop(workers.pop(-60).pid)
        for worker in workers.values():
            deployment.kill(worker)
        killed = time.monotonic()
        for skew, worker in workers.items():
            job_id = holders[worker.pid]
            eventually(lambda job_id=job_id: jobs.get(job_id).status == "queued", RECOVERY_LIMIT)
            seconds = f"{time.monotonic() - killed:.1f} s later"
            figures.add("clocks", f"{skew:+} s", f"{housekeeping_skew:+} s", seconds)
        assert jobs.get(survivor).execution == running[survivor].execution
        jobs.delete(survivor)  # so that its worker ends at once
        assert redis.exists(f"earmark:audio:{kept.id}")
        ledgered: Any = redis.zrange("earmark:leftovers", 0, -1)
        assert f"separations/{kept.id}".encode() in ledgered
        assert f"separations/{expired.id}".encode() not in ledgered


def _holders(deployment: Deployment, held: list[Job]) -> dict[int, str]:
    """Return the job that each worker holds, by the worker's process."""
    names: Any = {job.id: deployment.redis.hget(f"rq:job:{job.id}", "worker_name") for job in held}
    return {int(name.decode().split(".")[1]): job_id for job_id, name in names.items()}
