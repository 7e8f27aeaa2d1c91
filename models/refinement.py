"""Refinement of queries: a query is moved towards the sound that it found in a recording, and asked again.

An example is of another recording, another dog; the estimate that it gives is of the very sound that is sought. The
embedding of the estimate joins the query by as much as the two agree: where they do not, the estimate may be of another
sound, or of nothing. Measured on the reporting mixtures and the practical list (the card has the table).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.audio import mono
from models.checkpoints import Bundle
from models.detector_runner import DetectorRunner
from models.errors import SilentQuery
from models.plda import PLDAPrior, root
from models.query import QueryRules, cut


@dataclass(frozen=True)
class RefinementRule:
    """How far a query follows its estimate. starts, ends: cosines of the two, between which the estimate's share rises
    from 0 to `share`."""

    starts: float = 0.75
    ends: float = 0.9
    share: float = 0.8

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "RefinementRule":
        """Return the rule of a model's configuration. Raises TypeError, ValueError."""
        rule = cls(**config)
        if not (0 <= rule.starts < rule.ends and 0 < rule.share <= 1):
            raise ValueError(f"{rule} is no rule: it needs starts below ends, and a share up to 1")
        return rule

    def weight(self, likeness: float) -> float:
        """Return the estimate's share in the refined query."""
        return self.share * min(1.0, max(0.0, (likeness - self.starts) / (self.ends - self.starts)))


class Refinement:
    """Refines queries by their estimates, by a model's rule, the rules of its queries and its prior."""

    @staticmethod
    def of(bundle: Bundle, runner: DetectorRunner) -> "Refinement | None":
        """Return a model's refinement; None if it has no rule for it."""
        rule = bundle.config.get("refinement")
        if rule is None:
            return None
        return Refinement(RefinementRule.of(rule), runner, QueryRules(**bundle.config["query"]), bundle.prior)

    def __init__(
        self, rule: RefinementRule, runner: DetectorRunner, rules: QueryRules, prior: PLDAPrior | None
    ) -> None:
        self._rule, self._runner, self._rules, self._prior = rule, runner, rules, prior

    def __call__(self, query: Tensor, estimate: Tensor) -> Tensor | None:
        """Return the refined query (D,) of one (D,) and its estimate (C, n) at the detector's rate; None if it stays.

        Parts of an estimate that are far below its loudest do not count.
        """
        try:
            windows = cut(mono(estimate), self._runner.rate, self._rules).waveforms
        except SilentQuery:
            return None
        found = self._runner.sketch(windows).mean(0)
        if self._prior is not None:
            found = self._prior.posterior_mean(found)
        share = self._rule.weight(F.cosine_similarity(query, found, dim=0).item())
        if not share > 0:
            return None
        mixed = torch.lerp(root(query), root(found), share)
        return mixed.sign() * mixed.square()
