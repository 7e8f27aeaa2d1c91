"""Progress bar of a training run."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from models.runs.run_folder import progress_console
from models.training.loop import Advance, Loop, Report


@contextmanager
def training_bar(name: str) -> Iterator[tuple[Report, Advance]]:
    """Show a progress bar with the speed in seconds of audio a second; rows of the log are printed above it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[speed]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=progress_console) as progress:
        # Hidden until the first step, since only the first of several processes advances it.
        task = progress.add_task(name, total=1.0, speed="", visible=False)

        def advance(loop: Loop) -> None:
            state = loop.state
            seconds = max(state.seconds, 1e-9)
            pace, waiting = state.audio / seconds, state.waited / seconds
            speed = f"step {state.step}, {pace:.0f} s of audio a second, {waiting:.1%} waiting"
            progress.update(
                task, visible=True, completed=loop.schedule.progress(state.step, state.seconds), speed=speed
            )

        yield lambda row: progress_console.print(row), advance
