"""What routes reach: the parts of one deployment, made once by `create_app`, as annotated dependencies."""

from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from app.jobs.event_feed import Feed
from app.jobs.poll_cache import Polls
from app.jobs.queue_metrics import QueueMetrics
from app.jobs.repository import Jobs
from app.keys import callers
from app.keys.callers import ANYBODY, Caller
from app.keys.quotas import Quotas
from app.keys.signed_urls import Signatures
from app.metrics import Metrics
from app.model_registry import Registry
from app.outbound import Outside
from app.records.audio import AudioRecords
from app.redis_client import connect, connect_async
from app.settings import Settings
from app.storage import Storage


@dataclass(frozen=True)
class Parts:
    """The parts that requests share, safe to use from several threads; and who asks."""

    settings: Settings
    redis: Redis
    on_loop: AsyncRedis  # the same server, for the event loop only
    polls: Polls
    storage: Storage
    jobs: Jobs
    feed: Feed
    audio: AudioRecords
    registry: Registry
    metrics: Metrics
    outside: Outside
    quotas: Quotas
    signatures: Signatures
    caller: Caller = ANYBODY

    @classmethod
    def open(cls, settings: Settings) -> "Parts":
        """Build them; nothing connects to the queue's server yet."""
        redis, on_loop = connect(settings), connect_async(settings)
        jobs, registry = Jobs(redis, settings), Registry(redis, settings)
        return cls(
            settings=settings,
            redis=redis,
            on_loop=on_loop,
            polls=Polls(on_loop),
            storage=Storage.open(settings),
            jobs=jobs,
            feed=Feed(settings),
            audio=AudioRecords(redis, settings),
            registry=registry,
            metrics=Metrics(QueueMetrics(jobs, registry)),
            outside=Outside(settings),
            quotas=Quotas(redis),
            signatures=Signatures(redis, settings),
        )

    async def close(self) -> None:
        """Let go of the connections."""
        await self.feed.close()
        await self.on_loop.aclose()
        self.redis.close()


async def _parts(request: Request) -> Parts:
    return replace(request.app.state.parts, caller=callers.of(request))


UsesParts = Annotated[Parts, Depends(_parts)]
