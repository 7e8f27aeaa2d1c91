"""`python -m models bench`: time and peak memory of a separation, compared with the bare networks."""

import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from models import checkpoints
from models.engine import Engine
from models.media import open_audio, open_writer
from models.options import SeparationOptions
from models.query import PAPER_RULES, Query

Way = Literal["engine", "exact", "straightforward"]

WAYS: dict[Way, str] = {
    "engine": "this engine",
    "exact": "this engine, --precision exact",
    "straightforward": "networks only",
}
MORE = (
    "Networks only: float32, one query after the other, windows of 10 s that do not overlap, all in memory. The engine"
    " does more: it processes a tenth more audio (context and cross-fades), detects the presence of targets, gates,"
    " measures loudness, and writes the residual too."
)
RATE = 32000  # Hz, the models' own: the cost of resampling is not measured
WINDOW_SECONDS = 10


def bench(
    weights: Annotated[
        list[str] | None, typer.Option(help="Models: shipped, folders, or paper (numbers by chance). Repeatable.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length of the recording.", min=1)] = 30.0,
    long: Annotated[
        float, typer.Option(help="Length of a second recording, to see whether memory grows; 0: none.")
    ] = 0.0,
    targets: Annotated[int, typer.Option(help="Queries in one pass.", min=1, max=16)] = 2,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    way: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure time and peak memory, each case in its own process."""
    if way:
        typer.echo(json.dumps(_measure(way, (weights or ["base"])[0], seconds, targets, device)))
        return
    rows = []
    for name in weights or [*checkpoints.model_names(), "paper"]:
        for how in WAYS:
            rows += [_in_process(how, name, length, targets, device) for length in (seconds, long) if length]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    columns = "model", "way", "audio", "time", "of all cores", "real-time factor", "peak memory"
    table = Table(*columns, title=f"targets: {targets}", caption=MORE, caption_justify="left")
    for row in rows:
        table.add_row(
            row["model"],
            WAYS[row["way"]],
            f"{row['seconds']:g} s",
            f"{row['took']:.1f} s",
            f"{row['cpu']:.1f} s",
            f"{row['took'] / row['seconds']:.3f}",
            f"{row['peak_mib']:.0f} MiB",
        )
    Console().print(table)


def _in_process(way: Way, weights: str, seconds: float, targets: int, device: str) -> dict:
    arguments = ["--weights", weights, "--seconds", str(seconds), "--targets", str(targets), "--device", device]
    command = [sys.executable, "-m", "models", "bench", "--way", way, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603  our own program
    if done.returncode:
        raise ValueError(f"measuring {weights} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure(way: str, weights: str, seconds: float, targets: int, device: str) -> dict:
    """Return one measurement: time from file to files in s, also summed over cores, and the peak memory of the process
    (on a GPU, of the device) in MiB."""
    bundle = _bundle(weights)
    engine = Engine(bundle, device, "auto" if way == "engine" else "exact")
    vectors = torch.rand(targets, bundle.detector.embedding_size, generator=torch.Generator().manual_seed(0))
    queries = {f"target {number}": Query(vector, engine.model_id) for number, vector in enumerate(vectors)}
    options = SeparationOptions(format="wav")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _recording(folder / "short.wav", 2)
        engine.separate_file(folder / "short.wav", queries, folder / "warm", options)
        _recording(folder / "mixture.wav", seconds)
        began, busy = time.perf_counter(), time.process_time()
        if way == "straightforward":
            _straightforward(bundle.separator, vectors, folder, engine.device)
        else:
            engine.separate_file(folder / "mixture.wav", queries, folder / "stems", options)
        took, cpu = time.perf_counter() - began, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024)
    if engine.device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated() / 2**20
    measured = {"seconds": seconds, "took": took, "cpu": cpu, "peak_mib": peak, "device": engine.device}
    return {"model": weights, "way": way, **measured}


@torch.inference_mode()
def _straightforward(separator: nn.Module, queries: torch.Tensor, folder: Path, device: str) -> None:
    with open_audio(folder / "mixture.wav") as reader:
        mixture = torch.from_numpy(np.concatenate(list(reader), axis=1))
    size = WINDOW_SECONDS * RATE
    windows = mixture.mean(dim=0).split(size)
    for number, query in enumerate(queries):
        stem = [separator(window[None].to(device), query[None].to(device)).cpu() for window in windows]
        with open_writer(folder / f"{number}.wav", "wav", RATE, 1) as writer:
            writer.write(torch.cat(stem, dim=1).numpy())


def _recording(path: Path, seconds: float) -> None:
    """Write a sliding tone in noise: it takes as long to separate as music."""
    with open_writer(path, "wav", RATE, 1) as writer:
        random = np.random.default_rng(0)
        for start in range(0, round(seconds * RATE), RATE):
            time_ = (start + np.arange(min(RATE, round(seconds * RATE) - start))) / RATE
            tone = 0.2 * np.sin(2 * math.pi * (300 + 20 * time_ % 3000) * time_)
            writer.write((tone + 0.05 * random.standard_normal(len(time_))).astype(np.float32)[None])


def _bundle(weights: str) -> checkpoints.Bundle:
    if weights != "paper":
        return checkpoints.load(weights)
    from models.networks.htsat import HTSAT
    from models.networks.unet import UNet

    config = {"query": vars(PAPER_RULES)}
    return checkpoints.Bundle("paper", "1", HTSAT().eval(), UNet().eval(), config)
