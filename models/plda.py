"""What a class of sounds is expected to sound like to the ear, given some of its sounds.

An example differs from what it stands for: another dog, another room. Probabilistic linear discriminant analysis
(Ioffe, ECCV 2006): a class's mean is drawn from N(centre, B) and its sounds from N(mean, W), with B and W taken from
training clips, in the domain of signed square roots that tame an embedding's few large values. Given a sound q, its
class's mean is expected at centre + B (B + W)^-1 (q - centre): what tells classes apart is kept, what differs within a
class is drawn to the centre. (By theory, the mean of n examples is corrected with W / n; measured, that makes no
difference.)
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class PLDAPrior:
    """B (B + W)^-1 as B and W have it, diagonal together along K directions, with one gain along all others.

    centre (D,); directions (D, K) with directions.T @ W @ directions = 1; patterns (D, K) = W @ directions; gains
    (K + 1,): between 0 and 1, along each direction, and along all others.
    """

    centre: Tensor
    directions: Tensor
    patterns: Tensor
    gains: Tensor

    def posterior_mean(self, vectors: Tensor) -> Tensor:
        """Embeddings of examples, or their means (..., D) -> where the means of their classes are expected (..., D)."""
        offset = root(vectors) - self.centre
        along = offset @ self.directions * (self.gains[:-1] - self.gains[-1])
        expected = self.centre + self.gains[-1] * offset + along @ self.patterns.T
        return expected.sign() * expected.square()

    def coordinates(self, vectors: Tensor) -> Tensor:
        """Embeddings (..., D) -> (..., K): along each direction, as far as it tells classes apart."""
        return (root(vectors) - self.centre) @ self.directions * self.gains[:-1].sqrt()

    def state(self) -> dict[str, Tensor]:
        """As it is stored."""
        return dict(vars(self))

    @classmethod
    def of(cls, state: dict[str, Any]) -> "PLDAPrior":
        """From what is stored, in float32. Raises TypeError, ValueError for what is no prior."""
        prior = cls(**{name: entry.float() for name, entry in state.items()})
        size, count = prior.directions.shape
        if prior.patterns.shape != (size, count) or prior.centre.shape != (size,) or prior.gains.shape != (count + 1,):
            raise ValueError("the prior's parts do not fit together")
        return prior


def root(embeddings: Tensor) -> Tensor:
    """Signed square roots."""
    return embeddings.sign() * embeddings.abs().sqrt()
