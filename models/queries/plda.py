"""PLDA prior: the expected embedding of a class of sounds, given examples of it.

An example differs from other sounds of its class: another dog, another room. Probabilistic linear discriminant analysis
(Ioffe, ECCV 2006): a class's mean is drawn from N(centre, B) and its sounds from N(mean, W), with B and W fitted to
training clips, in the domain of signed square roots, which compress an embedding's few large values. Given a sound q,
the expected mean of its class is centre + B (B + W)^-1 (q - centre): directions that separate classes are kept, those
that vary within a class shrink towards the centre. (In theory the mean of n examples is corrected with W / n; in
measurements that makes no difference.)
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class PLDAPrior:
    """The matrix B (B + W)^-1, with B and W diagonalised together along K directions and one gain along all others.

    centre (D,); directions (D, K) with directions.T @ W @ directions = 1; patterns (D, K) = W @ directions; gains
    (K + 1,): between 0 and 1, along each direction, and along all others.
    """

    centre: Tensor
    directions: Tensor
    patterns: Tensor
    gains: Tensor

    def posterior_mean(self, vectors: Tensor) -> Tensor:
        """Return the expected means of the classes (..., D) of examples' embeddings, or of their means, (..., D)."""
        offset = root(vectors) - self.centre
        along = offset @ self.directions * (self.gains[:-1] - self.gains[-1])
        expected = self.centre + self.gains[-1] * offset + along @ self.patterns.T
        return expected.sign() * expected.square()

    def coordinates(self, vectors: Tensor) -> Tensor:
        """Embeddings (..., D) -> coordinates (..., K), each scaled by how well its direction separates classes."""
        return (root(vectors) - self.centre) @ self.directions * self.gains[:-1].sqrt()

    def state(self) -> dict[str, Tensor]:
        """Return the tensors to store."""
        return dict(vars(self))

    @classmethod
    def of(cls, state: dict[str, Any]) -> "PLDAPrior":
        """Return the prior of stored tensors, in float32. Raises TypeError, ValueError if they are not one."""
        prior = cls(**{name: entry.float() for name, entry in state.items()})
        size, count = prior.directions.shape
        if prior.patterns.shape != (size, count) or prior.centre.shape != (size,) or prior.gains.shape != (count + 1,):
            raise ValueError("the shapes of the prior's tensors do not match")
        return prior


def root(embeddings: Tensor) -> Tensor:
    """Return the signed square roots."""
    return embeddings.sign() * embeddings.abs().sqrt()
