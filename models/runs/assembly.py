"""A separator's run as a model: both networks, the class embeddings and the PLDA prior, without presence."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.checkpoints import Bundle
from models.corpus.clips import Clips
from models.networks.yamnet import Yamnet
from models.queries.query import BASE_RULES, PAPER_RULES, QueryRules
from models.runs import plda_fit, run_folder
from models.runs.class_queries import ClassQuery, class_queries
from models.runs.clip_embeddings import keep_share


class Assembly(NamedTuple):
    """A float32 model with class embeddings, without presence; its training clips, how its classes are known, by mid,
    and the run's log."""

    bundle: Bundle
    clips: Clips
    classes: dict[str, ClassQuery]
    log: list[dict[str, Any]]


def assemble(run: Path, name: str, version: str) -> Assembly:
    """Return a separator's run as a model.

    Classes and prior are of the run's first corpus: a few sound banks play all songs that are rendered beside it.
    """
    query_encoder, separator, setup, log = run_folder.load_separator(run)
    place = run_folder.Place.of(setup)
    rules = PAPER_RULES if setup["paper"] else BASE_RULES
    first = replace(place, more=())
    clips = first.clips("train")
    vectors = keep_share(first.embeddings(query_encoder, clips, rules), clips, setup["share"])
    made = Bundle(name, version, query_encoder, separator, config(name, version, query_encoder, setup, rules))
    made.prior = plda_fit.fit(vectors, clips) if setup["prior"] else None
    return Assembly(made, place.clips("train"), name_classes(made, vectors, clips), log)


def name_classes(bundle: Bundle, embeddings: np.ndarray, clips: Clips) -> dict[str, ClassQuery]:
    """Give a model the queries of its classes by name, from the training clips and their queries (N, VERSIONS, D)."""
    made = class_queries(bundle.detector, embeddings, clips, bundle.prior)
    bundle.class_embeddings = {mid: query.vector for mid, query in made.items()}
    bundle.predicted = frozenset(mid for mid, query in made.items() if not query.groups)
    return made


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
