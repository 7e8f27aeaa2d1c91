"""Baselines of the load measurements: a bare FastAPI route, and a route that enqueues with RQ."""

import os
from typing import Any

from fastapi import FastAPI
from redis import Redis
from rq import Queue

app = FastAPI()
queue = Queue("bare", connection=Redis.from_url(os.environ["EARMARK_REDIS_URL"]))


@app.get("/poll")
async def poll() -> dict[str, Any]:
    """Return a minimal response."""
    return {"status": "queued"}


@app.post("/jobs", status_code=202)
def create(body: dict[str, Any]) -> dict[str, Any]:
    """Enqueue with RQ and do nothing else."""
    return {"id": queue.enqueue("worker.tasks.separate", body["mixture"]["audio_id"]).id}
