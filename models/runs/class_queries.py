"""Queries of classes by name: means of clips, and predictions from the query encoder's classifier.

A class without clips has no mean, but a query encoder that was trained on far more sounds can say how likely it is in
every clip of other classes. The prediction is the mean of those clips' embeddings, each weighted by the class's share
of all probabilities in the clip: a clip of wind counts for "Rustling leaves", and less if it could be many things.
A class with few clips gets a weighted mean of both.
"""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.corpus.clips import Clips
from models.labels import ontology
from models.networks.yamnet import Yamnet
from models.queries.plda import PLDAPrior, root

# Source groups of clips that a prediction counts as, measured with the mixtures of the half `choose` (see the card).
PREDICTION_GROUPS = 2.0
NOTHING = 1e-9  # share of a class's weight that is left by rounding when all of it is subtracted
BLOCK = 4096  # clips whose probabilities are in memory at once


@dataclass(frozen=True)
class ClassQuery:
    """A class's query (D,).

    groups: source groups of its clips, 0 if it is predicted. likeness: cosine of the prediction alone and the clips'
    mean, as signed square roots less the mean of all classes with clips; None unless there are both.
    """

    vector: Tensor
    groups: int
    likeness: float | None


def class_queries(
    query_encoder: object, embeddings: np.ndarray, clips: Clips, prior: PLDAPrior | None
) -> dict[str, ClassQuery]:
    """Return the classes' queries by mid: of classes with clips, and of all others that the query encoder classifies.

    embeddings: queries of the clips (N, VERSIONS, D), zeros for a clip that is not used. prior: corrects the means.
    Only YAMNet's classifier serves: it is linear in the embedding, and was trained on more than these clips.
    """
    groups: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    used = [index for index, row in enumerate(embeddings[:, 0]) if row.any()]
    for index in used:
        for mid in clips.clips[index].mids:
            groups[mid][clips.clips[index].group].append(index)
    unchanged = torch.from_numpy(np.array(embeddings[:, 0]))
    means = {
        mid: torch.stack([unchanged[of_group].float().mean(0) for of_group in of_class.values()]).mean(0)
        for mid, of_class in groups.items()
    }
    predictions: dict[str, Tensor] = {}
    if isinstance(query_encoder, Yamnet) and used:
        sounds = unchanged[used].float()
        predictions = predict_means(
            query_encoder, sounds, [clips.clips[at].group for at in used], {mid: set(groups[mid]) for mid in groups}
        )
    centre = root(torch.stack(list(means.values()))).mean(0) if means else torch.zeros(unchanged.shape[1])
    made = {}
    for mid in sorted(means.keys() | predictions.keys()):
        mean, prediction, count = means.get(mid), predictions.get(mid), len(groups.get(mid, ()))
        likeness = None
        if mean is not None and prediction is not None:
            likeness = F.cosine_similarity(root(prediction) - centre, root(mean) - centre, dim=0).item()
            expected = (count * mean + PREDICTION_GROUPS * prediction) / (count + PREDICTION_GROUPS)
        else:
            expected = mean if prediction is None else prediction
        assert expected is not None  # noqa: S101  a mid of one of the two
        made[mid] = ClassQuery(expected if prior is None else prior.posterior_mean(expected), count, likeness)
    return made


def predict_means(
    query_encoder: Yamnet, embeddings: Tensor, groups: Sequence[str], own_groups: dict[str, set[str]]
) -> dict[str, Tensor]:
    """Return each class's expected embedding (D,) by mid, from the clips of other classes.

    embeddings: of clips (N, D); groups: their source groups, each of which counts once. own_groups: of a class's own
    clips by mid, which are left out. A class for which nothing is left is left out.
    """
    number = {group: at for at, group in enumerate(dict.fromkeys(groups))}
    group_of = torch.tensor([number[group] for group in groups])
    weights = 1 / torch.bincount(group_of).double()[group_of]

    def weigh(some: Tensor) -> Tensor:
        """Return the weights (clips, classes) of some clips, given by their numbers."""
        with torch.inference_mode():
            probabilities = query_encoder.score_embeddings(embeddings[some]).double()
        return weights[some, None] * probabilities / probabilities.sum(1, keepdim=True).clamp_min(1e-12)

    sums = torch.zeros(len(query_encoder.class_indices), embeddings.shape[1], dtype=torch.float64)
    totals = torch.zeros(len(sums), dtype=torch.float64)
    for block in torch.arange(len(embeddings)).split(BLOCK):
        shares = weigh(block)
        sums += shares.T @ embeddings[block].double()
        totals += shares.sum(0)
    mids = {label.index: mid for mid, label in ontology().items()}
    made = {}
    for column, index in enumerate(query_encoder.class_indices.tolist()):
        mid = mids[index]
        total, rest = totals[column], sums[column]
        if mid in own_groups:
            own = torch.isin(group_of, torch.tensor([number[group] for group in own_groups[mid]])).nonzero()[:, 0]
            shares = weigh(own)[:, column]
            total, rest = total - shares.sum(), rest - shares @ embeddings[own].double()
        if total > NOTHING * totals[column]:
            made[mid] = (rest / total).float()
    return made


def write(queries: Mapping[str, ClassQuery], path: Path) -> None:
    """Write a CSV file with a row for each class, by name."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", "mid", "source", "groups", "prediction_likeness"])
        for mid, query in sorted(queries.items(), key=lambda entry: ontology()[entry[0]].name):
            likeness = "" if query.likeness is None else f"{query.likeness:.2f}"
            source = "clips" if query.groups else "predicted"
            writer.writerow([ontology()[mid].name, mid, source, query.groups, likeness])
