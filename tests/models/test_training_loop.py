"""The training loop: it learns, resumes exactly, shares work among processes, and skips non-finite steps."""

import csv
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric import Fabric

from models.runs.run_folder import CHECKPOINT, LOG, load_average
from models.training.detector import DetectorLearner
from models.training.loop import Learner, Loop, Schedule
from models.training.mixing import Batch
from models.training.progress import training_bar
from models.training.separator import separation_loss
from models.validation.metrics import si_sdr
from tests.conftest import REPOSITORY
from tests.models.gradients import gradients
from tests.models.small_detector import DETECTOR
from tests.models.small_separator import mixer, separator

STEPS = 100  # until one batch is overfitted: the loss is at -20 after 40, and at -26 after 60
SHORT = Schedule(steps=6, warmup_steps=2, checkpoint_minutes=0.0, validate_minutes=1e9, ema=0.9)

pytestmark = pytest.mark.usefixtures("one_thread")


def fabric() -> Fabric:
    made = Fabric(accelerator="cpu", devices=1, precision="32-true")
    made.launch()
    return made


def detector() -> DetectorLearner:
    torch.manual_seed(0)
    return DetectorLearner(DETECTOR)


@dataclass
class Numbers:
    values: torch.Tensor
    seconds: float = 1.0


