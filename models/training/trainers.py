"""Training runs of detectors and separators: setups, and functions that start a run or resume it.

Held-out classes are removed before anything else reads the corpus.
"""

import json
import os
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import nn

from models.checkpoints import as_tuples
from models.compute.precision import has_bfloat16
from models.compute.threads import usable_cores
from models.console import progress_console
from models.corpus.clips import RATE, Clips
from models.corpus.decoded import load_source
from models.corpus.sources.unlabelled import Unlabelled
from models.errors import CorpusInvalid, SilentQuery
from models.networks.htsat import HTSAT, SMALL, HyperParameters
from models.networks.unet import HyperParameters as UNetSizes
from models.queries.query import BASE_RULES, PAPER_RULES, QueryRules, cut
from models.runs import plda_fit, teacher
from models.runs.clip_embeddings import keep_share, sounding, weights_digest
from models.runs.run_folder import (
    QUERIES,
    SETUP,
    Place,
    load_query_encoder,
    read_setup,
    separator_weights,
)
from models.training import anchors, detector, paper
from models.training.detector import DetectorLearner, Lessons, Teacher
from models.training.detector_validation import mean_average_precision
from models.training.loop import Advance, Loop, Report, Schedule
from models.training.mixing import Mixer
from models.training.recipe import Recipe
from models.training.separator import LOSSES, SeparatorLearner
from models.validation import mixtures
from models.validation.separation_figures import figures, queries_of, summary

DEVICE_SHARE = 0.6  # largest share of a GPU's free memory for the corpus
STATISTICS = 100_000  # most clips of which the mean and the deviation of queries are taken
AUTO = "auto"
COURSE = ("seed", "learning_rate", "precision")
WATCHED = 40  # validation mixtures that are drawn if the committed list is of another corpus


@dataclass(frozen=True)
class Machine:
    """The hardware of a run. devices: number of processes, one for each GPU or, on a CPU, sharing its cores.

    precision: of Fabric; "auto" is that of the run where it goes on, else bfloat16 if the hardware multiplies it.
    """

    accelerator: str = "auto"
    devices: int = 1
    precision: str = AUTO

    def for_run(self, run: Path) -> "Machine":
        """Return the machine with the precision that a run has, or is to have."""
        if self.precision != AUTO:
            return self
        begun = read_setup(run).get("precision") if (run / SETUP).exists() else None
        kind = "cuda" if self.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
        return replace(self, precision=begun or ("bf16-mixed" if has_bfloat16(kind) else "32-true"))

    def fabric(self) -> Fabric:
        """Launch Fabric: after this call there are `devices` processes (or those of torchrun)."""
        # torchrun has started the processes already, and sets their number.
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", self.devices))
        nodes = max(1, int(os.environ.get("WORLD_SIZE", devices)) // devices)
        made = Fabric(
            accelerator=self.accelerator,
            devices=devices,
            num_nodes=nodes,
            precision=self.precision,  # pyright: ignore[reportArgumentType]  Fabric validates it
            strategy="ddp" if devices * nodes > 1 else "auto",
        )
        made.launch()
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores(devices)))
        return made


@dataclass(frozen=True)
class DetectorSetup:
    """Setup of a detector's run. teacher: folder, or None to learn from labels alone. unlabelled: a folder of audio
    files that the teacher labels."""

    place: Place
    teacher: Path | None = None
    unlabelled: Path | None = None
    hyper: HyperParameters = SMALL
    lessons: Lessons = field(default_factory=Lessons)
    recipe: Recipe = detector.RECIPE


@dataclass(frozen=True)
class SeparatorSetup:
    """Setup of a separator's run. query_encoder: the teacher's folder or a detector's run. sizes: of the ResUNet, or
    the paper's UNet. start: initial weights: a shipped model's name, a model's folder or another run; None: random.
    query: what represents an example, the encoder's "embeddings" or the teacher's "probabilities" of classes.
    loss: see SeparatorLearner; the paper's separator has its own.
    prior: whether examples are corrected by a PLDA prior (`models.queries.plda`).
    share: of the corpus's source groups, to measure the effect of their number."""

    place: Place
    query_encoder: Path
    paper: bool = False
    sizes: dict[str, Any] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=Recipe)
    start: str | None = None
    query: str = QUERIES[0]
    loss: str = LOSSES[0]
    prior: bool = True
    share: float = 1.0


