"""Figures of a model's presence rule, on validation mixtures that it was not fitted on."""

from dataclasses import dataclass

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from models.evaluation.detectors.ranking import area_under_curve
from models.evaluation.model_under_test import ModelUnderTest
from models.evaluation.reports.summaries import table_of
from models.separation.presence import Rule, measure
from models.validation import separation_figures
from models.validation.metrics import attenuation
from models.validation.mixtures import Mixture

LOSS_DB = 3.0  # attenuation by the gate from which a present target counts as lost
CUT_DB = 20.0  # level below the mixture from which an absent target counts as removed
CUT_SHARE = 0.05  # share of present targets that are attenuated, at which absent ones are reported


@dataclass(frozen=True)
class Presence:
    """Figures on `rows` mixtures, each with a present and an absent query.

    area: under the ROC curve of presence. lost: share of present targets that the gate attenuates by more than LOSS_DB.
    cut_by_mask, cut_by_gate: share of absent targets CUT_DB or more below the mixture, by the mask alone, and by mask
    and gate together. cut_at_share: the same with a threshold that CUT_SHARE of the present targets fall below.
    below_by_mask, below_by_gate: absent targets' mean level below the mixture, in dB.
    """

    rows: int
    area: float
    lost: float
    cut_by_mask: float
    cut_by_gate: float
    cut_at_share: float
    below_by_mask: float
    below_by_gate: float

    def table(self) -> Table:
        """Return the table to print."""
        table = table_of(f"presence, {self.rows} mixtures that its rule was not fitted on", "figure", "value")
        table.add_row("area under the curve", f"{self.area:.3f}")
        table.add_row(f"there, lowered by more than {LOSS_DB:.0f} dB", _percent(self.lost))
        table.add_row(f"not there, {CUT_DB:.0f} dB down by the mask alone", _percent(self.cut_by_mask))
        table.add_row(f"not there, {CUT_DB:.0f} dB down with the gate", _percent(self.cut_by_gate))
        table.add_row(f"the same, {CUT_SHARE:.0%} of what is there being cut", _percent(self.cut_at_share))
        levels = f"{self.below_by_mask:.1f} dB, {self.below_by_gate:.1f} dB"
        table.add_row("not there: below the mixture, without gate, with it", levels)
        return table


def measure_presence(subject: ModelUnderTest, rows: list[Mixture]) -> Presence | None:
    """Measure on the odd validation mixtures, since the rule was fitted on the even ones; None without a rule."""
    if not subject.bundle.presence:
        return None
    rule, odd = Rule.of(subject.bundle.presence), rows[1::2]
    there, _ = _presence_of(subject, rule, odd, "query")
    missing, below = _presence_of(subject, rule, odd, "absent")
    return figures(rule, there, missing, below)


def figures(rule: Rule, there: Tensor, missing: Tensor, below: Tensor) -> Presence:
    """Return the figures. there, missing: presence of each row's present and absent query (N,); below: level of the
    latter's estimates below the mixtures in dB, before the gate."""
    gains = torch.tensor([[rule.gain_db(presence) for presence in of.tolist()] for of in (there, missing)])
    scores = torch.cat([there, missing]).numpy()
    truth = np.arange(len(scores)) < len(there)
    limit = there.double().quantile(CUT_SHARE, interpolation="lower")
    return Presence(
        rows=len(there),
        area=float(area_under_curve(scores, truth)),
        lost=_share(gains[0] < -LOSS_DB),
        cut_by_mask=_share(below >= CUT_DB),
        cut_by_gate=_share(below - gains[1] >= CUT_DB),
        cut_at_share=_share((missing < limit) | (below >= CUT_DB)),
        below_by_mask=below.mean().item(),
        below_by_gate=(below - gains[1]).mean().item(),
    )


def _presence_of(subject: ModelUnderTest, rule: Rule, rows: list[Mixture], kind: str) -> tuple[Tensor, Tensor]:
    """Return the presence of each row's "query" or "absent", and its estimate's level below the mixture in dB, (N,)."""
    runner, profiles, size = subject.runner, subject.profiles, subject.rows_at_once(2)

    def embed_profiles(windows: Tensor) -> Tensor:
        return profiles(runner.sketch(windows))

    queries = torch.stack([subject.query(getattr(row, kind)) for row in rows])
    found, below = [], []
    for some, query_batch in zip(
        separation_figures.stack(rows, "mixture").split(size), queries.split(size), strict=True
    ):
        estimates = subject.estimates(some, [query_batch])[0]
        below.append(attenuation(estimates, some))
        for query, mixture, estimate in zip(profiles(query_batch), some, estimates, strict=True):
            found.append(rule.presence(measure(embed_profiles, runner.rate, rule, query, mixture, estimate)))
    return torch.tensor(found, dtype=torch.float64), torch.cat(below)


def _share(those: Tensor) -> float:
    return those.double().mean().item()


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
