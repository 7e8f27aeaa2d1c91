"""The learner of a detector from clip-level labels, with or without a teacher.

The labels of a clip are incomplete: their ancestors in the ontology count as present too, their descendants are left
out of the loss. A teacher, a network trained on far more data, adds targets for the same mixtures, labelled or not: its
scores over time and its embeddings.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.corpus.relations import self_and_ancestors, uncertain_classes
from models.labels import CLASSES, classes
from models.networks import ENCODER_LEVEL
from models.networks.htsat import HTSAT, SMALL, HyperParameters
from models.networks.resunet import ResUNet
from models.networks.yamnet import Yamnet
from models.training import paper
from models.training.loop import Learner, Schedule
from models.training.recipe import Recipe
from models.training.rendering import UNLABELLED, Batch

SCHEDULE = Schedule(weight_decay=0.05, warmup_steps=200, decay_from=0.3, ema=0.998)
RECIPE = Recipe(mixtures=16, queries=0, seconds=2.56, third_source=0.1, single_source=0.6, class_power=0.3, room=0.2)
RARE = -5.0  # initial logit of each class, since few of all classes are in a clip
QUIET = 10**-1.5  # patches this far below the loudest one are left out of the teacher's losses
TEACHER_PATCH = 3  # columns of 320 ms in a patch of the teacher: the 0.96 s it was trained on


@dataclass(frozen=True)
class Lessons:
    """Augmentation and losses of a detector.

    mixup: blend log-mels with those of the reversed batch by Beta(mixup, mixup); 0: off. mix_labels: blend the labels
    likewise; the paper does not. stripes: masked stretches on each axis, at most `widest` (frames, bands) wide.
    level_db: largest random change of level. labels, scores, embeddings: weights of the losses.
    """

    mixup: float = 0.5
    mix_labels: bool = True
    stripes: int = 2
    widest: tuple[int, int] = (64, 8)
    drop_path: float = 0.1
    level_db: float = 6.0
    labels: float = 1.0
    scores: float = 2.0
    embeddings: float = 20.0


PAPER_HYPER = HyperParameters(level=ENCODER_LEVEL)
PAPER_LESSONS = Lessons(mix_labels=False, level_db=0.0)
PAPER_RECIPE = replace(
    paper.recipe(32),
    seconds=10.0,
    single_source=1.0,
    anchored=0.0,  # whole clips of AudioSet
)


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's targets: scores (B, patches, C) of `classes` (C,), standardised embeddings (B, patches, D), and
    which patches (B, patches) are not silent."""

    classes: Tensor
    scores: Tensor
    embeddings: Tensor
    sounding: Tensor


class Teacher:
    """YAMNet, run fully convolutionally; its embeddings are standardised over the training clips' (N, D)."""

    def __init__(self, yamnet: Yamnet, embeddings: np.ndarray) -> None:
        self.yamnet = yamnet
        # The separator's standardisation, so that the student learns the embeddings as separators use them.
        self._separator = ResUNet(yamnet, channels=(8, 8, 8, 8), blocks=(1, 1, 1, 1))
        self._separator.learn_queries(torch.from_numpy(embeddings.astype(np.float32)))
        self._separator.requires_grad_(False)

    def to(self, device: torch.device) -> None:
        self.yamnet.to(device)
        self._separator.to(device)

    @torch.no_grad()
    def targets(self, magnitude: Tensor) -> TeacherTargets:
        """Return the targets for magnitudes (B, frames, bins) at the encoder's level, frames a multiple of 32."""
        _, embeddings = self.yamnet.encode_spectrum(magnitude)
        patches = over_patches(embeddings[:, ::2].float())
        scores = torch.sigmoid(self.yamnet.classes(patches))
        energy = over_patches(magnitude.square().mean(2).unflatten(1, (-1, 32)).mean(2, keepdim=True)).squeeze(2)
        sounding = energy >= QUIET * energy.amax(1, keepdim=True)
        return TeacherTargets(self.yamnet.class_indices, scores, self._separator.standardise(patches), sounding)


def over_patches(columns: Tensor) -> Tensor:
    """(B, columns of 320 ms, D) -> means over all patches of 0.96 s (B, columns - 2, D)."""
    return columns.unfold(1, TEACHER_PATCH, 1).mean(3)


