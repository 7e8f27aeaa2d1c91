"""`python -m worker`: loads a model and takes jobs for it off the queue until it is told to stop."""

import logging
from typing import Annotated

import typer

from app.settings import Settings

cli = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
EXIT_UNUSABLE = 2


@cli.command()
def main(
    model: Annotated[str | None, typer.Option(help="A preset's name, or a folder of weights.  [default: base]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, or exact: float32 without shortcuts.")] = "auto",
    burst: Annotated[bool, typer.Option("--burst", help="End when the queue is empty.")] = False,
    hand_over_after: Annotated[
        float, typer.Option(help="Seconds a job may still run after SIGTERM before it goes back to the queue.")
    ] = 20.0,
) -> None:
    """Works on the queue `earmark:MODEL`; the queue and the store come from EARMARK_* variables."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    from worker.service import WorkerUnusable, work

    settings = Settings()
    try:
        work(settings, model or settings.model, device, precision, burst=burst, hand_over_after=hand_over_after)
    except WorkerUnusable as error:
        typer.secho(f"The worker cannot start: {error}", fg="red", err=True)
        raise typer.Exit(EXIT_UNUSABLE) from None


if __name__ == "__main__":
    cli()
