"""A webhook is delivered although the process that delivers it is killed."""

import base64
import time
from collections.abc import Callable

from pydantic import SecretStr
from standardwebhooks import Webhook as Signature

from app.jobs.lifecycle import Webhook
from tests.app.receivers import receiver
from tests.app.records import new_job
from tests.end_to_end.deployment import Deployment, eventually
from tests.end_to_end.recordings import RATE

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def test_another_process_delivers_after_a_kill(deploy: Callable[..., Deployment]) -> None:
    with receiver(lambda before: 204 if before else None, pause=60) as served:
        port = served.url.rpartition(":")[2]
        deployment = deploy(
            outside_networks="127.0.0.0/8",
            outside_ports=port,
            webhook_secret=SecretStr(SECRET),
            webhook_timeout=2.0,
        )
        mixture = deployment.upload()
        request = {
            "mixture": {"audio_id": mixture, "duration": 2.0, "sample_rate": RATE, "channels": 1},
            "model": {"name": "base", "version": "1"},
            "targets": [{"name": "dog", "label": "Dog"}],
            "output": {},
        }
        webhook = Webhook(url=served.url, events=["canceled"])
        job = new_job(mixture).model_copy(update={"request": request, "webhook": webhook})
        deployment.jobs.create(job)
        first = deployment.start_housekeeping()
        deployment.jobs.cancel(job.id)  # enqueues the webhook in the same transaction
        eventually(lambda: served.requests)
        deployment.kill(first)  # during an attempt: the receiver has the message and has not responded
        served.pause = 0.0
        deployment.start_housekeeping()
        eventually(lambda: len(served.requests) == 2)
        eventually(lambda: not deployment.redis.zcard("earmark:webhooks:due"))
        time.sleep(1.0)
    assert len(served.requests) == 2
    bodies = [Signature(SECRET).verify(got.body, got.headers) for got in served.requests]
    assert bodies[0] == bodies[1] and bodies[0]["type"] == "separation.canceled"
    assert served.requests[0].headers["webhook-id"] == served.requests[1].headers["webhook-id"] == f"msg_{job.id}"
