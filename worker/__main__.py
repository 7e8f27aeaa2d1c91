"""`python -m worker`: load a model and run its jobs from the queue until a signal to stop."""

import os
import sys
from typing import Annotated, Literal

import typer

from app import logs
from app.settings import Settings
from models.compute.allocator import keep_freed_memory, use_huge_pages, use_one_heap
from models.compute.threads import prepare
from worker.pool import EXIT_UNUSABLE, WorkersUnusable, run

cli = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
EXIT_LOST = 1


@cli.command()
def main(
    model: Annotated[str | None, typer.Option(help="A preset's name, or a folder of weights.  [default: base]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[Literal["auto", "exact"], typer.Option(help="exact: float32 without shortcuts.")] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            min=0, help="CPU threads for computation; 0: an equal share.  [default: EARMARK_WORKER_THREADS, or 0]"
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            help="Worker processes to start, each with its own model; they may share a GPU.  "
            "[default: EARMARK_WORKER_PROCESSES, or 1]",
        ),
    ] = None,
    short: Annotated[
        bool,
        typer.Option(
            "--short", help="Take only short jobs (EARMARK_SHORT_SECONDS), so that long ones never block them."
        ),
    ] = False,
    one_job: Annotated[
        bool,
        typer.Option(
            "--one-job",
            help="Do not run a short job beside another one; without this, a process that computes on a CPU with two "
            "threads or more does.",
        ),
    ] = False,
    burst: Annotated[bool, typer.Option("--burst", help="Exit when the queue is empty.")] = False,
    hand_over_after: Annotated[
        float, typer.Option(help="Seconds a job may still run after SIGTERM before it returns to the queue.")
    ] = 20.0,
) -> None:
    """Run jobs of one model; the queue and the store are set by EARMARK_* variables.

    Workers that are started separately and compute on one host's CPU compete for its cores: limit each with --threads.
    """
    settings = Settings.load_or_exit(worker_threads=threads, worker_processes=processes)
    logs.configure(settings)
    if settings.worker_processes > 1:
        if burst:
            raise typer.BadParameter("works with one process: --processes 1", param_hint="--burst")
        _start_several(settings, hand_over_after)
        return
    prepare(settings.worker_threads)
    keep_freed_memory()
    use_one_heap()  # two jobs at a time: each thread would keep the memory of its job
    use_huge_pages()
    # After the validation of settings, since importing torch takes seconds, and after `prepare`.
    from worker.decode import SANDBOX

    SANDBOX.start()  # it imports its decoders while this process imports torch
    from worker.process import WorkerLost, WorkerUnusable, work

    try:
        work(
            settings,
            model or settings.model,
            device,
            precision,
            burst=burst,
            hand_over_after=hand_over_after,
            short=short,
            one_job=one_job,
        )
    except WorkerUnusable as error:
        typer.secho(f"The worker cannot run jobs: {error}", fg="red", err=True)
        raise typer.Exit(EXIT_UNUSABLE) from None
    except WorkerLost as error:
        typer.secho(f"The worker ends: {error}", fg="red", err=True)
        raise typer.Exit(EXIT_LOST) from None


def _start_several(settings: Settings, hand_over_after: float) -> None:
    try:
        run(settings, sys.argv[1:], hand_over_after)
    except WorkersUnusable:
        raise typer.Exit(EXIT_UNUSABLE) from None


if __name__ == "__main__":
    cli(prog_name=os.environ.get("_EARMARK_PROGRAM"))  # `earmark` sets it
