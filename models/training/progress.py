"""Progress of a training run: a bar, or lines where it is not watched in a terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from models.console import progress_console
from models.training.loop import Advance, Loop, Report

LINE_SECONDS = 60.0


@contextmanager
def training_bar(name: str, line_seconds: float = LINE_SECONDS) -> Iterator[tuple[Report, Advance]]:
    """Show a progress bar with the loss and the speed in seconds of audio a second; rows of the log are printed above
    it. In a file or a pipe there is no bar, but a line after the first step and then every `line_seconds`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[speed]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=progress_console) as progress:
        next_line = time.monotonic()

        # Hidden until the first step, since only the first of several processes advances it.
        task = progress.add_task(name, total=1.0, speed="", visible=False)

        def advance(loop: Loop) -> None:
            state = loop.state
            seconds = max(state.seconds, 1e-9)
            pace, waiting = state.audio / seconds, state.waited / seconds
            done = loop.schedule.progress(state.step, state.seconds)
            speed = (
                f"step {state.step}, loss {loop.recent_loss:.3f}, {pace:.0f} s of audio a second, {waiting:.1%} waiting"
            )
            progress.update(task, visible=True, completed=done, speed=speed)
            nonlocal next_line
            if not progress_console.is_terminal and time.monotonic() >= next_line:
                next_line = time.monotonic() + line_seconds
                progress_console.print(f"{name} {done:.0%}, {speed}", soft_wrap=True)

        yield lambda row: progress_console.print(row), advance
