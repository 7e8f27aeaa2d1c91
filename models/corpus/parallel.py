"""Processing of a stream of recordings in several processes, with results in order and bounded memory."""

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

from models.compute import threads
from models.errors import CorpusInvalid

Given = TypeVar("Given")
Made = TypeVar("Made")

# Items in flight for each worker: enough to keep it busy, few enough to bound memory.
AHEAD = 4
# Fewer items than this are processed faster without starting processes.
FEW = 64


def in_order(work: Callable[[Given], Made], things: Iterable[Given], workers: int) -> Generator[Made, None, None]:
    """Yield `work` of each thing in order, by `workers` processes, or in this process if there are few things.

    `work` and `things` must be picklable. At most AHEAD things for each worker are taken before their results are used.
    A single worker is a process too: in this one, an interrupt during a callback of libsndfile would be lost, and the
    recording count as unreadable.
    """
    things = iter(things)
    first = list(islice(things, FEW))
    if len(first) < FEW:
        yield from map(work, chain(first, things))
        return
    # Spawned, not forked: locks that other threads hold would stay locked in a fork.
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
    """Hold the lock file `path`, which is released when the process dies. Raises CorpusInvalid if another process holds
    it, unless `waits`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            raise CorpusInvalid(f"another process is writing {path.parent}") from None
        yield


def _begin_worker() -> None:
    # The workers share the processors already, so each uses one thread, whether torch is already imported or not.
    os.environ |= threads.ONE_THREAD
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    # Ctrl-C reaches the whole process group: ignore it here, since the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the parent dies: a worker would otherwise wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
