"""Speed of the paper's separator against its signal-to-noise ratio: which layers are computed in float32 decides both.

A process for each point, with the separator alone: no detector, one mono recording, one query.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import checkpoints
from models.bench import authors_way, own_programs
from models.bench.machine import peak_mib
from models.bench.separations import RATE, sound
from models.compute.precision import Arithmetic
from models.networks.unet import UNet
from models.options import SeparationOptions
from models.separation.long_recordings import Masking, Windows, estimates
from models.validation.metrics import sdr

# Blocks in float32, the others in bfloat16; `auto` is "full resolution".
_POINTS: dict[str, Callable[[UNet], tuple[str, ...]]] = {
    "nothing": lambda separator: (),
    "last block": lambda separator: ("last",),
    "first and last block": lambda separator: ("encoder.0", "last"),
    "full resolution": lambda separator: separator.full_resolution,
    "two finest levels": lambda separator: ("encoder.1", "decoder.4", *separator.full_resolution),
    "everything": lambda separator: ("encoder", "centre", "decoder", "last"),
}
_LONG_WINDOW = 20.47  # s; its 2048 frames fill the network's grid
EXACT, AUTHORS = "exact", "authors"
NOTE = (
    "The separator of the paper alone, in the windows of the engine; float32: the blocks that are not computed in"
    " bfloat16. Ratio: to the authors' way in the same run, in processor time. SNR: to exact. Random weights (`paper`),"
    " with batch norms fitted to the recording, are no trained ones: for those, give the folder that `convert` makes."
)


def measure_all(models: list[str], seconds: float) -> Iterator[dict]:
    """Yield a row for the authors' way and each point, of the models that have the paper's networks.

    A row has: model, float32 (blocks), window (s), seconds (of audio), took, cpu (s of all cores), peak_mib, ratio
    (of the authors' processor time to this), and snr (dB; None for `exact`). On a CPU without bfloat16 "everything" is
    the only point.
    """
    points = [(EXACT, 10.0), (AUTHORS, 0.0), ("everything", 10.0)]
    if Arithmetic.of("cpu").bfloat16:
        points[2:2] = [(name, 10.0) for name in _POINTS if name != "everything"]
        points.append(("nothing", _LONG_WINDOW))
    for model in filter(is_paper, models):
        with tempfile.TemporaryDirectory() as folder:
            rows = [_in_process(model, name, window, seconds, Path(folder)) for name, window in points]
        authors = next(row["cpu"] for row in rows if row["float32"] == AUTHORS)
        yield from (row | {"ratio": authors / row["cpu"]} for row in rows)


def is_paper(model: str) -> bool:
    """Return whether a model, as the command line names it, has the paper's networks."""
    config = Path(model) / checkpoints.CONFIG
    return model == "paper" or (config.is_file() and checkpoints.read_config(config)["preset"] == "paper")


def _in_process(model: str, name: str, window: float, seconds: float, folder: Path) -> dict:
    point = json.dumps([name, window])
    arguments = ["--weights", model, "--seconds", str(seconds), "--point", point, "--folder", str(folder)]
    environment = own_programs.OTHERS if name == AUTHORS else None
    return json.loads(own_programs.run(["bench", *arguments], model, environment=environment).splitlines()[-1])


@torch.inference_mode()
def measure(model: str, point: str, seconds: float, folder: Path) -> dict:
    """Return one row, without its ratio; the estimate of `exact` stays in `folder`, for the others."""
    name, window = json.loads(point)
    separator, arithmetic = _separator(model), Arithmetic.of("cpu", EXACT)
    if name in _POINTS:
        separator.fold()
        separator.pack(torch.bfloat16, _POINTS[name](separator))
    query = torch.rand(separator.query_size, generator=torch.Generator().manual_seed(0))
    mixture = torch.from_numpy(sound(0, round(seconds * RATE), RATE))

    def separate(samples: Tensor) -> Tensor:
        if name == AUTHORS:
            return authors_way.separate(separator, samples[0], query)[None]
        masking = Masking(separator, separator.condition(query[None]), autocast=arithmetic.masks)
        windows = Windows.of(separator, SeparationOptions(window=window))
        return torch.cat([part.samples for part in estimates(masking, [samples], 1, windows, RATE)], dim=1)

    separate(mixture[:, : 2 * RATE])
    began, busy = time.perf_counter(), time.process_time()
    estimate = separate(mixture)
    took, cpu = time.perf_counter() - began, time.process_time() - busy
    peak = peak_mib()
    exact = folder / "exact.npy"
    if name == EXACT:
        np.save(exact, estimate.numpy())
    snr = None if name == EXACT else sdr(estimate, torch.from_numpy(np.load(exact))).item()
    return {
        "model": model,
        "float32": name,
        "window": window,
        "seconds": seconds,
        "took": took,
        "cpu": cpu,
        "peak_mib": peak,
        "snr": snr,
    }


def _separator(model: str) -> Any:
    if model != "paper":
        return checkpoints.load(model).separator
    torch.manual_seed(0)
    separator = UNet()
    norms = [module for module in separator.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the statistics of all that it sees
    separator(torch.from_numpy(sound(0, 2 * RATE, RATE)), torch.rand(1, separator.query_size))
    return separator.eval()
