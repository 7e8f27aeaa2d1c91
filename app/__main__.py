"""`python -m app`: the API; `--embedded`: the whole service; `python -m app housekeeping`: recovery and expiry."""

import logging
import os
import resource
import socket
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from app.check.commands import check
from app.console.help import Commands
from app.housekeeping.commands import commands as housekeeping
from app.job_admin.commands import commands as jobs
from app.keys.commands import commands as keys
from app.keys.exposure import ExposedWithoutKeys, check_exposure
from app.settings import Settings

_OTHER_FILES = 1024  # that an API process may have open beside its connections: uploads, the store, Redis, modules
KEEP_ALIVE = 10  # s that an idle connection is kept open
GRACEFUL_TIMEOUT = 10  # s that running requests may take when the server stops

cli = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
cli.add_typer(keys, name="keys")
cli.add_typer(jobs, name="jobs")
cli.command()(check)
cli.add_typer(housekeeping, name="housekeeping")
Host = Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0: a free one.  [default: 8000]")]


@cli.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    embedded: Annotated[bool, typer.Option("--embedded", help="Also start Valkey, a worker and housekeeping.")] = False,
    host: Host = None,
    port: Port = None,
    model: Annotated[str | None, typer.Option(help="The default model.  [default: base]")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder with the weights for the embedded worker.  [default: the shipped model]")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Folder of the embedded service's data.")] = None,
) -> None:
    """Serve the API. Settings come from EARMARK_* environment variables."""
    if context.invoked_subcommand is not None:
        return
    settings = Settings.load_or_exit(host=host, port=port, model=model, home=home)
    if embedded and "auth" not in settings.model_fields_set:
        settings = Settings.load_or_exit(host=host, port=port, model=model, home=home, auth="off")
    _require_authentication(settings)
    if embedded:
        _run_embedded(settings, weights)
    else:
        _serve(settings, listener=None)


@cli.command()
def serve(
    host: Host = None,
    port: Port = None,
    descriptor: Annotated[
        int | None, typer.Option(hidden=True, help="Descriptor of an inherited listening socket.")
    ] = None,
) -> None:
    """Serve the API."""
    listener = socket.socket(fileno=descriptor) if descriptor is not None else None
    settings = Settings.load_or_exit(host=host, port=port)
    _require_authentication(settings)
    _serve(settings, listener)


@cli.command()
def settings(
    into: Annotated[
        Path | None,
        typer.Option(
            help="Markdown file, or folder of such files, whose tables, each between two marks, are replaced."
        ),
    ] = None,
) -> None:
    """Print all settings, and all that clients share, as Markdown tables."""
    from app.tables import document

    if into is None:
        typer.echo("\n\n".join(table() for table in document.TABLES.values()))
    else:
        typer.echo("written" if document.write_into(into) else "unchanged")


@cli.command()
def openapi(path: Annotated[Path, typer.Argument(help="File to write.")] = Path("openapi.json")) -> None:
    """Write the OpenAPI document."""
    from app.http.openapi import to_json
    from app.main import create_app

    with tempfile.TemporaryDirectory() as home:
        path.write_text(to_json(create_app(Settings(home=Path(home)))), encoding="utf-8")


def _require_authentication(settings: Settings) -> None:
    try:
        check_exposure(settings)
    except ExposedWithoutKeys as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from None


def _raise_file_limit(wanted: int) -> None:
    """Raise the limit of open files, which is 1,024 on many machines, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        logging.getLogger("earmark").warning("%d open files are allowed; EARMARK_CONNECTIONS needs %d", hard, wanted)


def _run_embedded(settings: Settings, weights: Path | None) -> None:
    from app import logs
    from app.embedded import EmbeddedError, run
    from app.supervisor import ProgramFailed

    logs.configure(settings)
    try:
        run(settings, typer.echo, weights)
    except (EmbeddedError, ProgramFailed) as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(1) from None


def _serve(settings: Settings, listener: socket.socket | None) -> None:
    import uvicorn

    from app import logs, metrics
    from app.dependencies import Dependencies
    from app.http import garbage
    from app.http.uvicorn_protocol import HttpProtocol
    from app.main import create_app

    logs.configure(settings, access=listener is None)
    _raise_file_limit(settings.connections + _OTHER_FILES)
    app = create_app(settings)
    deps: Dependencies = app.state.deps
    metrics.serve(settings.metrics_port, settings.metrics_host, deps.metrics.registry)

    class Server(uvicorn.Server):
        """Collects no garbage among what lives as long as the process; ends the event streams at shutdown, which open
        streams would delay."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            garbage.freeze()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            deps.event_feed.end()
            await super().shutdown(sockets)

    server = Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=GRACEFUL_TIMEOUT,
            http=HttpProtocol.for_server(deps.budgets.connections),
            ws="none",
            server_header=False,
            forwarded_allow_ips=settings.proxy_networks.split(","),
            log_config=None,  # `logs.configure` has set it up
            log_level=settings.log_level,
            access_log=False,  # it would log URLs with their tokens; ObservationMiddleware logs requests
        )
    )
    server.run(sockets=[listener] if listener else None)


if __name__ == "__main__":
    cli(prog_name=os.environ.get("_EARMARK_PROGRAM"))  # `earmark` sets it
