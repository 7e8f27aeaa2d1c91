"""FastAPI's dependencies: the services of one deployment, opened once by `create_app`, and the caller of a request."""

from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from app.budgets.process_budgets import ProcessBudgets
from app.jobs.event_feed import EventFeed
from app.jobs.housekeeping_metrics import HousekeepingMetrics
from app.jobs.large_fields import LargeFields
from app.jobs.large_fields_cache import LargeFieldsCache
from app.jobs.poll_cache import PollCache
from app.jobs.queue_metrics import QueueMetrics
from app.jobs.repository import JobRepository
from app.keys import callers
from app.keys.callers import ANONYMOUS, Caller
from app.keys.quotas import Quotas
from app.keys.signed_urls import UrlSigner
from app.local_copies import LocalCopies
from app.media.drawing_cache import DrawingCache
from app.media.single_flight import SingleFlight
from app.metrics import Metrics
from app.model_registry.registry import ModelRegistry
from app.outbound import OutboundClient
from app.records.audio import AudioRepository
from app.records.usage import Usage
from app.redis_client import ServerClock, connect, connect_async, server_clock
from app.settings import Settings
from app.storage import Storage
from app.storage_probe import StorageProbe


@dataclass(frozen=True)
class Dependencies:
    """Services that all requests share, safe to use from several threads; and the caller."""

    settings: Settings
    redis: Redis
    clock: ServerClock
    async_redis: AsyncRedis  # the same server; for code on the event loop only
    poll_cache: PollCache
    storage: Storage
    storage_probe: StorageProbe  # for code on the event loop only
    jobs: JobRepository
    large_fields: LargeFields
    large_fields_cache: LargeFieldsCache  # for code on the event loop only
    local_copies: LocalCopies  # for code on the event loop only
    drawing_cache: DrawingCache  # for code on the event loop only
    drawings_in_progress: SingleFlight  # for code on the event loop only
    event_feed: EventFeed
    audio: AudioRepository
    model_registry: ModelRegistry
    budgets: ProcessBudgets
    metrics: Metrics
    outbound: OutboundClient
    quotas: Quotas
    usage: Usage
    url_signer: UrlSigner
    caller: Caller = ANONYMOUS

    @classmethod
    def open(cls, settings: Settings) -> "Dependencies":
        """Build the services; nothing connects to Redis yet."""
        redis, async_redis = connect(settings), connect_async(settings)
        jobs, model_registry = JobRepository(redis, settings), ModelRegistry(redis, settings)
        budgets = ProcessBudgets(settings, async_redis)
        storage = Storage.open(settings)
        large_fields = LargeFields(redis, storage, settings)
        return cls(
            settings=settings,
            redis=redis,
            clock=server_clock(redis),
            async_redis=async_redis,
            poll_cache=PollCache(async_redis),
            storage=storage,
            storage_probe=StorageProbe(storage),
            jobs=jobs,
            large_fields=large_fields,
            large_fields_cache=LargeFieldsCache(large_fields, storage, settings),
            local_copies=LocalCopies(storage, settings.local_copies, settings.fetch_timeout),
            drawing_cache=DrawingCache(settings.drawing_cache),
            drawings_in_progress=SingleFlight(),
            event_feed=EventFeed(settings),
            audio=AudioRepository(redis, settings),
            model_registry=model_registry,
            budgets=budgets,
            metrics=Metrics(QueueMetrics(jobs, model_registry), HousekeepingMetrics(redis), budgets),
            outbound=OutboundClient(settings),
            quotas=Quotas(redis, settings),
            usage=Usage(redis, settings),
            url_signer=UrlSigner(redis, settings),
        )

    async def close(self) -> None:
        """Close the connections and the files."""
        self.local_copies.close()
        await self.event_feed.close()
        self.url_signer.close()
        self.clock.close()
        await self.async_redis.aclose()
        self.redis.close()


async def get_dependencies(request: Request) -> Dependencies:
    """Return the services, with the caller of this request."""
    return replace(request.app.state.deps, caller=callers.get_caller(request))


InjectedDependencies = Annotated[Dependencies, Depends(get_dependencies)]
