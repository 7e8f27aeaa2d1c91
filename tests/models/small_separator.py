"""A separator that learns in seconds, and batches for it."""

import torch

from models.networks.yamnet import Yamnet
from models.training.mixing import Mixer
from models.training.recipe import Recipe
from models.training.separator import SeparatorLearner
from tests.models import small_corpus

SIZES = {"bands": 64, "channels": (16, 16, 32, 32), "blocks": (1, 1, 1, 1), "code": 16, "recurrent": 16}


def separator() -> SeparatorLearner:
    torch.manual_seed(0)
    detector = Yamnet(list(range(521))).eval().requires_grad_(False)
    learner = SeparatorLearner(detector, SIZES)
    found = small_corpus.embeddings(small_corpus.clips())[:, 0]
    learner.network.learn_queries(torch.from_numpy(found.astype("float32")))
    return learner


def mixer(**recipe: float) -> Mixer:
    clips = small_corpus.clips()
    made = Recipe(**({"mixtures": 4, "seconds": 1.0} | recipe))  # type: ignore[arg-type]
    return Mixer(clips, small_corpus.embeddings(clips), made, (1024, 320, 800))
