"""A run's folder: the setup (`run.json`), the averaged weights of its checkpoint, and the log.

A run is of a detector or of a separator; the setup of a separator's run names its query encoder: the teacher's folder,
a detector's run or a model. Training writes these folders; shipping and evaluation read them.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models.checkpoints import as_tuples
from models.checkpoints import load as load_model
from models.console import progress_console
from models.corpus.clips import Clips
from models.corpus.decoded import load
from models.corpus.relations import with_descendants
from models.corpus.reserved import reserved_groups
from models.labels import find, lookup
from models.networks.htsat import HTSAT, HyperParameters
from models.networks.resunet import ResUNet
from models.networks.unet import HyperParameters as UNetSizes
from models.networks.unet import UNet
from models.queries.query import BASE_RULES, QueryRules
from models.runs import clip_embeddings, teacher
from models.runs.clip_embeddings import weights_digest

SETUP = "run.json"
CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
QUERIES = ("embeddings", "probabilities")


@dataclass(frozen=True)
class Place:
    """The data of a run. corpus: of any kind that models.corpus reads. more: corpora trained on beside it, such as
    rendered songs. cache: for decoded clips and embeddings.
    held_out: mids that no stage may use, descendants included (see `class_mids`). separator_held_out: mids that the
    separator may not use, although its query encoder may."""

    corpus: Path
    cache: Path = Path(".cache")
    held_out: tuple[str, ...] = ()
    separator_held_out: tuple[str, ...] = ()
    more: tuple[Path, ...] = ()

    @staticmethod
    def of(setup: dict[str, Any]) -> "Place":
        """Return the place of a run's setup; fields that older setups lack have their defaults."""
        said = setup["place"]
        hidden = (tuple(said.get(name, ())) for name in ("held_out", "separator_held_out"))
        return Place(Path(said["corpus"]), Path(said["cache"]), *hidden, more=tuple(map(Path, said.get("more", ()))))

    def clips(self, split: str) -> Clips:
        """Return the split's clips without held-out classes, nor what is reserved for evaluation.

        Those of several corpora are joined in memory; of `more`, the split `train` alone. Raises CorpusInvalid if one
        lacks it."""
        clips = load(self.corpus, split, self.cache, progress_console.print)
        for corpus in self.more if split == "train" else ():
            clips = clips.join(load(corpus, split, self.cache, progress_console.print))
        return clips.without(frozenset(self.held_out + self.separator_held_out)).without_groups(reserved_groups())

    def embeddings(self, query_encoder: Any, clips: Clips, rules: QueryRules = BASE_RULES) -> np.ndarray:
        """Return the queries of the training clips, cached for each corpus."""
        if self.more:
            alone = [replace(self, corpus=corpus, more=()) for corpus in (self.corpus, *self.more)]
            return np.concatenate([part.embeddings(query_encoder, part.clips("train"), rules) for part in alone])
        if self.separator_held_out:  # the query encoder may use those: share the cache of all clips
            whole = replace(self, separator_held_out=())
            everything = whole.clips("train")
            places = {clip.key: at for at, clip in enumerate(everything.clips)}
            return whole.embeddings(query_encoder, everything, rules)[[places[clip.key] for clip in clips.clips]]

        def advance(vectors: int) -> None:
            progress_console.print(f"queries of {vectors} of {len(clips.clips)} clips")

        return clip_embeddings.load(query_encoder, clips, self.cache / "embeddings", rules, advance)


def class_mids(names: str) -> tuple[str, ...]:
    """Return the mids of the classes in a list such as "Dog, Siren", and of all below them. Raises LabelUnknown.

    Names may contain commas: the longest known name is taken.
    """
    parts = [part.strip() for part in names.split(",") if part.strip()]
    found: list[str] = []
    while parts:
        taken = next((count for count in range(len(parts), 1, -1) if lookup(", ".join(parts[:count]))), 1)
        found.append(find(", ".join(parts[:taken])).mid)
        parts = parts[taken:]
    return tuple(sorted(with_descendants(found)))


def separator_sizes(source: str) -> dict[str, Any]:
    """Return the sizes of the separator of a run or of a model that differ from the defaults."""
    is_run = (Path(source) / SETUP).exists()
    return read_setup(Path(source))["sizes"] if is_run else load_model(source).config["separator"]


