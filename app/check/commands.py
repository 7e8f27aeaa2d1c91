"""`python -m app check`."""

import typer

from app.console.deployment import Embedded, exit_on_failure, load_settings

_COLORS = {"ok": "green", "warning": "yellow", "fault": "red"}


def check(embedded: Embedded = False) -> None:
    """Try queue, store, keys, clock and memory policy as the settings name them; exit with 1 on a fault.

    The store is written to, read and deleted from. Nothing else is changed.
    """
    from app import logs
    from app.check import checks

    with exit_on_failure():
        settings = load_settings(embedded)
    logs.configure(settings)
    has_fault = False
    for finding in checks.run_all(settings):
        has_fault |= finding.state == "fault"
        state = typer.style(f"{finding.state:<8}", fg=_COLORS[finding.state])
        typer.echo(f"{finding.name:<15}  {state}  {logs.redact(finding.found)}")
        if finding.advice:
            typer.echo(f"{'':<15}  {'':<8}  -> {finding.advice}")
    if has_fault:
        raise typer.Exit(1)
