"""The paper's recipe for training a separator (Chen et al., AAAI 2022, section 3).

Two clips of different classes, cut at their anchors, the second scaled to the first's energy; their sum is the mixture,
and both are targets. The query of a target is the detector's embedding of the target's own segment. L1 on the waveform.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.corpus.clips import RATE, Clips
from models.networks import Detector
from models.networks.unet import HyperParameters, UNet
from models.training.loop import Learner, Schedule
from models.training.mixing import Mixer
from models.training.recipe import Recipe

SCHEDULE = Schedule(weight_decay=0.0, betas=(0.9, 0.999), amsgrad=True, ema=0.0)
SEGMENT_SECONDS = 2.0
GAINS = (0.02, 50.0)  # limits of the second segment's gain


def recipe(pairs: int) -> Recipe:
    """Return a recipe of pairs of clips without augmentation and absent queries; classes evenly."""
    return Recipe(
        mixtures=pairs,
        queries=0,
        seconds=SEGMENT_SECONDS,
        interference_db=(0.0, 0.0),
        third_source=0.0,
        single_source=0.0,
        hard_negative=0.0,
        anchored=1.0,
        layered=0.0,
        varied_speed=0.0,
        room=0.0,
        filtered=0.0,
        class_power=0.0,
    )


@dataclass
class Pairs:
    """A batch. sources: (2 P, T) waveforms at their level in the mixtures; the two of a pair are adjacent."""

    sources: Tensor

    @property
    def seconds(self) -> float:
        return self.sources.numel() / RATE


class PairMixer:
    """Draws pairs of anchored segments. anchors: (clips,) as `anchors.mine` finds them."""

    def __init__(
        self, clips: Clips, anchors: np.ndarray, pairs: int, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.mixer = Mixer(clips, None, recipe(pairs), (1024, 320, 1024), seed, anchors, device)

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Pairs:
        """Return the pairs of a step, or one of `parts` equal shares of them."""
        plan = self.mixer.plan(step, part, parts)
        if plan.mixture_of_source != [source // 2 for source in range(len(plan.mixture_of_source))]:
            raise ValueError("a clip of the corpus has labels related to every other clip's: it cannot be paired")
        first, second = self.mixer.renderer.sources(plan).unflatten(0, (-1, 2)).unbind(1)
        ratio = (first.square().sum(1) / second.square().sum(1).clamp(min=1e-12)).sqrt().clamp(*GAINS)
        return Pairs(torch.stack([first, second * ratio[:, None]], dim=1).flatten(0, 1))


class PaperLearner(Learner):
    """The paper's U-Net, with a frozen detector's embedding of each target as query."""

    network: UNet
    detector: Detector

    def __init__(self, detector: Detector, hyper: HyperParameters) -> None:
        super().__init__()
        if hyper.query_size != detector.embedding_size:
            raise ValueError(f"queries of {hyper.query_size} values from a detector of {detector.embedding_size}")
        self.network = UNet(hyper)
        self.__dict__["detector"] = detector  # not registered: it is not trained

    def sound(self, batch: Pairs) -> bool:
        return bool(torch.isfinite(batch.sources).all())

    def forward(self, batch: Pairs) -> Tensor:
        with torch.no_grad():
            queries = self.detector.embed(batch.sources).float()
        mixtures = batch.sources.unflatten(0, (-1, 2)).sum(1).repeat_interleave(2, 0)
        return F.l1_loss(self.network(mixtures, queries).float(), batch.sources)
