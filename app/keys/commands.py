"""`python -m app keys`: create, list and revoke API keys, show their usage, export and import them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import typer

from app.console.deployment import Embedded, open_deployment, print_error
from app.console.help import Commands
from app.keys.names import KeyNames
from app.keys.repository import KeyRepository
from app.keys.transfer import from_lines, require_name, to_line
from app.records.usage import Usage

commands = typer.Typer(
    cls=Commands, help="Create, list, revoke, export and import API keys; show their usage.", no_args_is_help=True
)


@commands.command()
def create(
    name: Annotated[str, typer.Argument(help="Name to show to people.")],
    rate: Annotated[int, typer.Option(min=0, help="Rate limit in requests a minute; 0: no limit.")] = 600,
    audio_seconds: Annotated[int, typer.Option(min=0, help="Quota in seconds of audio a day; 0: no limit.")] = 86400,
    priority: Annotated[
        int, typer.Option(min=1, max=100, help="Weight in the fair queue, relative to other keys.")
    ] = 1,
    embedded: Embedded = False,
) -> None:
    """Create a key and print it with its webhook secret. Neither can be shown again."""
    try:
        require_name(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with _open_keys(embedded) as (keys, _):
        key, api_key = keys.create(name, rate, audio_seconds, priority)
    typer.echo(f"id              {key.id}")
    typer.echo(f"key             {api_key}")
    typer.echo(f"webhook secret  {key.webhook_secret}")
    typer.secho("Save both now: they cannot be shown again.", err=True)


@commands.command("list")
def list_keys(embedded: Embedded = False) -> None:
    """List the valid keys."""
    with _open_keys(embedded) as (keys, _):
        valid_keys, unreadable_ids = keys.list(), keys.unreadable_ids()
    typer.echo(f"{'id':<30}  {'created (UTC)':<16}  {'rate/min':>8}  {'audio s/day':>11}  {'priority':>8}  name")
    for key in valid_keys:
        created = f"{datetime.fromtimestamp(key.created_at, UTC):%Y-%m-%d %H:%M}"
        rate, quota = key.rate or "none", key.audio_seconds or "none"
        typer.echo(f"{key.id:<30}  {created:<16}  {rate:>8}  {quota:>11}  {key.priority:>8}  {key.name}")
    for key_id in unreadable_ids:
        print_error(f"{key_id:<30}  its record is damaged: revoke it and create another")


@commands.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as `create` and `list` print it.")],
    embedded: Embedded = False,
) -> None:
    """Revoke a key at once; its uploads and jobs stay until they expire."""
    with _open_keys(embedded) as (keys, _):
        keys.revoke(key_id)
    typer.echo(f"revoked {key_id}")


@commands.command()
def usage(
    key_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="A key, also a revoked one, day by day.  [default: all keys]")
    ] = None,
    first: Annotated[
        datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="First day, UTC.  [default: 29 days before]")
    ] = None,
    last: Annotated[
        datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day, UTC.  [default: today]")
    ] = None,
    embedded: Embedded = False,
) -> None:
    """Print the requests, the audio seconds and the stored bytes of each key, or of one key by day.

    Revoked keys, and what was done without a key, are listed if they have any in these days.
    """
    with _open_keys(embedded) as (keys, counted):
        since, to = counted.period(first and first.date(), last and last.date())
        names, valid_ids = KeyNames(keys), [key.id for key in keys.list()]
        if key_id:
            rows = [(str(day.day), key_id, [day]) for day in counted.read(key_id, since, to)]
        else:
            others = sorted(counted.owners() - set(valid_ids))
            used = [(owner, counted.read(owner, since, to)) for owner in (*valid_ids, *others)]
            rows = [(owner or "-", owner, days) for owner, days in used if days or owner in valid_ids]
    typer.echo(f"{'day (UTC)' if key_id else 'id':<30}  {'requests':>10}  {'audio s':>12}  {'stored bytes':>16}  name")
    for label, owner, days in rows:
        requests, stored = sum(day.requests for day in days), sum(day.stored_bytes for day in days)
        seconds = sum(day.audio_seconds for day in days)
        typer.echo(f"{label:<30}  {requests:>10}  {seconds:>12.1f}  {stored:>16}  {names.of(owner)}")


@commands.command("export")
def export_keys(
    webhook_secrets: Annotated[
        bool, typer.Option("--webhook-secrets", help="With the secrets that sign webhooks: keep the output secret.")
    ] = False,
    embedded: Embedded = False,
) -> None:
    """Print the records of all valid keys as JSON lines: their SHA-256, for `import` after a loss of Redis."""
    with _open_keys(embedded) as (keys, _):
        valid_keys, unreadable_ids = keys.list(), keys.unreadable_ids()
    for key in valid_keys:
        typer.echo(to_line(key, webhook_secrets))
    for key_id in unreadable_ids:
        print_error(f"{key_id} is left out: its record is damaged")


@commands.command("import")
def import_keys(
    file: Annotated[typer.FileText, typer.Argument(help="Output of `export`; -: standard input.")],
    embedded: Embedded = False,
) -> None:
    """Add exported keys: those who have them can use them again. Keys that exist stay as they are.

    A key that was revoked after the export becomes valid again.
    """
    with _open_keys(embedded) as (keys, _):
        imported = from_lines(file)
        added = [(key, has_new_secret) for key, has_new_secret in imported if keys.add(key)]
    for key, has_new_secret in added:
        typer.echo(f"{key.id}  {key.name}" + (f"  new webhook secret: {key.webhook_secret}" if has_new_secret else ""))
    typer.secho(f"{len(added)} keys imported, {len(imported) - len(added)} were there already", err=True)


@contextmanager
def _open_keys(embedded: bool) -> Iterator[tuple[KeyRepository, Usage]]:
    with open_deployment(embedded) as (settings, redis):
        yield KeyRepository(redis), Usage(redis, settings)
