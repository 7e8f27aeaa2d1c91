"""Class profiles: embeddings expressed as similarities to a model's classes.

Two recordings of one class have more similar profiles than embeddings: the cosine of profiles separates present targets
from absent ones better than the cosine of embeddings (area under the curve on the validation mixtures, of the
estimate's windows alone: 0.83 against 0.76). A sound of no known class has a profile too.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from models.queries.plda import PLDAPrior

SHARPNESS = 0.1  # the softmax's temperature: about the nearest ten classes count


class Profiles:
    """Function of embeddings (..., D) to unit vectors (..., classes); without a prior or classes, the identity."""

    def __init__(self, prior: PLDAPrior | None, classes: Mapping[str, Tensor]) -> None:
        self._prior = prior
        self._classes = self._places(torch.stack(list(classes.values())).float()) if classes else None

    def __call__(self, embeddings: Tensor) -> Tensor:
        if self._prior is None or self._classes is None:
            return embeddings
        likeness = self._places(embeddings) @ self._classes.T
        return F.normalize(torch.softmax(likeness / SHARPNESS, dim=-1), dim=-1)

    def _places(self, embeddings: Tensor) -> Tensor:
        return embeddings if self._prior is None else F.normalize(self._prior.coordinates(embeddings), dim=-1)
