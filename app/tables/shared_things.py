"""All that the clients of a deployment share, with bounds from the settings and from the code that applies them."""

from dataclasses import dataclass

from redis.asyncio import Redis

from app.budgets.budget import Budget
from app.budgets.process_budgets import ProcessBudgets
from app.housekeeping.webhook_delivery import CONCURRENCY, CONCURRENCY_PER
from app.media import demuxing, probe, spectrogram, waveform
from app.settings import Settings
from app.settings.units import MIB

BUDGET_USED_UP = "EarmarkBudgetUsedUp"
CLIENTS_REFUSED = "EarmarkClientsRefused"

# Settings of the budgets of a process, by name, except `key_share`, which applies to all of them.
_SETTINGS: dict[str, tuple[str, ...]] = {
    "connections": ("connections",),
    "requests": ("requests_in_progress",),
    "streams": ("event_streams",),
    "uploads": ("upload_slots", "budget_patience"),
    "upload_room": ("upload_room", "busy_upload_rate"),
    "fetches": ("fetch_slots", "budget_patience"),
    "probes": ("probe_slots", "budget_patience"),
    "store_writes": ("store_slots", "budget_patience"),
    "waveforms": ("waveform_slots", "budget_patience"),
    "sections": ("section_slots", "budget_patience"),
}


@dataclass(frozen=True)
class SharedThing:
    """What is shared, as the table shows it: `share` of one key and `total` with the values of the settings."""

    what: str
    share: str
    total: str
    settings: tuple[str, ...]
    metric: str
    alert: str
    answer: str


