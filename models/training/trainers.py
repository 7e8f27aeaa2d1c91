"""Training runs of detectors and separators: functions that start a run or resume it.

Held-out classes are removed before anything else reads the corpus.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import nn

from models.checkpoints import as_tuples
from models.console import progress_console
from models.corpus.clips import Clips
from models.corpus.decoded import load_source
from models.corpus.sources.unlabelled import Unlabelled
from models.networks.htsat import HTSAT
from models.networks.unet import HyperParameters as UNetSizes
from models.queries.query import BASE_RULES, PAPER_RULES
from models.runs import plda_fit, teacher
from models.runs.clip_embeddings import have_embeddings, keep_share, weights_digest
from models.runs.run_folder import (
    load_query_encoder,
    separator_weights,
)
from models.training import anchors, paper
from models.training.detector import DetectorLearner, Teacher
from models.training.loop import Advance, Loop, Report, Schedule
from models.training.mixing import Mixer
from models.training.run_validation import mean_average_precision, validation_clips, validation_mixtures
from models.training.separator import SeparatorLearner
from models.training.setups import DetectorSetup, Machine, SeparatorSetup, course, plain, write
from models.validation.separation_figures import figures, queries_of, summary

DEVICE_SHARE = 0.6  # largest share of a GPU's free memory for the corpus
STATISTICS = 100_000  # most clips of which the mean and the deviation of queries are taken


def train_detector(
    run: Path, setup: DetectorSetup, schedule: Schedule, machine: Machine, report: Report, advance: Advance
) -> Loop:
    """Train a detector in a run's folder, or resume the run."""
    machine = machine.for_run(run)
    fabric = machine.fabric()
    write(run, {"kind": "detector", **plain(setup), **course(schedule, machine)}, fabric)
    torch.manual_seed(schedule.seed)
    vectors = None
    with fabric.rank_zero_first():  # the other processes use its cache
        clips = setup.place.clips("train")
        if setup.teacher is not None:
            query_encoder = teacher.load(setup.teacher)
            vectors = Teacher(query_encoder, setup.place.embeddings(query_encoder, clips)[:, 0])
            vectors.to(fabric.device)
            if setup.unlabelled is not None:
                clips = clips.join(load_source(Unlabelled(setup.unlabelled), setup.place.cache))
    learner = DetectorLearner(setup.hyper, setup.lessons, vectors)
    loop = Loop(fabric, learner, run, schedule)
    hyper = setup.hyper
    stft = (hyper.fft_size, hyper.hop, hyper.window_size or hyper.fft_size)
    mixer = Mixer(clips, None, setup.recipe, stft, schedule.seed, device=corpus_device(clips, fabric))
    validation = validation_clips(setup.place)

    def validate(network: nn.Module) -> dict[str, float]:
        return {"map": mean_average_precision(network, validation)} if validation else {}

    _say_if_over(loop)
    loop.run(mixer.batch, validate, report, advance)
    return loop


def train_separator(
    run: Path, setup: SeparatorSetup, schedule: Schedule, machine: Machine, report: Report, advance: Advance
) -> Loop:
    """Train a separator in a run's folder, or resume the run. Raises ValueError if its query encoder was trained on
    held-out classes."""
    machine = machine.for_run(run)
    fabric = machine.fabric()
    query_encoder = load_query_encoder(setup.query_encoder, setup.place.held_out, setup.query)
    if setup.paper and not isinstance(query_encoder, HTSAT):
        raise ValueError("the paper's separator needs a transformer as query encoder: give --ear a detector's run")
    about = {"kind": "separator", "ear_weights": weights_digest(query_encoder), **plain(setup)}
    write(run, about | course(schedule, machine), fabric)
    query_encoder.to(fabric.device)
    torch.manual_seed(schedule.seed)
    with fabric.rank_zero_first():  # the others find what it has cached
        clips = setup.place.clips("train")
        vectors = (
            np.zeros(0) if setup.paper else keep_share(setup.place.embeddings(query_encoder, clips), clips, setup.share)
        )
    device = corpus_device(clips, fabric)
    rules = PAPER_RULES if setup.paper else BASE_RULES
    rows = validation_mixtures(setup.place, rules)
    prior = None
    if setup.paper:
        learner = paper.PaperLearner(
            query_encoder, UNetSizes(**as_tuples({"query_size": query_encoder.embedding_size} | setup.sizes))
        )
        found = _anchors(query_encoder, clips, setup, paper.SEGMENT_SECONDS)
        draw = paper.PairMixer(clips, found, setup.recipe.mixtures, schedule.seed, device).batch
        loop = Loop(fabric, learner, run, schedule)
    else:
        learner = SeparatorLearner(query_encoder, as_tuples(setup.sizes), setup.loss)
        if setup.start is None:
            heard = np.flatnonzero(have_embeddings(vectors))
            some = heard[:: -(-len(heard) // STATISTICS) or 1]
            learner.network.learn_queries(torch.from_numpy(vectors[some, 0].astype(np.float32)))
        else:
            learner.network.load_state_dict(separator_weights(setup.start, learner.network))
        found = _anchors(query_encoder, clips, setup, setup.recipe.seconds) if setup.recipe.anchored else None
        prior = plda_fit.fit(vectors, clips) if setup.prior else None
        draw = Mixer(clips, vectors, setup.recipe, learner.stft, schedule.seed, found, device, prior).batch
        loop = Loop(fabric, learner, run, schedule)
    query_vectors = (
        [queries_of(query_encoder, rows, kind, rules, prior) for kind in ("query", "absent")] if rows else []
    )

    def validate(network: nn.Module) -> dict[str, float]:
        return summary(figures(network, rows, *query_vectors)) if rows else {}

    _say_if_over(loop)
    loop.run(draw, validate, report, advance)
    return loop


def _say_if_over(loop: Loop) -> None:
    state = loop.state
    if loop.finished and loop.fabric.is_global_zero:
        length = f"{state.step} steps, {state.seconds / 60:.2f} minutes"
        progress_console.print(f"{loop.folder} is finished ({length}): with more --minutes or --steps it goes on")


def _anchors(encoder: Any, clips: Clips, setup: SeparatorSetup, seconds: float) -> np.ndarray:
    return anchors.load(encoder, clips, setup.place.cache / "anchors", seconds)


def corpus_device(clips: Clips, fabric: Fabric) -> torch.device:
    """Return the device for the corpus and the mixing: the GPU if the corpus fits beside the training, else the CPU."""
    if fabric.device.type != "cuda":
        return torch.device("cpu")
    free, _ = torch.cuda.mem_get_info(fabric.device)
    fits = clips.samples.nbytes < DEVICE_SHARE * free
    if not fits:
        warnings.warn(f"the corpus ({clips.samples.nbytes / 2**30:.0f} GiB) does not fit on the GPU", stacklevel=2)
    return fabric.device if fits else torch.device("cpu")
