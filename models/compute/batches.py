"""Work on many recordings of which short ones share the networks' batches: networks take half as long for a window of a
batch as for a single short one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from models.errors import ModelsError

File = TypeVar("File")
Short = TypeVar("Short")
Found = TypeVar("Found")
Made = TypeVar("Made")
Failure = ModelsError | OSError | ValueError


def run_in_batches(
    files: Iterable[File],
    read: Callable[[File], Short | None],
    shape: Callable[[Short], tuple[int, ...]],
    room: Callable[[tuple[int, ...]], int],
    compute: Callable[[Sequence[Short]], Sequence[Found]],
    finish: Callable[[Short, Found], Made],
    run_long: Callable[[File], Made],
) -> Iterator[tuple[File, Made | Failure]]:
    """Yield each file with what is made of it, or its error, as soon as it is done.

    What `read` returns of a short recording waits until there are `room(shape)` of one shape for `compute`; `run_long`
    is called for the others at once. A batch is finished by other threads while the next one is computed.
    """
    waiting: dict[tuple[int, ...], list[tuple[File, Short]]] = {}
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        finishing: list[tuple[File, Future[Made]]] = []

        def run_batch(of_shape: tuple[int, ...]) -> Iterator[tuple[File, Made | Failure]]:
            nonlocal finishing
            group = waiting.pop(of_shape)
            found = compute([short for _, short in group])
            done, finishing = (
                finishing,
                [
                    (file, threads.submit(finish, short, result))
                    for (file, short), result in zip(group, found, strict=True)
                ],
            )
            yield from _results(done)

        for file in files:
            try:
                short = read(file)
                if short is None:
                    yield file, run_long(file)
                    continue
            except (ModelsError, OSError, ValueError) as error:
                yield file, error
                continue
            of_shape = shape(short)
            waiting.setdefault(of_shape, []).append((file, short))
            if len(waiting[of_shape]) >= room(of_shape):
                yield from run_batch(of_shape)
        for of_shape in list(waiting):
            yield from run_batch(of_shape)
        yield from _results(finishing)


def _results(finishing: Sequence[tuple[File, Future[Made]]]) -> Iterator[tuple[File, Made | Failure]]:
    for file, future in finishing:
        try:
            yield file, future.result()
        except (ModelsError, OSError, ValueError) as error:
            yield file, error
