"""Time and peak memory of a separation from file to files, by this engine and in other ways, a process for each."""

import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from torch import Tensor

from models import checkpoints
from models.bench import authors_way, own_programs
from models.bench.machine import peak_mib
from models.engine import Engine
from models.media import open_audio, open_writer
from models.networks.unet import UNet
from models.options import SeparationOptions
from models.queries.query import PAPER_RULES, Query

# `exact` comes first: the others' stems are compared with its.
WAYS = {
    "exact": "this engine, --precision exact",
    "engine": "this engine",
    "networks": "networks only",
    "authors": "the authors' way",
}
DEMUCS = "hybrid-demucs"  # another program's network, as a model of its own
NOTES = (
    "Networks only: float32, one query after the other, windows of 10 s that do not overlap, all in memory. The"
    " authors' way: windows of 3 s every 2 s in batches of 8, float32, Fourier transform by convolution, all in memory,"
    " without huge pages."
    " Hybrid Demucs: torchaudio's hdemucs_high, four stems of stereo at 44.1 kHz in windows of 10 s with a tenth of"
    " overlap, weights by chance. The engine does more: it processes a tenth more audio (context and cross-fades),"
    " detects the presence of targets, measures loudness, and writes the residual too. SNR: to the stems of --precision"
    " exact, all without the gate."
)
RATE = 32000  # Hz, the models' own: the cost of resampling is not measured
_WINDOW_SECONDS = 10


def measure_all(models: list[str], lengths: list[float], targets: int, device: str) -> Iterator[dict]:
    """Yield a row for each model, way and length in s.

    A row has: model, way, device, seconds (of audio), took (s from file to files), cpu (s of all cores), peak_mib (of
    the process, or on a GPU of the device), and snr (dB to the exact stems, without the gate; None: not compared).
    """
    with tempfile.TemporaryDirectory() as name:
        for model in models:
            for way in [DEMUCS] if model == DEMUCS else WAYS:
                if way == "authors" and model != "paper":  # other models have no such way
                    continue
                for seconds in lengths:
                    folder = Path(name) / f"{model.replace('/', '_')}-{seconds:g}"
                    row = _in_process(way, model, seconds, targets, device, folder)
                    compared = way in ("engine", "authors", "networks") and not device.startswith("cuda")
                    yield row | {"snr": _snr(folder / "exact", folder / way) if compared else None}


def measure(way: str, model: str, seconds: float, targets: int, device: str, folder: Path) -> dict:
    """Return one row, without its SNR; the stems stay in `folder / way`."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = _measure_demucs(seconds) if model == DEMUCS else _measure(way, model, seconds, targets, device, folder)
    peak = peak_mib()
    if measured["device"].startswith("cuda"):
        peak = torch.cuda.max_memory_allocated() / 2**20
    return {"model": model, "way": way, "seconds": seconds, "peak_mib": peak, **measured}


def _in_process(way: str, model: str, seconds: float, targets: int, device: str, folder: Path) -> dict:
    arguments = ["--weights", model, "--seconds", str(seconds), "--targets", str(targets), "--device", device]
    environment = own_programs.OTHERS if way == "authors" else None
    printed = own_programs.run(
        ["bench", "--way", way, "--folder", str(folder), *arguments], model, environment=environment
    )
    return json.loads(printed.splitlines()[-1])


def _measure(way: str, model: str, seconds: float, targets: int, device: str, folder: Path) -> dict:
    bundle = _bundle(model)
    engine = Engine(bundle, device, "auto" if way == "engine" else "exact")
    vectors = torch.rand(targets, bundle.detector.embedding_size, generator=torch.Generator().manual_seed(0))
    queries = {f"target {number}": Query(vector, engine.model_id) for number, vector in enumerate(vectors)}
    # Without the gate, since the other ways have none: stems are compared.
    options = SeparationOptions(format="wav", gate=False)
    _write_recording(folder / "short.wav", 2)
    engine.separate_file(folder / "short.wav", queries, folder / f"{way} warm", options)
    _write_recording(folder / "mixture.wav", seconds)
    began, busy = time.perf_counter(), time.process_time()
    if way in ("networks", "authors"):
        _separate_in_memory(way, bundle.separator, vectors, folder, engine.device)
    else:
        engine.separate_file(folder / "mixture.wav", queries, folder / way, options)
    return {"took": time.perf_counter() - began, "cpu": time.process_time() - busy, "device": engine.device}


@torch.inference_mode()
def _separate_in_memory(way: str, separator: Any, queries: Tensor, folder: Path, device: str) -> None:
    with open_audio(folder / "mixture.wav") as reader:
        mixture = torch.from_numpy(np.concatenate(list(reader), axis=1)).mean(dim=0)
    (folder / way).mkdir(exist_ok=True)
    for number, query in enumerate(queries):
        if way == "authors":
            stem = authors_way.separate(separator, mixture.to(device), query.to(device)).cpu()
        else:
            windows = mixture.split(_WINDOW_SECONDS * RATE)
            stem = torch.cat(
                [separator(window[None].to(device), query[None].to(device))[0].cpu() for window in windows]
            )
        with open_writer(folder / way / f"target {number}.wav", "wav", RATE, 1) as writer:
            writer.write(stem[None].numpy())


@torch.inference_mode()
def _measure_demucs(seconds: float) -> dict:
    rate, window = 44100, _WINDOW_SECONDS * 44100
    network = torchaudio.models.hdemucs_high(["drums", "bass", "other", "vocals"]).eval()
    mixture = torch.from_numpy(sound(0, round(seconds * rate), rate)).expand(2, -1)
    network(mixture[None, :, : 2 * rate])
    began, busy = time.perf_counter(), time.process_time()
    for start in range(0, mixture.shape[1], window * 9 // 10):
        network(mixture[None, :, start : start + window])
    return {"took": time.perf_counter() - began, "cpu": time.process_time() - busy, "device": "cpu"}


def _snr(exact: Path, other: Path) -> float:
    """Return the lowest signal-to-noise ratio, in dB, of the stems in a folder to those in another."""
    ratios = []
    for path in sorted(exact.glob("target *.wav")):
        with open_audio(path) as reader, open_audio(other / path.name) as compared:
            expected, found = (np.concatenate(list(each), axis=1).astype(np.float64) for each in (reader, compared))
        error = np.square(expected - found).sum()
        ratios.append(10 * math.log10(np.square(expected).sum() / error) if error else math.inf)
    return min(ratios)


def _write_recording(path: Path, seconds: float) -> None:
    with open_writer(path, "wav", RATE, 1) as writer:
        for start in range(0, round(seconds * RATE), RATE):
            writer.write(sound(start, min(start + RATE, round(seconds * RATE)), RATE))


def sound(start: int, end: int, rate: int) -> np.ndarray:
    """Return samples (1, end - start) of a sliding tone in noise: it takes as long to separate as music."""
    time_ = np.arange(start, end) / rate
    tone = 0.2 * np.sin(2 * math.pi * (300 + 20 * time_ % 3000) * time_)
    noise = 0.05 * np.random.default_rng(start).standard_normal(end - start)
    return (tone + noise).astype(np.float32)[None]


def _bundle(model: str) -> checkpoints.Bundle:
    if model != "paper":
        return checkpoints.load(model)
    from models.networks.htsat import HTSAT

    config = {"query": vars(PAPER_RULES)}
    torch.manual_seed(0)  # all ways of it have the same weights
    return checkpoints.Bundle("paper", "1", HTSAT().eval(), UNet().eval(), config)
