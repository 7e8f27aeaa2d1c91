"""Time of whole commands, start included: alone, beside busy processes, under a quota; and of many short files."""

import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from models.bench import own_programs, surroundings
from models.compute.threads import usable_cores
from models.engine import Engine
from models.media import open_writer

NOTE = (
    "Whole commands with base: interpreter, imports, weights and writing included, medians of three. Recordings are"
    " noise; busy processes compute without end. One after the other in one process: without its start."
)
_REPEATS = 3
_FILES = 100
_FILE_SECONDS = 2.0
_SINGLE_CALLS = 3  # of the files; the others take as long


def measure_commands() -> Iterator[dict]:
    """Yield rows with: program, condition, took (s), cpu (s of all its processes)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        example = _write_noise(folder / "example.wav", 4.0, 44100, 1)
        short = _write_noise(folder / "short.wav", 6.0, 44100, 1)
        long = _write_noise(folder / "long.wav", 60.0, 44100, 2)

        def separate(path: Path) -> list[str]:
            return ["separate", str(path), "--query", str(example), "-o", str(folder / "stems")]

        yield _row("--help", "alone", ["--help"])
        yield _row("detect, 6 s", "alone", ["detect", str(short)])
        yield _row("separate, 6 s", "alone", separate(short))
        for condition, around in _conditions().items():
            with around() as prefix:
                yield _row("separate, 60 s of stereo at 44.1 kHz", condition, separate(long), prefix or ())
        try:
            with surroundings.quota(1.5) as prefix:
                yield _row("separate, 60 s of stereo at 44.1 kHz", "quota of 1.5 cores", separate(long), prefix)
        except surroundings.QuotaUnavailable:
            pass  # the table has no such row
        yield _row("separate, 60 s of stereo at 44.1 kHz", "one thread", separate(long), ["env", "OMP_NUM_THREADS=1"])


def measure_many_files() -> Iterator[dict]:
    """Yield rows, as `measure_commands` does, of short files: one command for all, one engine, one command each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [_write_noise(folder / "in" / f"{n:03}.wav", _FILE_SECONDS, 44100, 1) for n in range(_FILES)]
        engine = Engine.load("base")
        siren = {"siren": engine.label("Siren")}

        def separate(paths: Sequence[Path], output: str) -> list[str]:
            return ["separate", *map(str, paths), "--label", "Siren", "-o", str(folder / output)]

        def detect(paths: Sequence[Path], output: str) -> list[str]:
            return ["detect", *map(str, paths), "-o", str(folder / output)]

        yield from _many_rows(
            "separate", separate, files, lambda path: engine.separate_file(path, siren, folder / "apart" / path.stem)
        )
        yield from _many_rows("detect", detect, files, engine.detect_file)


def _many_rows(
    command: str,
    arguments: Callable[[Sequence[Path], str], list[str]],
    files: Sequence[Path],
    run_one: Callable[[Path], object],
) -> Iterator[dict]:
    """Yield the rows of a command: `arguments(files, output folder)`, and `run_one(file)` in this process."""
    what = f"{command}, {_FILES} files of {_FILE_SECONDS:g} s"
    yield _row(what, "one command", arguments([files[0].parent], f"{command} together"), repeats=1)
    took, cpu = _one_after_another(files, run_one)
    yield {"program": what, "condition": "one after the other in one process", "took": took, "cpu": cpu}
    single = [_run(arguments([path], f"{command} {path.stem}")) for path in files[:_SINGLE_CALLS]]
    took, cpu = (_FILES * statistics.median(values) for values in zip(*single, strict=True))
    yield {"program": what, "condition": f"one command each (of {_SINGLE_CALLS} files)", "took": took, "cpu": cpu}


def _conditions() -> dict[str, Callable[[], AbstractContextManager[None]]]:
    cores = usable_cores()
    return {
        "alone": nullcontext,
        "beside one busy process": lambda: surroundings.busy(1),
        f"beside {cores} busy processes, one per core": lambda: surroundings.busy(cores),
    }


def _row(
    program: str, condition: str, arguments: list[str], prefix: Sequence[str] = (), repeats: int = _REPEATS
) -> dict:
    took, cpu = (
        statistics.median(values) for values in zip(*(_run(arguments, prefix) for _ in range(repeats)), strict=True)
    )
    return {"program": program, "condition": condition, "took": took, "cpu": cpu}


def _run(arguments: list[str], prefix: Sequence[str] = ()) -> tuple[float, float]:
    """Run `python -m models` with arguments; return its time and that of the cores, in s."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    own_programs.run(arguments, arguments[0], prefix)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _one_after_another(files: Sequence[Path], run_one: Callable[[Path], object]) -> tuple[float, float]:
    began, busy = time.perf_counter(), time.process_time()
    for path in files:
        run_one(path)
    return time.perf_counter() - began, time.process_time() - busy


def _write_noise(path: Path, seconds: float, rate: int, channels: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    samples = 0.1 * np.random.default_rng(0).standard_normal((channels, round(seconds * rate)))
    with open_writer(path, "wav", rate, channels) as writer:
        writer.write(samples.astype(np.float32))
    return path
