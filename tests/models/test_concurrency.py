"""An engine on a CPU in two threads at once: each gets the bytes that it gets alone."""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch

from models.audio import Waveform
from models.engine import Engine

RATE = 44100
REPEATS = 4


def run_together(action: Callable[[int], None]) -> None:
    """Call `action(0)` and `action(1)` in two threads."""
    with ThreadPoolExecutor(2) as threads:
        for call in [threads.submit(action, number) for number in range(2)]:
            call.result()


def test_two_threads_compute_what_each_computes_alone(auto: Engine, tmp_path: Path, one_thread: None):
    engine, random = auto, np.random.default_rng(0)
    paths = [tmp_path / f"{seconds}.wav" for seconds in (3, 4)]  # of different shapes
    for path in paths:
        soundfile.write(path, random.uniform(-0.3, 0.3, (int(path.stem) * RATE, 2)), RATE)

    def separate(path: Path, folder: Path) -> list[str]:
        samples = torch.from_numpy(soundfile.read(path, dtype="float32")[0].T[:1, : 2 * RATE].copy())
        query = engine.embed([Waveform(samples, RATE)])
        separated = engine.separate_file(path, {"a": query}, folder)
        events = repr(engine.detect_file(path, threshold=0.01).events)
        return [hashlib.sha256(stem.path.read_bytes()).hexdigest() for stem in separated.stems] + [events]

    alone = [separate(path, tmp_path / f"alone-{path.stem}") for path in paths]
    together: list[list[list[str]]] = [[], []]
    begin = threading.Barrier(2)

    def repeat(number: int) -> None:
        torch.get_num_threads()  # this call initialises the number of the thread, which the next one sets
        torch.set_num_threads(1)
        for count in range(REPEATS):
            begin.wait(600)
            together[number].append(separate(paths[number], tmp_path / f"{number}-{count}"))

    run_together(repeat)
    assert together == [[each] * REPEATS for each in alone]