def separator_weights(source: str, network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the separator's state of a run or of a model, including the queries' mean and deviation, for a network of
    the same sizes, or of more blocks: these begin as identities. Raises ValueError, which names both, for one of other
    sizes."""
    is_run = (Path(source) / SETUP).exists()
    separator = load_separator(Path(source))[1] if is_run else load_model(source).separator
    if isinstance(network, ResUNet) and isinstance(separator, ResUNet) and network.is_deeper_than(separator):
        return network.deepen(separator)
    found = separator.state_dict()
    shapes = [{name: tuple(entry.shape) for name, entry in state.items()} for state in (found, network.state_dict())]
    if shapes[0] != shapes[1]:
        name = next(name for name in (*shapes[1], *shapes[0]) if shapes[0].get(name) != shapes[1].get(name))
        theirs, own = (f"{sum(map(math.prod, each.values())):,} weights" for each in shapes)
        their_entry, own_entry = (each.get(name, "none") for each in shapes)
        raise ValueError(
            f"the separator of {source} has other sizes than this run's: {theirs}, not {own} ({name}: {their_entry}, "
            f"not {own_entry})"
        )
    return found


def load_query_encoder(source: Path, held_out: tuple[str, ...] = (), query: str = QUERIES[0]) -> Any:
    """Load the teacher from its folder, or the detector of a run or of a model, in eval mode and frozen.

    Raises ValueError if it was trained on held-out classes, or has no such queries; CheckpointInvalid.
    """
    if query not in QUERIES:
        raise ValueError(f"a query is one of {', '.join(QUERIES)}, not {query}")
    if (source / SETUP).exists():
        if query != QUERIES[0]:
            raise ValueError(f"queries of {query} are the teacher's: {source} is the run of a detector")
        setup = read_setup(source)
        if setup["kind"] != "detector":
            raise ValueError(
                f"{source} is the run of a {setup['kind']}: a query encoder is a detector's run, such as its own, "
                f"{setup['ear']}, or a model"
            )
        if not set(held_out) <= set(setup["place"]["held_out"]):
            raise ValueError(f"the detector of {source} was trained on held-out classes: train one without them")
        if setup["teacher"] and held_out:
            raise ValueError(f"the detector of {source} learned from a teacher, which knows the held-out classes")
        query_encoder = HTSAT(HyperParameters(**as_tuples(setup["hyper"])))
        load_average(source, query_encoder)
        return query_encoder.eval().requires_grad_(False)
    if held_out:
        raise ValueError(
            "a teacher knows all classes, as a model does: with classes held out, train a detector from labels first"
        )
    if not teacher.is_folder(source):
        if query != QUERIES[0]:
            raise ValueError(f"queries of {query} are the teacher's: {source} is a model")
        return load_model(source).detector.eval().requires_grad_(False)
    return teacher.load(source, probabilities=query == "probabilities")


def load_separator(run: Path) -> tuple[Any, Any, dict[str, Any], list[dict[str, Any]]]:
    """Return the query encoder and the separator of a run, its setup, and the rows of its log."""
    setup = read_setup(run)
    if setup["kind"] != "separator":
        raise ValueError(f"{run} is the run of a {setup['kind']}: ship the run of a separator")
    query_encoder = load_query_encoder(Path(setup["ear"]), Place.of(setup).held_out, setup.get("query", QUERIES[0]))
    if weights_digest(query_encoder) != setup["ear_weights"]:
        raise ValueError(f"the query encoder in {setup['ear']} has changed since {run} was trained with it")
    if setup["paper"]:
        separator: nn.Module = UNet(
            UNetSizes(**as_tuples({"query_size": query_encoder.embedding_size} | setup["sizes"]))
        )
    else:
        separator = ResUNet(query_encoder, **as_tuples(setup["sizes"]))
    state = load_average(run, separator)
    return query_encoder, separator.eval().requires_grad_(False), setup, state["rows"]


def read_setup(run: Path) -> dict[str, Any]:
    """Return a run's setup. Raises FileNotFoundError."""
    path = run / SETUP
    if not path.exists():
        raise FileNotFoundError(f"{run} is not a run's folder: it has no {SETUP}")
    return json.loads(path.read_text())


def load_average(folder: Path, network: nn.Module) -> dict[str, Any]:
    """Load the averaged weights of a run into a network, and return the state of its loop. Raises FileNotFoundError."""
    path = folder / CHECKPOINT
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no training: it has no {CHECKPOINT}")
    whole = torch.load(path, weights_only=True, map_location="cpu")
    network.load_state_dict(whole["average"])
    return whole["state"]
