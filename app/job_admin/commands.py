"""`python -m app jobs`: list, show, cancel and delete the jobs of any key."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Literal

import typer

from app.console.deployment import Embedded, open_deployment, print_error
from app.console.help import Commands
from app.errors import EarmarkError, StoreUnavailable
from app.job_admin.all_jobs import AllJobs
from app.jobs.kinds import KINDS
from app.jobs.lifecycle import Job, Status

commands = typer.Typer(cls=Commands, help="List, show, cancel and delete the jobs of any key.", no_args_is_help=True)
JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of the job, such as sep_01J...")]
JobIds = Annotated[list[str], typer.Argument(metavar="ID", help="Ids of the jobs.")]


@commands.command("list")
def list_jobs(
    key: Annotated[str | None, typer.Option(help="Name or id of the key that owns them.  [default: all keys]")] = None,
    kind: Annotated[
        Literal["separation", "detection", "query"] | None, typer.Option(help="Jobs of this kind.  [default: all]")
    ] = None,
    status: Annotated[Status | None, typer.Option(help="Jobs in this state.  [default: all]")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print each record as a line of JSON.")] = False,
    embedded: Embedded = False,
) -> None:
    """List jobs, the newest first."""
    with _open_jobs(embedded) as jobs:
        found = jobs.newest(jobs.owners(key), [kind] if kind else KINDS, status)
        if not as_json:
            typer.echo(f"{'id':<30}  {'created (UTC)':<19}  {'status':<9}  {'audio s':>9}  {'model':<12}  key")
        for job in islice(found, limit):
            typer.echo(job.document() if as_json else _line(jobs, job))


@commands.command()
def show(
    job_id: JobId,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
    embedded: Embedded = False,
) -> None:
    """Show a job: its state and times, its key, and what became of its targets."""
    with _open_jobs(embedded) as jobs:
        job = jobs.get(job_id)
        try:
            job = jobs.load(job)
        except StoreUnavailable as error:
            print_error(f"without {', '.join(job.stored_names)}: the store (EARMARK_STORE): {error.detail}")
        if as_json:
            typer.echo(job.model_dump_json())
            return
        for name, value in _rows(jobs, job):
            typer.echo(f"{name:<12}  {value}")


@commands.command()
def cancel(job_ids: JobIds, embedded: Embedded = False) -> None:
    """Cancel jobs: those that wait at once, those that run as soon as their worker has stopped."""

    def cancel_one(jobs: AllJobs, job_id: str) -> str:
        return "canceled" if jobs.cancel(job_id).status == "canceled" else "asked to stop"

    _for_each(job_ids, cancel_one, embedded)


@commands.command()
def delete(job_ids: JobIds, embedded: Embedded = False) -> None:
    """Delete jobs, in whatever state, with their stems and all else that they have stored. It cannot be undone."""

    def delete_one(jobs: AllJobs, job_id: str) -> str:
        try:
            jobs.delete(job_id)
        except StoreUnavailable:
            return "deleted; the store does not answer, and housekeeping deletes the files once it does"
        return "deleted"

    _for_each(job_ids, delete_one, embedded)


@contextmanager
def _open_jobs(embedded: bool) -> Iterator[AllJobs]:
    with open_deployment(embedded) as (settings, redis):
        yield AllJobs(redis, settings)


def _for_each(job_ids: list[str], act: Callable[[AllJobs, str], str], embedded: bool) -> None:
    """Print what became of each job; exit with 1 if one of them was refused, after all others."""
    has_failed = False
    with _open_jobs(embedded) as jobs:
        for job_id in job_ids:
            try:
                typer.echo(f"{job_id}  {act(jobs, job_id)}")
            except EarmarkError as error:
                print_error(f"{job_id}  {error.detail}")
                has_failed = True
    if has_failed:
        raise typer.Exit(1)


def _line(jobs: AllJobs, job: Job) -> str:
    seconds = "" if job.audio_seconds is None else f"{job.audio_seconds:.1f}"
    created = _time(job.created_at)
    return f"{job.id:<30}  {created:<19}  {job.status:<9}  {seconds:>9}  {job.model:<12}  {_key(jobs, job)}"


def _key(jobs: AllJobs, job: Job) -> str:
    return f"{job.owner} {jobs.key_names.of(job.owner)}".strip()


def _rows(jobs: AllJobs, job: Job) -> Iterator[tuple[str, str]]:
    """Yield the names and values of the properties that a job's record has."""
    yield "id", job.id
    yield "status", f"{job.status}, its output has expired" if job.expired else job.status
    if position := jobs.position(job):
        yield "position", f"{position} in the queue"
    if job.status == "running":
        yield "progress", f"{job.progress.stage}, {job.progress.ratio:.0%}"
    yield "key", _key(jobs, job)
    yield "model", job.model
    if job.audio_seconds is not None:
        yield "audio", f"{job.audio_seconds:.1f} s, charged {job.charged_seconds or job.audio_seconds:.1f} s"
    yield "uploads", " ".join(job.audio_ids) or "none"
    yield "attempts", str(job.attempts)
    times = {
        "created": job.created_at,
        "started": job.started_at,
        "cancel asked": job.cancel_requested_at,
        "finished": job.finished_at,
        "expires": job.expires_at,
    }
    yield from ((name, f"{_time(seconds)} UTC") for name, seconds in times.items() if seconds is not None)
    if job.request_id:
        yield "request", job.request_id
    for target in job.targets:
        presence = "" if target.presence is None else f", present with {target.presence:.2f}"
        error = "" if target.error is None else f", {target.error.code}: {target.error.detail}"
        yield "target", f"{target.name}: {target.status}{presence}{error}"
    if metrics := (job.result or {}).get("metrics"):
        yield "metrics", ", ".join(f"{name} {figure:.3g}" for name, figure in metrics.items())
    for warning in job.warnings:
        yield "warning", warning
    if job.error is not None:
        yield "error", f"{job.error.code}: {job.error.detail}"


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
