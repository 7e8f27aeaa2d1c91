"""Setups of training runs: what is trained, on what and how; written to `run.json`, which a resumed run must match."""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from models.compute.precision import has_bfloat16
from models.compute.threads import usable_cores
from models.errors import DeviceUnavailable
from models.networks.htsat import SMALL, HyperParameters
from models.runs.run_folder import CHECKPOINT, QUERIES, SETUP, Place, read_setup
from models.training import detector
from models.training.detector import Lessons
from models.training.loop import Schedule
from models.training.recipe import Recipe
from models.training.separator import LOSSES

AUTO = "auto"
COURSE = ("seed", "learning_rate", "precision", "optimizer")


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
        begun = read_setup(run).get("precision") if _has_begun(run) else None
        kind = "cuda" if self.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
        return replace(self, precision=begun or ("bf16-mixed" if has_bfloat16(kind) else "32-true"))

    def fabric(self) -> Fabric:
        """Launch Fabric: after this call there are `devices` processes (or those of torchrun).

        Raises DeviceUnavailable without a GPU where `accelerator` is cuda.
        """
        if self.accelerator == "cuda" and not torch.cuda.is_available():
            raise DeviceUnavailable("this machine has no cuda: use --accelerator auto or cpu")
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
    """Setup of a separator's run. query_encoder: a model, the teacher's folder or a detector's run.
    sizes: of the ResUNet, or the paper's UNet. start: initial weights: a shipped model's name, a model's folder or
    another run; None: random.
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


def write(run: Path, setup: dict[str, Any], fabric: Fabric) -> None:
    """Write the setup; a resumed run must have the same, unless it ended before its first checkpoint: there is nothing
    to resume then. Raises ValueError."""
    path = run / SETUP
    if _has_begun(run):
        # Runs of earlier releases do not tell their course: they go on with the one given.
        before = {name: setup[name] for name in COURSE} | read_setup(run)
        if before["kind"] != setup["kind"]:
            raise ValueError(f"{run} holds another run, of a {before['kind']}: give --run a new folder")
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


def _has_begun(run: Path) -> bool:
    """Return whether a run has a checkpoint to go on from; one that was refused or stopped at its start has only a
    setup."""
    return (run / SETUP).exists() and (run / CHECKPOINT).exists()


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


def course(schedule: Schedule, machine: Machine) -> dict[str, Any]:
    """Return what else decides how a run goes; its length does not, so that a run can be made longer."""
    values = (schedule.seed, schedule.learning_rate, machine.precision, schedule.optimizer)
    return dict(zip(COURSE, values, strict=True))


def plain(setup: DetectorSetup | SeparatorSetup) -> dict[str, Any]:
    """Return the setup as `run.json` has it, where the query encoder is called `ear`."""
    fields = {"ear" if name == "query_encoder" else name: value for name, value in asdict(setup).items()}
    return json.loads(json.dumps(fields, default=str))
