"""From a finished run to the model that ships: weights, class embeddings, presence, and what it was made of."""

import csv
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.checkpoints import Bundle
from models.corpus.clips import Clips
from models.evaluation.mixtures import Mixture
from models.evaluation.separation import queries_of, separated
from models.networks.resunet import ResUNet
from models.networks.yamnet import Yamnet
from models.presence import Rule, measure
from models.query import BASE_RULES

PRESENCE_WINDOW = 0.96  # seconds: the ear's own patch
RIDGE = 0.01  # of the logistic regression: 300 mixtures are few
CUT_SHARE = 0.05  # of present targets that the gate may touch


def bundle(name: str, version: str, ear: Yamnet, separator: ResUNet, sizes: dict[str, Any]) -> Bundle:
    """The networks and how to build them; class embeddings and presence are added afterwards."""
    config = {
        "name": name,
        "version": version,
        "preset": "base",
        "detector": {"class_indices": ear.class_indices.tolist(), "rate": ear.rate},
        "separator": sizes,
        "query": asdict(BASE_RULES),
    }
    return Bundle(name, version, ear, separator, config)


def class_embeddings(embeddings: np.ndarray, clips: Clips) -> dict[str, Tensor]:
    """Mean query of each class by mid: over its groups, so that no recording session outweighs the others."""
    groups: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, clip in enumerate(clips.clips):
        if embeddings[index, 0].any():
            groups[clip.mid][clip.group].append(index)
    return {
        mid: torch.from_numpy(
            np.stack([embeddings[of_group, 0].astype(np.float32).mean(0) for of_group in of_class.values()]).mean(0)
        )
        for mid, of_class in sorted(groups.items())
    }


def presence_features(ear: Yamnet, separator: ResUNet, rows: list[Mixture], rule: Rule) -> tuple[Tensor, Tensor]:
    """Features (2N, F) of the rows' present queries, then of their absent ones, and whether each was there (2N,)."""
    measured = []
    for kind in ("query", "absent"):
        queries = queries_of(ear, rows, kind)
        estimates = separated(separator, rows, queries)
        with torch.inference_mode():
            measured += [
                measure(ear.embed, ear.rate, rule, query, torch.from_numpy(row.mixture), estimate)
                for query, row, estimate in zip(queries, rows, estimates, strict=True)
            ]
    there = torch.cat([torch.ones(len(rows)), torch.zeros(len(rows))])
    return torch.stack(measured), there


def fit_presence(features: Tensor, there: Tensor) -> Rule:
    """Logistic regression by Newton's method; the gate begins where 5 % of the present targets lie below."""
    centre, spread = features.mean(0), features.std(0)
    inputs = torch.cat([(features - centre) / spread, torch.ones(len(features), 1)], dim=1).double()
    weights = torch.zeros(inputs.shape[1], dtype=torch.float64)
    penalty = RIDGE * len(inputs) * torch.eye(len(weights), dtype=torch.float64)
    penalty[-1, -1] = 0
    for _ in range(30):
        odds = torch.sigmoid(inputs @ weights)
        gradient = inputs.T @ (odds - there) + penalty @ weights
        curvature = inputs.T @ (inputs * (odds * (1 - odds))[:, None]) + penalty
        weights = weights - torch.linalg.solve(curvature, gradient)
    slopes = weights[:-1] / spread.double()
    rule = Rule(
        weights=tuple(slopes.tolist()),
        bias=(weights[-1] - slopes @ centre.double()).item(),
        window_seconds=PRESENCE_WINDOW,
        level=BASE_RULES.level,
    )
    present = torch.tensor([rule.presence(row) for row in features[there > 0]])
    opens = present.quantile(CUT_SHARE).item()
    return Rule(rule.weights, rule.bias, rule.window_seconds, rule.level, opens, opens / 2)


def write_curve(rows: list[dict[str, Any]], table: Path, picture: Path) -> None:
    """The run as a table, and drawn: improvement on validation mixtures and absent queries' level over segments."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    segments = [row["segments"] / 1000 for row in rows]
    figure, (gains, levels) = pyplot.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for name, label in (("si_sdri", "SI-SDR"), ("sdri", "SDR"), ("right_si_sdri", "SI-SDR, right sound")):
        gains.plot(segments, [row[name] for row in rows], marker=".", label=label)
    gains.set(xlabel="thousand segments of 2 s", ylabel="improvement, dB")
    gains.legend()
    levels.plot(segments, [-row["absent"] for row in rows], marker=".", label="absent query, dB below the mixture")
    levels.plot(segments, [row["loss"] for row in rows], marker=".", label="training loss, dB")
    levels.set(xlabel="thousand segments of 2 s")
    levels.legend()
    figure.savefig(picture, dpi=90)
    pyplot.close(figure)


def write_manifest(clips: Clips, split: str, path: Path) -> None:
    """What the weights were made of: the attribution that CC-BY asks for, and what finds the same sounds again."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["package", "path", "licence", "label", "mid", "split"])
        rows = {
            (clip.source["package"], clip.source["path"], clip.source["license"], clip.label, clip.mid, split)
            for clip in clips.clips
        }
        writer.writerows(sorted(rows))
