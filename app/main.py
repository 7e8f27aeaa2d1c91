"""The front end: `create_app(settings)` wires the application together; nothing else happens here."""

from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, get_args

from fastapi import FastAPI

from app.audio.routes import router as audio
from app.audio.schemas import PresignSent, UrlSent
from app.audio.tus import router as tus
from app.dependencies import Dependencies
from app.health.routes import router as health
from app.http import cors, docs, openapi, problems
from app.http.observation import ObservationMiddleware
from app.idempotency.middleware import IdempotencyMiddleware
from app.idempotency.repository import IdempotencyRepository
from app.job_api.routes import PollRoute
from app.jobs.lifecycle import TerminalStatus
from app.keys.concurrency import ConcurrencyMiddleware
from app.keys.middleware import AuthenticationMiddleware, Authenticator
from app.labels.routes import router as labels
from app.limits.routes import router as limits
from app.model_catalogue.routes import router as models
from app.resources import SERVED_KINDS
from app.sample_recordings import routes as sample_recordings
from app.settings import Settings
from app.usage.routes import router as usage
from app.web import routes as page

VERSION = "0.2.0"


def _has_signed_url(scope: MutableMapping[str, Any]) -> bool:
    """Whether a request's URL grants access by itself: traces hold URLs, and other people read them."""
    return b"token=" in scope.get("query_string", b"")


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application for one deployment; without settings, for the one that the environment describes."""
    settings = settings or Settings()
    deps = Dependencies.open(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await deps.close()

    app = FastAPI(
        title="Earmark",
        version=VERSION,
        description="A recording and an example of a sound in, that sound alone out.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=openapi.operation_id,
        # Off unless OTEL_EXPORTER_OTLP_ENDPOINT is set; then the extra `telemetry` must be installed. Routes and
        # durations alone: texts of errors may hold what clients sent.
        telemetry={"auto_configure": True, "logs": False, "metrics": False, "exclude": _has_signed_url},
    )
    app.state.deps = deps
    problems.install(app)
    resources = [served.resource for served in SERVED_KINDS]
    app.router.routes.extend(PollRoute(resource, deps) for resource in resources)
    for router in (audio, tus, *(served.router for served in SERVED_KINDS), labels, models, limits, usage, health):
        app.include_router(router)
    docs.install(app)
    sample_recordings.install(app)
    page.install(app)
    openapi.describe(
        app,
        [PresignSent, *(resource.body for resource in resources), UrlSent],
        {f"/v1/{resource.kind.folder}": resource.body_for_upload for resource in resources},
        {resource.kind.name: resource.answer for resource in resources},
        get_args(TerminalStatus),
    )
    # The last one added is the outermost: observation, CORS, authentication, concurrency, idempotency, routes.
    app.add_middleware(
        IdempotencyMiddleware,
        repository=IdempotencyRepository(deps.redis, settings),
        budgets=deps.budgets,
        url_signer=deps.url_signer,
        settings=settings,
    )
    app.add_middleware(ConcurrencyMiddleware, budget=deps.budgets.requests)
    app.add_middleware(
        AuthenticationMiddleware,
        authenticator=Authenticator(deps.async_redis, deps.poll_cache, deps.url_signer, settings),
        metrics=deps.metrics,
        wrong_keys=settings.wrong_keys,
    )
    cors.install(app, settings)
    app.add_middleware(ObservationMiddleware, metrics=deps.metrics)
    return app
