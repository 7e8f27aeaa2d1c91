"""The plain trainer of the default separator: AdamW, EMA, a schedule by time, bf16, checkpoints that resume."""

import csv
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.corpus.clips import Clips
from models.evaluation.mixtures import Mixture
from models.evaluation.separation import figures, queries_of, summary
from models.networks.resunet import ResUNet
from models.networks.yamnet import Yamnet
from models.training.losses import separation_loss
from models.training.mixing import Batch, Mixer, Recipe


@dataclass(frozen=True)
class Schedule:
    """minutes: the whole run; the rate is warmed up, held, then falls to zero from `decay_from` of the time on."""

    minutes: float = 30.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 300
    decay_from: float = 0.4
    gradient_norm: float = 1.0
    ema: float = 0.995
    checkpoint_minutes: float = 1.0
    validate_minutes: float = 5.0

    def rate(self, step: int, progress: float) -> float:
        """Learning rate at a step when `progress` (0 to 1) of the time is over."""
        falling = (1 - progress) / (1 - self.decay_from)
        return self.learning_rate * min(1.0, step / self.warmup_steps, max(0.0, falling))


@dataclass
class State:
    """What a checkpoint holds beside weights: steps and seconds so far, examples seen, losses that were no numbers."""

    step: int = 0
    seconds: float = 0.0
    segments: int = 0
    skipped: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains a ResUNet on mixtures; `folder` receives checkpoint, log and the averaged weights."""

    def __init__(self, ear: Yamnet, folder: Path, schedule: Schedule, sizes: dict[str, Any] | None = None) -> None:
        self.folder, self.schedule = folder, schedule
        self.sizes = sizes or {}
        torch.manual_seed(0)
        self.model = ResUNet(ear, **self.sizes)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  torch's stubs lack it
        self.average = deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay, betas=(0.9, 0.98)
        )
        self.state = State()
        folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self._resume()

    @property
    def checkpoint(self) -> Path:
        """Where training goes on from."""
        return self.folder / "checkpoint.pt"

    def run(
        self,
        clips: Clips,
        embeddings: np.ndarray,
        recipe: Recipe,
        validation: list[Mixture],
        report: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        """Train until the schedule's minutes are over, counting those before a resumption."""
        stft = (self.model.fft_size, self.model.hop, self.model.window_size)
        if self.state.step == 0:
            for network in (self.model, self.average):
                network.learn_queries(torch.from_numpy(embeddings[:, 0].astype(np.float32)))
        self._asked = [queries_of(self.model.ear, validation, kind) for kind in ("query", "absent")]
        mixer = Mixer(clips, embeddings, recipe, stft, seed=self.state.step)
        total = self.schedule.minutes * 60
        saved = validated = self.state.seconds
        losses: list[float] = []
        with ThreadPoolExecutor(1) as pool:  # mixes the next batch while this one is learned from
            following = pool.submit(mixer.batch)
            while self.state.seconds < total:
                began = time.monotonic()
                batch = following.result()
                following = pool.submit(mixer.batch)
                losses.append(self._step(batch))
                self.state.segments += len(batch.queries)
                self.state.seconds += time.monotonic() - began
                if self.state.seconds - saved >= self.schedule.checkpoint_minutes * 60:
                    saved = self.state.seconds
                    self.save()
                over = self.state.seconds >= total
                if over or self.state.seconds - validated >= self.schedule.validate_minutes * 60:
                    validated = self.state.seconds
                    row = self._row(losses, validation)
                    losses.clear()
                    report(row)
            following.cancel()
        self.save()

    def save(self) -> None:
        """Write the checkpoint in one step, and the averaged weights beside it."""
        whole = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": asdict(self.state),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(whole, partial)
        partial.replace(self.checkpoint)

    def _resume(self) -> None:
        whole = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(whole["model"])
        self.average.load_state_dict(whole["average"])
        self.optimizer.load_state_dict(whole["optimizer"])
        self.state = State(**whole["state"])

    def _step(self, batch: Batch) -> float:
        schedule, state = self.schedule, self.state
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.rate(state.step, state.seconds / (schedule.minutes * 60))
        state.step += 1
        self.model.train()
        repeats = len(batch.queries) // len(batch.mixture)
        magnitude = batch.mixture.abs()
        if not (torch.isfinite(magnitude).all() and torch.isfinite(batch.queries).all()):
            # Checked before the forward pass: a NaN would stay in the batch norms although the step is skipped.
            state.skipped += 1
            return math.nan
        with torch.autocast("cpu", torch.bfloat16):
            heard = self.model.listen(magnitude)
            log_bands, ear_map, embeddings = (part.repeat_interleave(repeats, 0) for part in heard)
            mask = self.model.predict(log_bands, ear_map, embeddings, self.model.condition(batch.queries))
            mask = mask[:, : magnitude.shape[1]]
        mixture = batch.mixture.repeat_interleave(repeats, 0)
        loss = separation_loss(mask.float(), batch.targets, mixture)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), schedule.gradient_norm)
        if not torch.isfinite(norm):
            state.skipped += 1
            return math.nan
        self.optimizer.step()
        self._follow()
        return loss.item()

    @torch.no_grad()
    def _follow(self) -> None:
        keep = min(self.schedule.ema, 1 - 1 / (self.state.step + 1))
        for average, current in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if average.dtype.is_floating_point:
                average.lerp_(current, 1 - keep)
            else:
                average.copy_(current)

    def _row(self, losses: list[float], validation: list[Mixture]) -> dict[str, Any]:
        query, absent = self._asked
        measured = summary(figures(self.average, validation, query, absent))
        row = {
            "minutes": round(self.state.seconds / 60, 2),
            "step": self.state.step,
            "segments": self.state.segments,
            "skipped": self.state.skipped,
            "loss": round(float(np.nanmean(losses)), 3) if losses else math.nan,
            **{name: round(value, 3) for name, value in measured.items()},
        }
        self.state.rows.append(row)
        with (self.folder / "log.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(self.state.rows)
        (self.folder / "sizes.json").write_text(json.dumps(self.sizes))
        return row
