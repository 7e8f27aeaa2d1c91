"""What the service's rates are compared with: a bare FastAPI route, and bare RQ behind one."""

import os
from typing import Any

from fastapi import FastAPI
from redis import Redis
from rq import Queue

app = FastAPI()
queue = Queue("bare", connection=Redis.from_url(os.environ["EARMARK_REDIS_URL"]))


@app.get("/poll")
async def poll() -> dict[str, Any]:
    """As short as an answer can be."""
    return {"status": "queued"}


@app.post("/jobs", status_code=202)
def create(body: dict[str, Any]) -> dict[str, Any]:
    """RQ's own way, and nothing else."""
    return {"id": queue.enqueue("worker.tasks.separate", body["mixture"]["audio_id"]).id}