def shared_things(settings: Settings) -> list[SharedThing]:
    """Return all that is shared, with the bounds that follow from these settings."""
    budgets = ProcessBudgets(settings, Redis())  # which connects when it is used
    return [
        *(_of_process(budget) for budget in budgets.all() if isinstance(budget, Budget)),
        SharedThing(
            what="memory of the Redis server",
            share="of kept jobs, uploads and responses, see below",
            total=f"{_number(settings.redis_share)} of its `maxmemory`",
            settings=("redis_share",),
            metric="earmark_redis_memory_used_bytes",
            alert="EarmarkRedisMemory",
            answer="503 `overloaded`",
        ),
        SharedThing(
            what="kept jobs and saved queries",
            share=_number(settings.kept_jobs),
            total="the memory of the Redis server",
            settings=("kept_jobs", "record_retention"),
            metric='earmark_budget_refused_total{budget="kept_jobs"}',
            alert=CLIENTS_REFUSED,
            answer="429 `quota_exceeded`",
        ),
        SharedThing(
            what="excerpts of saved queries' examples in the store",
            share=_number(settings.excerpt_bytes, "bytes"),
            total="the bucket's quota",
            settings=("excerpt_bytes",),
            metric='earmark_budget_refused_total{budget="excerpt_bytes"}',
            alert=CLIENTS_REFUSED,
            answer="429 `quota_exceeded`",
        ),
        SharedThing(
            what="kept uploads",
            share=_number(settings.kept_uploads),
            total="the memory of the Redis server",
            settings=("kept_uploads", "upload_retention"),
            metric='earmark_budget_refused_total{budget="kept_uploads"}',
            alert=CLIENTS_REFUSED,
            answer="429 `quota_exceeded`",
        ),
        SharedThing(
            what="bytes of responses kept for an `Idempotency-Key`",
            share=_number(settings.idempotency_bytes, "bytes"),
            total="the memory of the Redis server",
            settings=("idempotency_bytes", "idempotency_refusal_bytes", "idempotency_seconds"),
            metric='earmark_budget_refused_total{budget="idempotency"}',
            alert=CLIENTS_REFUSED,
            answer="429 `rate_limited`",
        ),
        SharedThing(
            what="a job's record, and each of its events",
            share="20 KB of Redis; larger parts are in the store",
            total="the memory of the Redis server",
            settings=("detection_events", "record_retention"),
            metric="earmark_redis_memory_used_bytes",
            alert="EarmarkRedisMemory",
            answer="none; 503 `store_unavailable` while the store is away",
        ),
        SharedThing(
            what="CPU seconds of a probe, of a waveform, of a section",
            share="as in all, times its probes, waveforms and sections",
            total=", ".join(str(one.SANDBOX_LIMITS.cpu_seconds) for one in (probe, waveform, spectrogram)),
            settings=("probe_slots", "waveform_slots", "section_slots"),
            metric="earmark_http_request_duration_seconds",
            alert=BUDGET_USED_UP,
            answer="422 `audio_undecodable`",
        ),
        SharedThing(
            what="packets in a row without sound, in such a file",
            share="as in all",
            total=_number(demuxing.MAX_FRAMELESS_PACKETS),
            settings=(),
            metric="earmark_http_request_duration_seconds",
            alert=BUDGET_USED_UP,
            answer="422 `audio_undecodable`",
        ),
        SharedThing(
            what="connections of an address to the proxy",
            share="128 of an address",
            total="4,096 of a process of the proxy",
            settings=(),
            metric="earmark_http_requests_in_progress",
            alert=BUDGET_USED_UP,
            answer="429 of the proxy",
        ),
        SharedThing(
            what="requests a minute",
            share="`keys create --rate`; without keys see in all",
            total=f"without keys {_limit(settings.open_rate)}; with keys the sum of their rates",
            settings=("open_rate",),
            metric="earmark_http_requests_total",
            alert=CLIENTS_REFUSED,
            answer="429 `rate_limited`",
        ),
        SharedThing(
            what="audio seconds a day, in which channels and targets count",
            share="`keys create --audio-seconds`; without keys see in all",
            total=f"without keys {_limit(settings.open_audio_seconds)}; with keys the sum of their quotas",
            settings=("open_audio_seconds",),
            metric="earmark_audio_seconds_total",
            alert=CLIENTS_REFUSED,
            answer="429 `quota_exceeded`",
        ),
        SharedThing(
            what="waiting jobs of a model",
            share=_number(settings.queue_jobs * settings.queue_share),
            total=_number(settings.queue_jobs),
            settings=("queue_jobs", "queue_share"),
            metric="earmark_jobs_waiting",
            alert="EarmarkJobsWaitLong",
            answer="503 `queue_full`",
        ),
        SharedThing(
            what="audio seconds of the waiting jobs of a model",
            share=_number(settings.queue_audio_seconds * settings.queue_share),
            total=_number(settings.queue_audio_seconds),
            settings=("queue_audio_seconds", "queue_share"),
            metric="earmark_jobs_waiting_audio_seconds",
            alert="EarmarkJobsWaitLong",
            answer="503 `queue_full`",
        ),
        SharedThing(
            what="workers' time",
            share="in proportion to `keys create --priority`",
            total=f"one job a worker process and a short one beside it, {_number(settings.execution_timeout(0))} s "
            f"each and {settings.job_timeout_factor:g} s for a second of its recording, "
            f"x {settings.high_quality_factor:g} with `quality` high",
            settings=(
                *("ready_jobs", "short_seconds", "job_timeout", "job_timeout_factor", "high_quality_factor"),
                "job_attempts",
            ),
            metric="earmark_job_waiting_duration_seconds",
            alert="EarmarkJobsWaitLong",
            answer="202; the job waits for its turn",
        ),
        SharedThing(
            what="scratch of a worker, for a job and a short one",
            share=f"{_number(settings.scratch_bytes, 'bytes')} a job",
            total="the same, for each worker process",
            settings=("scratch_bytes",),
            metric="earmark_jobs_finished_total",
            alert="EarmarkJobsFail",
            answer="413 `request_too_large`; a full disk retries the job, at last `disk_full`",
        ),
        SharedThing(
            what="a separation's files in the store",
            share=f"{_number(settings.stored_bytes, 'bytes')} a job",
            total="the bucket's quota",
            settings=("stored_bytes", "stem_retention"),
            metric="earmark_store_call_duration_seconds",
            alert="EarmarkStoreFails",
            answer="413 `request_too_large`",
        ),
        SharedThing(
            what="pending presigned and resumable uploads",
            share=_number(settings.awaited_uploads),
            total="the sum of the keys' shares",
            settings=("awaited_uploads", "upload_retention"),
            metric='earmark_budget_refused_total{budget="awaited_uploads"}',
            alert=CLIENTS_REFUSED,
            answer="429 `quota_exceeded`",
        ),
        SharedThing(
            what="webhook attempts (housekeeping process)",
            share=f"{CONCURRENCY_PER['owner']}, and {CONCURRENCY_PER['host']} of a host",
            total=_number(CONCURRENCY),
            settings=("webhook_timeout",),
            metric="earmark_webhook_deliveries_total",
            alert="EarmarkWebhooksGivenUp",
            answer="none; the attempt waits for its turn",
        ),
        SharedThing(
            what="uploads and stems in the store",
            share="what its rate and its quota allow",
            total="the bucket's quota",
            settings=("upload_bytes", "upload_retention", "stem_retention"),
            metric="earmark_upload_bytes_total",
            alert="EarmarkStoreFails",
            answer="503 `store_unavailable`",
        ),
    ]


def _of_process(budget: Budget) -> SharedThing:
    wait = f" after {budget.patience:.10g} s" if budget.patience else ""
    share, total = (_number(amount, budget.noun) for amount in (budget.per_key, budget.total))
    return SharedThing(
        what=f"{budget.noun} (API process)",
        share=share if budget.has_shares else "not known",
        total=total,
        settings=(*_SETTINGS[budget.name], *(["key_share"] if budget.has_shares else [])),
        metric=f'earmark_budget_used{{budget="{budget.name}"}}',
        alert=BUDGET_USED_UP,
        answer=f"429 `rate_limited` (share), 503 `overloaded` (all){wait}"
        if budget.has_shares
        else f"503 `overloaded`{wait}",
    )


def _limit(number: float) -> str:
    return _number(number) if number else "no limit"


def _number(number: float, noun: str = "") -> str:
    """Return a bound as people read it; bytes in MiB."""
    if noun.startswith("bytes"):
        return f"{number / MIB:,.10g} MiB"
    return f"{number:,.10g}"