class Line(Learner):
    """y = 2 x, with dropout, so that a step depends on torch's generator too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 3))

    def sound(self, batch: Numbers) -> bool:
        return bool(batch.values.isfinite().all())

    def forward(self, batch: Numbers) -> torch.Tensor:
        return (self.network(batch.values) - 2 * batch.values).square().mean()


def numbers(step: int, part: int = 0, parts: int = 1) -> Numbers:
    return Numbers(torch.randn(4, 3, generator=torch.Generator().manual_seed(step)))


@pytest.mark.parametrize(("kind", "optimizer"), [("separator", "adamw"), ("separator", "muon"), ("detector", "adamw")])
def test_an_interrupted_run_ends_in_the_same_weights(kind: str, optimizer: str, tmp_path: Path) -> None:
    learner = separator if kind == "separator" else detector
    short = replace(SHORT, optimizer=optimizer)
    drawn = mixer(queries=2 if kind == "separator" else 0, absent=0.1)
    whole = Loop(fabric(), learner(), tmp_path / "whole", short)
    whole.run(drawn.batch)

    class Interrupted(Exception):
        pass

    def stop(loop: Loop) -> None:
        if loop.state.step == 4:  # one step after a checkpoint: that step is done again
            raise Interrupted

    first = Loop(fabric(), learner(), tmp_path / "parts", short)
    with pytest.raises(Interrupted):
        first.run(drawn.batch, advance=stop)
    second = Loop(fabric(), learner(), tmp_path / "parts", short)
    assert 0 < second.state.step < 6
    second.run(drawn.batch)
    assert second.state.step == 6
    for one, other in ((whole.network, second.network), (whole.average, second.average)):
        states = one.state_dict(), other.state_dict()
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_one_batch_is_overfitted() -> None:
    """More than 20 dB, so that gradients reach all layers."""
    torch.manual_seed(0)
    plain = {"third_source": 0.0, "single_source": 0.0, "absent": 0.0, "layered": 0.0, "filtered": 0.0, "room": 0.0}
    batch = mixer(mixtures=2, seconds=0.5, **plain).batch(0)
    learner = separator().train()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=STEPS)
    loss = torch.zeros(())
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = learner(batch)
        loss.backward()
        optimizer.step()
        decay.step()
    assert loss.item() < -20
    with torch.no_grad():
        network = learner.network
        magnitude = batch.mixture.abs().repeat_interleave(2, 0)
        mask = network.mask(magnitude, network.condition(batch.queries))
        estimates = network.waveform(mask * batch.mixture.repeat_interleave(2, 0), 16_000)
        ratios = si_sdr(estimates, network.waveform(batch.targets, 16_000))
    assert ratios.mean() > 20, ratios


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("gradients.py")), str(tmp_path / "two.pt")]
    subprocess.run(command, check=True, cwd=REPOSITORY, capture_output=True, timeout=120)
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    one = gradients(fabric())
    assert one.keys() == two.keys() and len(one) > 20
    for name, gradient in one.items():
        assert gradient is not None
        scale = gradient.abs().max().item() + 1e-8
        assert torch.allclose(two[name], gradient, atol=1e-4 * scale), name


def test_what_is_no_number_is_skipped_and_counted(tmp_path: Path) -> None:
    def some_bad(step: int, part: int, parts: int) -> Numbers:
        batch = numbers(step)
        if step == 2:
            batch.values[0, 0] = math.nan
        if step == 4:
            batch.values[:] = 1e30  # a number, whose square is none
        return batch

    loop = Loop(fabric(), Line(), tmp_path, replace(SHORT, steps=8))
    loop.run(some_bad)
    assert loop.state.skipped == 2 and loop.state.step == 8
    assert all(value.isfinite().all() for value in loop.network.state_dict().values())
    assert math.isfinite(loop.state.rows[-1]["loss"])


def test_a_batch_that_is_no_number_leaves_no_trace_in_batch_norms(tmp_path: Path) -> None:
    drawn = mixer()

    def bad(step: int, part: int, parts: int) -> Batch:
        batch = drawn.batch(step)
        if step == 1:
            batch.mixture[0, 0, 0] = math.inf
        return batch

    loop = Loop(fabric(), separator(), tmp_path, replace(SHORT, steps=2))
    loop.run(bad)
    assert loop.state.skipped == 1
    assert all(value.isfinite().all() for value in loop.network.state_dict().values())


def test_the_log_tells_pace_and_waiting(tmp_path: Path) -> None:
    loop = Loop(fabric(), Line(), tmp_path, replace(SHORT, validate_minutes=0.0))
    reported: list[dict] = []
    loop.run(numbers, lambda network: {"answer": 42.0}, reported.append)
    with (tmp_path / LOG).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(reported) == 6
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(float(row["answer"]) == 42 and 0 <= float(row["waited"]) <= 1 for row in rows)
    assert float(rows[-1]["audio_hours"]) == pytest.approx(6 / 3600, abs=1e-3)
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_a_run_without_a_terminal_tells_its_loss_in_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = Loop(fabric(), Line(), tmp_path, SHORT)
    with training_bar("line", line_seconds=0.0) as (report, advance):
        loop.run(numbers, report=report, advance=advance)
    lines = [line for line in capsys.readouterr().err.splitlines() if "s of audio a second" in line]
    for step, line in enumerate(lines[:6], 1):
        assert line.startswith(f"line {step / 6:.0%}, step {step}, loss ")
    assert f"loss {loop.recent_loss:.3f}," in lines[5] and math.isfinite(loop.recent_loss)


def test_a_run_by_the_clock_ends_and_goes_on_until_its_time_is_over(tmp_path: Path) -> None:
    """Whatever a step takes, it counts as 20 minutes more."""

    def add_time(loop: Loop) -> None:
        loop.state.seconds += 20 * 60

    schedule = Schedule(minutes=60, warmup_steps=2, ema=0.9)
    first = Loop(fabric(), Line(), tmp_path, schedule)
    first.run(numbers, advance=add_time)
    assert first.state.step == 3
    assert first.state.seconds > 60 * 60, "the time of the steps counts too"
    again = Loop(fabric(), Line(), tmp_path, schedule)
    again.run(numbers, advance=add_time)
    assert again.state.step == 3, "its time is over"
    longer = Loop(fabric(), Line(), tmp_path, replace(schedule, minutes=120))
    longer.run(numbers, advance=add_time)
    assert longer.state.step == 6


def test_the_averaged_weights_can_be_taken_from_a_run(tmp_path: Path) -> None:
    loop = Loop(fabric(), Line(), tmp_path, SHORT)
    loop.run(numbers)
    empty = Line().network
    state = load_average(tmp_path, empty)
    assert state["step"] == 6 and (tmp_path / CHECKPOINT).exists()
    assert all(torch.equal(value, empty.state_dict()[name]) for name, value in loop.average.state_dict().items())
    with pytest.raises(FileNotFoundError, match="holds no training"):
        load_average(tmp_path / "nowhere", empty)


@given(
    steps=st.integers(2, 10_000),
    warmup=st.integers(1, 500),
    decay=st.floats(0, 0.9),
    share=st.floats(0, 1),
)
def test_the_rate_rises_then_falls_to_nothing(steps: int, warmup: int, decay: float, share: float) -> None:
    schedule = Schedule(steps=steps, warmup_steps=warmup, decay_from=decay, learning_rate=1.0)
    step = int(share * steps)
    rate = schedule.rate(step, schedule.progress(step, 0.0))
    assert 0 <= rate <= 1
    assert schedule.rate(steps, 1.0) == 0
    assert schedule.rate(0, 0.0) == pytest.approx(1 / warmup) or warmup == 1


def test_the_loss_is_a_soft_snr_and_rewards_silence_where_nothing_is_there() -> None:
    target = torch.randn(1, 10, 20, dtype=torch.complex64)
    mixture = 2 * target  # so that a mask of a half is right
    silence = torch.zeros_like(target)
    for level, wanted, there in [(0.5, -30, True), (0.0, 0, True), (1.0, 0, True), (0.0, -20, False), (1.0, 0, False)]:
        mask = torch.full((1, 10, 20), level)
        loss = separation_loss(mask, target if there else silence, mixture).item()
        assert loss == pytest.approx(wanted, abs=0.1), (level, there)


@given(seed=st.integers(0, 2**31))
def test_the_loss_is_that_of_the_complex_spectra(seed: int) -> None:
    torch.manual_seed(seed)
    target, other = torch.randn(2, 3, 10, 20, dtype=torch.complex64)
    mask = torch.rand(3, 10, 20)
    error = (mask * (target + other) - target).abs().square().sum((1, 2))
    energy = target.abs().square().sum((1, 2))
    plainly = (10 * torch.log10((error + 1e-3 * energy) / energy)).mean()
    assert torch.allclose(separation_loss(mask, target, target + other), plainly, atol=1e-4)
