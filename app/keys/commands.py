"""`python -m app keys`: create, list and revoke API keys."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import typer
from redis.exceptions import RedisError

from app.errors import NotFound
from app.keys.repository import KeyRepository
from app.redis_client import connect
from app.settings import Settings

commands = typer.Typer(help=__doc__, no_args_is_help=True)
Embedded = Annotated[bool, typer.Option("--embedded", help="Use the embedded service that runs on EARMARK_HOME.")]


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
    if not name.isprintable() or not 0 < len(name) <= 64:
        raise typer.BadParameter("a name has 1 to 64 printable characters")
    with _open_keys(embedded) as keys:
        key, api_key = keys.create(name, rate, audio_seconds, priority)
    typer.echo(f"id              {key.id}")
    typer.echo(f"key             {api_key}")
    typer.echo(f"webhook secret  {key.webhook_secret}")
    typer.secho("Save both now: they cannot be shown again.", err=True)


@commands.command("list")
def list_keys(embedded: Embedded = False) -> None:
    """List the valid keys."""
    with _open_keys(embedded) as keys:
        valid_keys, unreadable_ids = keys.list(), keys.unreadable_ids()
    typer.echo(f"{'id':<30}  {'created (UTC)':<16}  {'rate/min':>8}  {'audio s/day':>11}  {'priority':>8}  name")
    for key in valid_keys:
        created = f"{datetime.fromtimestamp(key.created_at, UTC):%Y-%m-%d %H:%M}"
        rate, quota = key.rate or "none", key.audio_seconds or "none"
        typer.echo(f"{key.id:<30}  {created:<16}  {rate:>8}  {quota:>11}  {key.priority:>8}  {key.name}")
    for key_id in unreadable_ids:
        typer.secho(f"{key_id:<30}  its record is damaged: revoke it and create another", fg="red", err=True)


@commands.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as `create` and `list` print it.")],
    embedded: Embedded = False,
) -> None:
    """Revoke a key at once; its uploads and jobs stay until they expire."""
    with _open_keys(embedded) as keys:
        keys.revoke(key_id)
    typer.echo(f"revoked {key_id}")


@contextmanager
def _open_keys(embedded: bool) -> Iterator[KeyRepository]:
    from app.embedded import EmbeddedError, queue_settings

    try:
        settings = Settings.load_or_exit()
        with connect(queue_settings(settings) if embedded else settings) as redis:
            yield KeyRepository(redis)
    except (EmbeddedError, NotFound) as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(1) from None
    except RedisError as error:
        typer.secho(f"Redis (EARMARK_REDIS_URL) does not answer: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
