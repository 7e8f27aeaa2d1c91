"""Fitting of the PLDA prior (`models.queries.plda`) to the training clips' embeddings."""

from collections import defaultdict

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

from models.corpus.clips import Clips
from models.queries.plda import PLDAPrior, root
from models.runs.clip_embeddings import have_embeddings

DIRECTIONS = 192  # a few more than there are classes
DIAGONAL = 0.5  # shrinkage of W to its diagonal: a few thousand clips do not determine all covariances
LEAST = 0.02  # share of W's mean variance added to all variances: some features of a query encoder are constant
MOST_GROUPS = 10_000  # of a class; its statistics need no more, and all of AudioSet's do not fit in memory
ROUNDING = 1e-12  # share of a mean's square that variances of equal embeddings may reach
UNSEEN = 0.3  # share of W added to B: unseen classes differ along other directions too


def fit(embeddings: np.ndarray, clips: Clips) -> PLDAPrior | None:
    """Fit a prior to the clips' queries (clips, VERSIONS, D); None if no class has clips of two groups, or
    all of them sound the same to the encoder."""
    groups: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index in np.flatnonzero(have_embeddings(embeddings)).tolist():
        clip = clips.clips[index]
        for mid in clip.mids:
            if clip.group in groups[mid] or len(groups[mid]) < MOST_GROUPS:
                groups[mid][clip.group].append(index)
    size = embeddings.shape[2]
    within, weight = torch.zeros(size, size, dtype=torch.float64), 0.0
    means, weights = [], []
    for of_class in groups.values():
        parts = [
            root(torch.from_numpy(embeddings[indices].astype(np.float32))).flatten(0, 1).double()
            for indices in of_class.values()
        ]
        mean = torch.stack([part.mean(0) for part in parts]).mean(0)
        means.append(mean)
        # A class with a hundred groups has a more reliable mean than one with two, but not fifty times its weight.
        weights.append(len(parts) ** 0.5)
        if len(parts) > 1:
            offsets = torch.cat([(part - mean) / len(part) ** 0.5 for part in parts])  # a group counts once
            within += weights[-1] * offsets.T @ offsets / (len(parts) - 1)
            weight += weights[-1]
    if weight == 0.0 or len(means) < 2:
        return None
    if within.trace() <= ROUNDING * weight * torch.stack(means).square().sum(1).mean():
        return None
    centre = torch.stack(means).mean(0)
    offsets, shares = torch.stack(means) - centre, torch.tensor(weights, dtype=torch.float64)
    between = (offsets * shares[:, None]).T @ offsets / shares.sum()
    return _diagonal(centre, between, _regularise(within / weight))


def _regularise(covariance: Tensor) -> Tensor:
    """Shrink a covariance to its diagonal, and add a share of its mean variance."""
    variances = covariance.diagonal()
    drawn = (1 - DIAGONAL) * covariance + DIAGONAL * torch.diag(variances)
    return drawn + LEAST * variances.mean() * torch.eye(len(variances), dtype=covariance.dtype)


def _diagonal(centre: Tensor, between: Tensor, within: Tensor) -> PLDAPrior:
    last = len(centre) - 1
    first = max(0, last + 1 - DIRECTIONS)
    found, directions = eigh(between.numpy(), within.numpy(), subset_by_index=(first, last))
    kept = torch.from_numpy(directions)
    unseen = torch.tensor([0.0], dtype=torch.float64)
    ratios = torch.cat([torch.from_numpy(found), unseen]) + UNSEEN
    parts = centre, kept, within @ kept, ratios / (ratios + 1)
    return PLDAPrior(*(part.float().contiguous() for part in parts))
