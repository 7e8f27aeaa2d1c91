"""The training loop of all networks: AdamW or Muon, averaged weights, a schedule by time or by steps, bfloat16, several
processes, and checkpoints from which a run resumes exactly.

Lightning Fabric provides devices, precision and processes. A step depends on its number alone, which seeds the batches
and torch's generator, so that an interrupted run ends with the same weights as an uninterrupted one if its length is
given in steps. (With a length in minutes the learning rate depends on the clock; on a GPU the order of some sums is
undefined.)
"""

import csv
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from models.runs.run_folder import CHECKPOINT, LOG
from models.training.muon import Muon

OPTIMIZERS = {"adamw": torch.optim.AdamW, "muon": Muon}


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a run.

    steps: length of the run, or None for `minutes` of training (without pauses). The learning rate is warmed up, then
    constant, then decays to zero from the share `decay_from` of the run. ema: decay of the averaged weights. optimizer:
    one of OPTIMIZERS.
    """

    minutes: float = 60.0
    steps: int | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    amsgrad: bool = False
    warmup_steps: int = 300
    decay_from: float = 0.4
    gradient_norm: float = 1.0
    ema: float = 0.995
    checkpoint_minutes: float = 1.0
    validate_minutes: float = 5.0
    seed: int = 0
    optimizer: str = "adamw"

    def progress(self, step: int, seconds: float) -> float:
        """Return the share of the run that is done, 0 to 1."""
        return min(1.0, step / self.steps if self.steps is not None else seconds / (self.minutes * 60))

    def rate(self, step: int, progress: float) -> float:
        """Return the learning rate of a step."""
        falling = (1 - progress) / (1 - self.decay_from)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup_steps, max(0.0, falling))


@dataclass
class State:
    """The loop's state in a checkpoint. seconds: of training; waited: of these, for batches; audio: seconds of sound
    trained on; skipped: steps whose loss or gradient was not finite."""

    step: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    audio: float = 0.0
    skipped: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


class Batch(Protocol):
    """A batch for a learner, of any tensors."""

    @property
    def seconds(self) -> float:
        """Seconds of audio."""
        ...


class Learner(nn.Module):
    """A network with its loss: `forward(batch)` returns the mean over equal rows."""

    network: nn.Module

    @abstractmethod
    def forward(self, batch: Any) -> Tensor: ...

    @abstractmethod
    def sound(self, batch: Any) -> bool:
        """Return whether a batch is finite. Checked before the forward pass, since a NaN would stay in the batch norms'
        statistics although the step is skipped."""


Draw = Callable[[int, int, int], Batch]  # step, part, parts -> batch
Validate = Callable[[nn.Module], dict[str, float]]
Report = Callable[[dict[str, Any]], None]  # takes a row of the log
Advance = Callable[["Loop"], None]  # called after every step


class Loop:
    """Trains a learner's network and writes checkpoint, logs and TensorBoard's events to `folder`."""

    def __init__(self, fabric: Fabric, learner: Learner, folder: Path, schedule: Schedule) -> None:
        self.fabric, self.folder, self.schedule = fabric, folder, schedule
        self.state = State()
        self.recent_loss = math.nan  # mean over some tens of steps of this call, for people who watch
        folder.mkdir(parents=True, exist_ok=True)
        optimizer = OPTIMIZERS[schedule.optimizer](
            [weight for weight in learner.parameters() if weight.requires_grad],
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            betas=schedule.betas,
            amsgrad=schedule.amsgrad,
        )
        self.learner = learner
        self.wrapped, self.optimizer = fabric.setup(learner, optimizer)
        self.average = deepcopy(learner.network).eval().requires_grad_(False)
        self._resume()

    @property
    def network(self) -> nn.Module:
        """The network after the last step; `average` is the one to use."""
        return self.learner.network

    @property
    def finished(self) -> bool:
        """Whether the run has reached the end of its schedule."""
        return self.schedule.progress(self.state.step, self.state.seconds) >= 1

    def run(
        self,
        draw: Draw,
        validate: Validate = lambda network: {},
        report: Report = lambda row: None,
        advance: Advance = lambda loop: None,
    ) -> None:
        """Train to the end of the schedule. `report` is called with a row after validations, `advance` after steps."""
        schedule, state, fabric = self.schedule, self.state, self.fabric
        saved = validated = state.seconds
        losses: list[float] = []
        with self._ahead(draw) as batches:
            while not self.finished:
                began = time.monotonic()
                batch = next(batches)
                state.waited += time.monotonic() - began
                losses.append(self._step(batch))
                self._watch(losses[-1])
                state.audio += batch.seconds * fabric.world_size
                # Of the slowest process, so that all of them agree on the end of the run.
                state.seconds += self._slowest(time.monotonic() - began)
                if fabric.is_global_zero:
                    advance(self)
                if self.finished or state.seconds - validated >= schedule.validate_minutes * 60:
                    validated = state.seconds
                    row = self._row(losses, validate)
                    losses.clear()
                    if fabric.is_global_zero:
                        report(row)
                if self.finished or state.seconds - saved >= schedule.checkpoint_minutes * 60:
                    saved = state.seconds
                    self.save()

    def save(self) -> None:
        """Write the checkpoint atomically."""
        if not self.fabric.is_global_zero:
            return
        whole = {
            "learner": self.learner.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": asdict(self.state),
        }
        partial = self.folder / (CHECKPOINT + ".partial")
        torch.save(whole, partial)
        partial.replace(self.folder / CHECKPOINT)

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        whole = torch.load(path, weights_only=True, map_location="cpu")  # each object moves its state to its own device
        self.learner.load_state_dict(whole["learner"])
        self.average.load_state_dict(whole["average"])
        self.optimizer.load_state_dict(whole["optimizer"])
        self.state = State(**whole["state"])

    def _step(self, batch: Batch) -> float:
        schedule, state = self.schedule, self.state
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.rate(state.step, schedule.progress(state.step, state.seconds))
        torch.manual_seed(hash((schedule.seed, state.step, self.fabric.global_rank)))
        state.step += 1
        self.wrapped.train()
        if not self._everywhere(self.learner.sound(batch)):
            state.skipped += 1
            return math.nan
        loss = self.wrapped(self.fabric.to_device(batch))
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self.wrapped, self.optimizer, max_norm=schedule.gradient_norm, error_if_nonfinite=False
        )
        if norm is None or not torch.isfinite(norm):
            state.skipped += 1
            return math.nan
        self.optimizer.step()
        self._follow()
        return loss.item()

    def _watch(self, loss: float) -> None:
        if math.isfinite(loss):
            before = self.recent_loss if math.isfinite(self.recent_loss) else loss
            self.recent_loss = before + (loss - before) / 20

    @torch.no_grad()
    def _follow(self) -> None:
        keep = min(self.schedule.ema, 1 - 1 / (self.state.step + 1))
        averages, currents = self.average.state_dict().values(), self.network.state_dict().values()
        for average, current in zip(averages, currents, strict=True):
            if average.dtype.is_floating_point:
                average.lerp_(current, 1 - keep)
            else:
                average.copy_(current)

    @contextmanager
    def _ahead(self, draw: Draw) -> Iterator[Iterator[Batch]]:
        """Yield an iterator of batches from the current step on, each drawn while the previous one is trained on."""
        rank, size = self.fabric.global_rank, self.fabric.world_size
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(draw, self.state.step, rank, size)

            def batches() -> Iterator[Batch]:
                nonlocal following
                while True:
                    batch = following.result()
                    following = pool.submit(draw, self.state.step + 1, rank, size)
                    yield batch

            try:
                yield batches()
            finally:
                following.cancel()

    def _everywhere(self, sound: bool) -> bool:
        if self.fabric.world_size == 1:
            return sound
        return bool(self.fabric.all_reduce(torch.tensor(float(sound)), reduce_op="sum") == self.fabric.world_size)

    def _slowest(self, seconds: float) -> float:
        if self.fabric.world_size == 1:
            return seconds
        every = self.fabric.all_gather(torch.tensor(seconds, device=self.fabric.device))
        return float(every.max())  # pyright: ignore[reportAttributeAccessIssue]  a tensor goes in, a tensor comes out

    def _row(self, losses: list[float], validate: Validate) -> dict[str, Any]:
        state = self.state
        row: dict[str, Any] = {
            "minutes": round(state.seconds / 60, 2),
            "step": state.step,
            "audio_hours": round(state.audio / 3600, 3),
            "audio_per_second": round(state.audio / max(state.seconds, 1e-9), 1),
            "waited": round(state.waited / max(state.seconds, 1e-9), 4),
            "skipped": state.skipped,
            "loss": round(_mean(losses), 4),
        }
        row |= {name: round(value, 4) for name, value in validate(self.average).items()}
        state.rows.append(row)
        if self.fabric.is_global_zero:
            with (self.folder / LOG).open("w", newline="") as file:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
                writer.writerows(state.rows)
            with SummaryWriter(str(self.folder / "tensorboard"), purge_step=state.step) as board:
                for name, value in row.items():
                    board.add_scalar(name, value, state.step)
        return row


def _mean(losses: list[float]) -> float:
    finite = [loss for loss in losses if math.isfinite(loss)]
    return sum(finite) / len(finite) if finite else math.nan
