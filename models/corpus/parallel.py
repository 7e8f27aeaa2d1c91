"""Work on a stream of recordings in several processes: answers in order, few in flight, and none left behind."""

import fcntl
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import TypeVar

from models.errors import CorpusInvalid

Given = TypeVar("Given")
Made = TypeVar("Made")

# In flight for each worker: enough that none waits, few enough that memory stays small whatever a corpus holds.
AHEAD = 4
# Fewer than this are done sooner here than processes start.
FEW = 64


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def in_order(work: Callable[[Given], Made], things: Iterable[Given], workers: int) -> Generator[Made, None, None]:
    """`work` of each thing, in their order, by `workers` processes; in this one where there are few or one worker.

    `work` and `things` can be pickled. At most AHEAD a worker are taken from `things` before their answers are used.
    """
    things = iter(things)
    first = list(islice(things, FEW))
    if workers == 1 or len(first) < FEW:
        yield from map(work, chain(first, things))
        return
    # Spawned, not forked: a fork of a process whose threads hold locks may wait for them for ever.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    waiting: deque[Future[Made]] = deque()
    try:
        for thing in chain(first, things):
            waiting.append(pool.submit(work, thing))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def exclusive_lock(path: Path, waits: bool) -> Iterator[None]:
    """Holds the lock file `path`, which a process that dies gives up. Raises CorpusInvalid if another holds it and this
    one is not to wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            raise CorpusInvalid(f"another process is writing {path.parent}") from None
        yield


def _begin_worker() -> None:
    # The workers share the processors already. Torch comes with the work, or is here with the program's main module.
    os.environ["OMP_NUM_THREADS"] = "1"
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    # Ctrl-C reaches the whole group: the parent ends its workers, which have nothing to say about it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker waits for work for ever, even when its parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