def train_detector(
    run: Path, setup: DetectorSetup, schedule: Schedule, machine: Machine, report: Report, advance: Advance
) -> Loop:
    """Train a detector in a run's folder, or resume the run."""
    machine = machine.for_run(run)
    fabric = machine.fabric()
    _write(run, {"kind": "detector", **_plain(setup), **_course(schedule, machine)}, fabric)
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
    validation = _if_any(setup.place, "valid")

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
    about = {"kind": "separator", "ear_weights": weights_digest(query_encoder), **_plain(setup)}
    _write(run, about | _course(schedule, machine), fabric)
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
            heard = np.flatnonzero(sounding(vectors))
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


def validation_mixtures(place: Place, rules: QueryRules) -> list[mixtures.Mixture]:
    """Return the validation mixtures of a run: the committed list without held-out classes or, for another corpus, some
    drawn from its split `valid`; none if it has none. Rows whose examples are silent by the rules are left out."""
    clips = _if_any(place, "valid")
    if clips is None:
        return []
    there = {clip.key for clip in clips.clips}
    listed = mixtures.read()
    rows = [row for row in listed if {row.target, row.interference, row.query, row.absent} <= there]
    if len(rows) < len(listed) // 2:
        try:
            rows = mixtures.draw(clips, WATCHED)
        except ValueError as fault:
            progress_console.print(f"the run is not validated: {fault}")
            return []
    return [
        row for row in mixtures.render(rows, clips) if all(_is_audible(clip, rules) for clip in (row.query, row.absent))
    ]


def _is_audible(clip: np.ndarray, rules: QueryRules) -> bool:
    try:
        cut(torch.from_numpy(clip), RATE, rules)
    except SilentQuery:
        return False
    return True


def _write(run: Path, setup: dict[str, Any], fabric: Fabric) -> None:
    """Write the setup; a resumed run must have the same. Raises ValueError."""
    path = run / SETUP
    if path.exists():
        # Runs of earlier releases do not tell their course: they go on with the one given.
        before = {name: setup[name] for name in COURSE} | read_setup(run)
        # They lack some fields too, whose defaults change nothing.
        fields = {"place": asdict(Place.of(before)), "recipe": asdict(Recipe()) | before["recipe"]}
        before |= json.loads(json.dumps(fields, default=str))
        others = _differences(before, json.loads(json.dumps(setup)))
        if others:
            raise ValueError(f"{run} holds another run ({others}): give --run a new folder, or the options in {path}")
    fabric.barrier()  # every process has read the setup
    if fabric.is_global_zero:
        run.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(setup, indent=2) + "\n")
    fabric.barrier()


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return what differs between two setups, in words."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        ours, theirs = (of.get(name) for of in (before, now))
        if isinstance(ours, dict) and isinstance(theirs, dict):
            inner = _differences(ours, theirs)
            found += [f"{name}: {inner}"] if inner else []
        elif ours != theirs:
            found.append(f"{name.replace('_', ' ')} {ours}, not {theirs}")
    return "; ".join(found)


def _course(schedule: Schedule, machine: Machine) -> dict[str, Any]:
    """What else decides how a run goes; its length does not, so that a run can be made longer."""
    return dict(zip(COURSE, (schedule.seed, schedule.learning_rate, machine.precision), strict=True))


def _plain(setup: DetectorSetup | SeparatorSetup) -> dict[str, Any]:
    """The setup as `run.json` has it, where the query encoder is called `ear`."""
    fields = {"ear" if name == "query_encoder" else name: value for name, value in asdict(setup).items()}
    return json.loads(json.dumps(fields, default=str))


def _if_any(place: Place, split: str) -> Clips | None:
    try:
        return place.clips(split)
    except (FileNotFoundError, CorpusInvalid):
        return None


def with_batch(recipe: Recipe, mixtures_a_batch: int | None) -> Recipe:
    """Return the recipe with another batch size."""
    return replace(recipe, mixtures=mixtures_a_batch) if mixtures_a_batch else recipe


def with_changes(recipe: Recipe, changes: list[str]) -> Recipe:
    """Return the recipe with changed fields, such as ["room=0.2", "interference_db=-5:5"]. Raises ValueError."""
    known = asdict(recipe)
    found: dict[str, Any] = {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in known:
            raise ValueError(f"a recipe has no {name!r}, but {', '.join(known)}")
        kind = type(known[name])
        try:
            found[name] = tuple(float(part) for part in text.split(":")) if kind is tuple else kind(text)
        except ValueError:
            raise ValueError(f"{change}: {text!r} is not such as {known[name]}") from None
        if kind is tuple and len(found[name]) != len(known[name]):
            raise ValueError(f"{change}: {len(known[name])} numbers with a colon between them")
    return replace(recipe, **found)
