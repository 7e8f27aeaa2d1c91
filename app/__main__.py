"""`python -m app`: the API; `--embedded`: everything; `python -m app housekeeping`: what keeps it tidy."""

import socket
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from app.keys.commands import commands as keys
from app.keys.exposure import ExposedWithoutKeys, check_exposure
from app.settings import Settings

CONNECTIONS = 2048  # at once, most of them waiting for events; more are answered 503 at the door
KEEP_ALIVE = 10  # s an idle connection is kept
GRACEFUL = 10  # s that running requests get when the server stops

cli = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
cli.add_typer(keys, name="keys")
Host = Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0: a free one.  [default: 8000]")]


@cli.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    embedded: Annotated[bool, typer.Option("--embedded", help="Also start the queue's server and a worker.")] = False,
    host: Host = None,
    port: Port = None,
    model: Annotated[str | None, typer.Option(help="The default model.  [default: base]")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The embedded worker's weights, a folder.  [default: the shipped model]")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Where the embedded service keeps its files.")] = None,
) -> None:
    """Serves the API, with settings from EARMARK_* variables."""
    if context.invoked_subcommand is not None:
        return
    settings = _settings(host=host, port=port, model=model, home=home)
    if embedded and "auth" not in settings.model_fields_set:
        settings = _settings(host=host, port=port, model=model, home=home, auth="off")
    _refuse_if_exposed(settings)
    if embedded:
        _run_embedded(settings, weights)
    else:
        _serve(settings, listener=None)


@cli.command()
def serve(
    host: Host = None,
    port: Port = None,
    descriptor: Annotated[int | None, typer.Option(hidden=True, help="A bound socket, inherited.")] = None,
) -> None:
    """Serves the API."""
    listener = socket.socket(fileno=descriptor) if descriptor is not None else None
    settings = _settings(host=host, port=port)
    _refuse_if_exposed(settings)
    _serve(settings, listener)


@cli.command()
def housekeeping() -> None:
    """Gives lost work to other workers, and removes what has expired, until it is stopped."""
    from app import logs, metrics
    from app.housekeeping.sweeps import run

    settings = _settings()
    logs.configure(settings)
    metrics.serve(settings.housekeeping_metrics_port, settings.metrics_host)
    run(settings)


@cli.command()
def settings(
    into: Annotated[Path | None, typer.Option(help="A Markdown file to write it into, between its two marks.")] = None,
) -> None:
    """Prints every setting as a table."""

    from app import settings_table

    if into is None:
        typer.echo(settings_table.table())
    else:
        typer.echo("written" if settings_table.write_into(into) else "unchanged")


@cli.command()
def openapi(path: Annotated[Path, typer.Argument(help="File to write.")] = Path("openapi.json")) -> None:
    """Writes the contract as an OpenAPI document."""
    from app.http.openapi import to_json
    from app.main import create_app

    with tempfile.TemporaryDirectory() as home:
        path.write_text(to_json(create_app(Settings(home=Path(home)))), encoding="utf-8")


def _settings(**choices: Any) -> Settings:
    try:
        return Settings(**{name: value for name, value in choices.items() if value is not None})
    except ValidationError as error:
        for fault in error.errors():
            typer.secho(f"EARMARK_{str(fault['loc'][0]).upper()}: {fault['msg']}", fg="red", err=True)
        raise typer.Exit(2) from None


def _refuse_if_exposed(settings: Settings) -> None:
    try:
        check_exposure(settings)
    except ExposedWithoutKeys as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from None


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
    from app.http.uvicorn_protocol import HttpProtocol
    from app.main import create_app

    logs.configure(settings, access=listener is None)
    app = create_app(settings)
    metrics.serve(settings.metrics_port, settings.metrics_host, app.state.deps.metrics.registry)

    class Server(uvicorn.Server):
        """Ends what would otherwise stay open, and keep it from stopping."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.deps.event_feed.end()
            await super().shutdown(sockets)

    server = Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=GRACEFUL,
            http=HttpProtocol,
            ws="none",
            server_header=False,
            log_config=None,  # as `logs.configure` has it
            log_level=settings.log_level,
            access_log=False,  # it would log addresses with their signatures; see `Observation`
        )
    )
    server.run(sockets=[listener] if listener else None)


if __name__ == "__main__":
    cli()
