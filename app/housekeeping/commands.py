"""`python -m app housekeeping`: the housekeeping process; `reconcile`: look for orphans in the store; `lifecycle`: set
the rules of its bucket."""

from typing import Annotated

import typer

from app.console.deployment import Embedded, exit_on_failure, open_deployment
from app.console.help import Commands
from app.settings import Settings

commands = typer.Typer(cls=Commands)


@commands.callback(invoke_without_command=True)
def run(context: typer.Context) -> None:
    """Requeue lost jobs, remove what has expired and deliver webhooks, until stopped."""
    if context.invoked_subcommand is not None:
        return
    from app import logs
    from app.housekeeping import sweeps

    settings = Settings.load_or_exit()
    logs.configure(settings)
    sweeps.run(settings)


@commands.command()
def reconcile(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print them only.")] = False,
    grace: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds until they are deleted.  [default: EARMARK_ORPHAN_RETENTION]"),
    ] = None,
    embedded: Embedded = False,
) -> None:
    """Find stored objects that no record in Redis owns; housekeeping deletes them after the grace time.

    Needed after a loss of Redis only; housekeeping does the same, slowly, several times a day. Restore Redis first if
    that is possible. Objects that housekeeping knows already are not found again.
    """
    from app.housekeeping.reconciliation import Reconciliation, pages
    from app.storage import Storage

    objects = size = 0
    with open_deployment(embedded) as (settings, redis):
        grace = settings.orphan_retention if grace is None else grace
        reconciliation = Reconciliation(redis, None if dry_run else grace)
        for page in pages(Storage.open(settings)):
            for orphan in reconciliation.find(page):
                typer.echo(f"{orphan.prefix}  {orphan.objects} objects  {orphan.bytes} bytes")
                objects, size = objects + orphan.objects, size + orphan.bytes
    future = "nothing was changed" if dry_run else f"housekeeping deletes them in {grace:g} s"
    typer.secho(f"{objects} objects of {size} bytes have no record" + (f"; {future}" if objects else ""), err=True)


@commands.command()
def lifecycle(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the rules only.")] = False,
) -> None:
    """Replace the lifecycle rules of the S3 bucket by those that fit the retentions in the settings.

    They abort unfinished multipart uploads, and delete what housekeeping should have deleted a week before.
    """
    from app.housekeeping import lifecycle as rules

    settings = Settings.load_or_exit()
    document = rules.document(settings)
    typer.echo(document)
    if not dry_run:
        with exit_on_failure():
            rules.request(settings, "PUT", document.encode())
