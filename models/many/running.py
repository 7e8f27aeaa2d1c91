"""The loop over many recordings that `separate` and `detect` share."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from models.compute.batches import Failure
from models.errors import ModelsError
from models.many.decoded import DecodedAhead
from models.many.inputs import Input
from models.many.journal import Journal
from models.own_recordings import OwnRecording

Made = TypeVar("Made")


def run_all(
    journal: Journal,
    exist: Callable[[dict[str, str]], bool],
    track: int | None,
    run: Callable[[Iterator[tuple[Path, Input]]], Iterator[tuple[Path, Made | Failure]]],
    cells: Callable[[Input, OwnRecording, Made], Mapping[str, Any]],
    advance: Callable[[float, str], object],
) -> None:
    """Fill the journal, opened here, with a row for each of its recordings.

    exist: whether a row's outputs are there. run: takes decoded recordings, which it has read before it takes the next
    one, and yields what is made of them. cells(recording, as it was decoded, what is made of it) of its row; what it
    raises is the recording's failure. advance(ratio, name of a recording) is called after each.
    """
    with journal:
        waiting = journal.waiting(exist)
        total = len(journal.inputs)
        done = total - len(waiting)
        opened: dict[Path, tuple[Input, OwnRecording]] = {}

        def add(one: Input, error: Exception | None = None, **of_row: Any) -> None:
            nonlocal done
            journal.add(one, error, **of_row)
            done += 1
            advance(done / total, one.path.name)

        with DecodedAhead(waiting, journal.path.parent, track).running() as decoded:

            def recordings() -> Iterator[tuple[Path, Input]]:
                for one, recording in decoded:
                    if isinstance(recording, Exception):
                        add(one, recording)
                        continue
                    opened[recording.path] = one, recording
                    yield recording.path, one
                    decoded.release(recording)

            for path, made in run(recordings()):
                one, recording = opened.pop(path)
                try:
                    if isinstance(made, Exception):
                        raise made
                    row = cells(one, recording, made)
                except (ModelsError, OSError, ValueError) as error:
                    add(one, error)
                else:
                    add(one, **row)