class DetectorLearner(Learner):
    """A detector that is trained on mixtures of labelled clips."""

    network: HTSAT
    teacher: Teacher | None

    def __init__(self, hyper: HyperParameters = SMALL, lessons: Lessons | None = None, teacher: Teacher | None = None):
        super().__init__()
        if hyper.level is None:
            raise ValueError(
                "mixtures have no level of their own: a detector that is trained on them needs one to hear at"
            )
        self.level = hyper.level
        self.lessons = lessons or Lessons()
        if teacher is not None:
            # The teacher's scores are of the mixtures without mixup.
            self.lessons = replace(self.lessons, mixup=0.0)
        self.network = HTSAT(hyper, drop_path=self.lessons.drop_path)
        if self.network.head.bias is not None:
            nn.init.constant_(self.network.head.bias, RARE)
        self.__dict__["teacher"] = teacher  # not registered: it is not trained
        if teacher is not None:
            self.project = nn.Linear(self.network.embedding_size, teacher.yamnet.embedding_size)
        self.targets = LabelTargets()

    def sound(self, batch: Batch) -> bool:
        return bool(torch.isfinite(torch.view_as_real(batch.mixture)).all())

    def forward(self, batch: Batch) -> Tensor:
        lessons, network = self.lessons, self.network
        magnitude = batch.mixture.abs()
        magnitude = network.at_level(magnitude)
        frames = magnitude.shape[1] // 32 * 32
        taught = None
        if self.teacher is not None:
            taught = self.teacher.targets(magnitude[:, :frames] * (ENCODER_LEVEL / self.level))
        change = lessons.level_db * (2 * torch.rand(len(magnitude), 1, 1, device=magnitude.device) - 1)
        bands = network.bands_of(magnitude * 10 ** (change / 20))
        bands = mask_stripes(bands, lessons.stripes, lessons.widest)
        wanted, known = self.targets(batch.classes, bands.device)
        if lessons.mixup:
            blend = torch.distributions.Beta(lessons.mixup, lessons.mixup).sample((len(bands),)).to(bands.device)
            bands = blend_with_reversed(bands, blend[:, None, None])
            if lessons.mix_labels:
                wanted, known = blend_with_reversed(wanted, blend[:, None]), known & known.flip(0)
        tokens = network.tokens(bands)
        answer = network.answer(tokens)
        with torch.autocast(bands.device.type, enabled=False):
            loss = lessons.labels * self._of_labels(answer.clipwise.float(), wanted, known)
            if taught is not None:
                loss = loss + self._of_teacher(taught, tokens.float(), answer.framewise.float())
        return loss

    @staticmethod
    def _of_labels(clipwise: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
        """Return the binary cross-entropy over the known classes, summed over classes; a mean over equal rows."""
        each = F.binary_cross_entropy(clipwise.clamp(1e-6, 1 - 1e-6), wanted, reduction="none")
        return (each * known).sum(1).mean()

    def _of_teacher(self, taught: TeacherTargets, tokens: Tensor, framewise: Tensor) -> Tensor:
        per_column = 32 // self.network.hyper.patch[1]  # of the teacher's columns
        columns = taught.scores.shape[1] + TEACHER_PATCH - 1
        steps = framewise[:, : columns * per_column, taught.classes]
        logits = over_patches(torch.logit(steps, 1e-6).unflatten(1, (columns, per_column)).mean(2))
        scores = F.binary_cross_entropy_with_logits(logits, taught.scores, reduction="none").sum(2)
        embedding = tokens.mean(1)[:, : columns * per_column].unflatten(1, (columns, per_column)).mean(2)
        # Direction only: in the standardised space, rare sounds and silence have the longest vectors.
        distance = 1 - F.cosine_similarity(self.project(over_patches(embedding)), taught.embeddings, dim=2)
        each = self.lessons.scores * scores + self.lessons.embeddings * distance
        return ((each * taught.sounding).sum(1) / taught.sounding.sum(1)).mean()


class LabelTargets:
    """Converts labels of clips to targets over the 527 classes."""

    def __init__(self) -> None:
        self._column = {label.mid: at for at, label in enumerate(classes())}

    def __call__(self, labelled: list[frozenset[str]], device: torch.device) -> tuple[Tensor, Tensor]:
        """Mids of each clip -> targets (B, 527) as 0 or 1, and which of them are known (B, 527) as booleans.

        Of a clip with an unlabelled part, only the labelled classes are known."""
        wanted, known = torch.zeros(len(labelled), CLASSES), torch.ones(len(labelled), CLASSES, dtype=torch.bool)
        for row, mids in enumerate(labelled):
            known[row, self._columns(frozenset().union(*map(uncertain_classes, mids)))] = False
            if UNLABELLED in mids:
                known[row] = False
            there = self._columns(frozenset().union(*map(self_and_ancestors, mids)))
            wanted[row, there], known[row, there] = 1.0, True
        return wanted.to(device), known.to(device)

    def _columns(self, mids: frozenset[str]) -> list[int]:
        return [self._column[mid] for mid in mids if mid in self._column]


def blend_with_reversed(rows: Tensor, share: Tensor) -> Tensor:
    """Blend each row with the row of the reversed batch; share: of the row itself."""
    return torch.lerp(rows.flip(0), rows, share)


def mask_stripes(bands: Tensor, stripes: int, widest: tuple[int, int]) -> Tensor:
    """Set random stretches of frames and bands of log-mels (B, F, M) to their mean (Park et al., SpecAugment)."""
    for axis, most in ((1, widest[0]), (2, widest[1])):
        size = bands.shape[axis]
        place = torch.arange(size, device=bands.device)
        for _ in range(stripes):
            width = torch.rand(len(bands), 1, device=bands.device) * min(most, size)
            start = torch.rand(len(bands), 1, device=bands.device) * (size - width)
            hidden = (place >= start) & (place < start + width)
            bands = bands.masked_fill(hidden.unsqueeze(3 - axis), 0.0)
    return bands
