"""A separator's run as a model: both networks, the class embeddings and the PLDA prior, without presence."""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.checkpoints import Bundle
from models.corpus.clips import Clips
from models.networks.yamnet import Yamnet
from models.query import BASE_RULES, PAPER_RULES, QueryRules
from models.runs import plda_fit, run_folder
from models.runs.clip_embeddings import keep_share


def assemble(run: Path, name: str, version: str) -> tuple[Bundle, Clips, list[dict[str, Any]]]:
    """Return a separator's run as a float32 model with class embeddings, without presence; its clips, and its log."""
    query_encoder, separator, setup, log = run_folder.load_separator(run)
    place = run_folder.Place.of(setup)
    rules = PAPER_RULES if setup["paper"] else BASE_RULES
    clips = place.clips("train")
    vectors = keep_share(place.embeddings(query_encoder, clips, rules), clips, setup["share"])
    made = Bundle(name, version, query_encoder, separator, config(name, version, query_encoder, setup, rules))
    made.class_embeddings = class_embeddings(vectors, clips)
    if setup["prior"] and (prior := plda_fit.fit(vectors, clips)) is not None:
        made.prior = prior
        made.class_embeddings = {mid: prior.posterior_mean(mean) for mid, mean in made.class_embeddings.items()}
    return made, clips, log


def config(name: str, version: str, query_encoder: Any, setup: dict[str, Any], rules: QueryRules) -> dict[str, Any]:
    """Return the model's configuration: how to build the networks, and the held-out classes."""
    taught = isinstance(query_encoder, Yamnet)
    made = {
        "name": name,
        "version": version,
        "preset": "paper" if setup["paper"] else "base" if taught else "transformer",
        "detector": {"class_indices": query_encoder.class_indices.tolist(), "rate": query_encoder.rate}
        if taught
        else asdict(query_encoder.hyper),
        "separator": setup["sizes"],
        "query": asdict(rules),
    }
    if setup["paper"]:
        made["separator"] = {"query_size": query_encoder.embedding_size, **setup["sizes"]}
    if taught and query_encoder.probabilities:
        made["detector"]["probabilities"] = True
    for hidden in ("held_out", "separator_held_out"):
        if setup["place"].get(hidden):
            made[hidden] = setup["place"][hidden]
    return made


def class_embeddings(embeddings: np.ndarray, clips: Clips) -> dict[str, Tensor]:
    """Return each class's mean query by mid, over its groups, so that no recording session outweighs the others."""
    groups: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, clip in enumerate(clips.clips):
        if embeddings[index, 0].any():
            for mid in clip.mids:
                groups[mid][clip.group].append(index)
    return {
        mid: torch.from_numpy(
            np.stack([embeddings[of_group, 0].astype(np.float32).mean(0) for of_group in of_class.values()]).mean(0)
        )
        for mid, of_class in sorted(groups.items())
    }
