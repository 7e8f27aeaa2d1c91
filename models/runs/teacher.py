"""The teacher: YAMNet from its published weights, a folder with `yamnet.safetensors` and `class_map.csv`."""

import csv
from pathlib import Path

from safetensors.torch import load_file

from models.labels import classes
from models.networks.yamnet import Yamnet, from_teacher

_WEIGHTS = "yamnet.safetensors"


def is_folder(path: Path) -> bool:
    """Return whether a path is the teacher's folder."""
    return (path / _WEIGHTS).exists()


def load(folder: Path, rate: int = 32_000, probabilities: bool = False) -> Yamnet:
    """Load YAMNet in eval mode, its outputs mapped to the 527 classes; by default its queries are latent embeddings."""
    column = {label.mid: label.index for label in classes()}
    with (folder / "class_map.csv").open(encoding="utf-8", newline="") as file:
        class_indices = [column[row["mid"]] for row in csv.DictReader(file)]
    query_encoder = Yamnet([index for index in class_indices if index is not None], rate, probabilities=probabilities)
    query_encoder.load_state_dict(from_teacher(load_file(folder / _WEIGHTS)))
    return query_encoder.eval().requires_grad_(False)
