"""A small, untrained bundle of the default preset, which is loaded like any other."""

from pathlib import Path

import torch

from models.checkpoints import Bundle, build_base, save

CONFIG = {
    "name": "base",
    "version": "small",
    "preset": "base",
    "detector": {"class_indices": list(range(521))},
    "separator": {"bands": 32, "channels": [4, 8, 8, 16], "blocks": [1, 1, 1, 1], "code": 16, "recurrent": 16},
    "query": {"window_seconds": 0.96, "hop_seconds": 0.48, "least_energy": None, "range_db": 15.0, "level": 0.079},
}
EMBEDDING_SIZE = 1024  # YAMNet's
DOG = "/m/0bt9lr"


def save_small_model(folder: Path, version: str = "small", seed: int = 0) -> None:
    """Save the bundle as this version of `base`, with one class that can be separated by name.

    seed: versions with the same one have the same query encoder.
    """
    torch.manual_seed(seed)
    detector, separator = build_base(CONFIG)
    dog = torch.randn(EMBEDDING_SIZE)
    config = CONFIG | {"version": version}
    save(Bundle("base", version, detector.eval(), separator.eval(), config, {DOG: dog}), folder)
