from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from models import labels
from models.detection import Timeline, framewise, row_seconds, smooth, spans, timeline
from models.errors import Cancelled
from models.networks import Detector, DetectorOutput

RATE = 1000
FRAME = 100  # samples a row


class LevelDetector(nn.Module):
    """Hears speech as loud as a row is, and, like a real network, knows little about rows at a window's edges."""

    rate = RATE
    embedding_size = 1
    window_samples = 20 * FRAME
    frame_seconds = FRAME / RATE
    rows_held = 1
    reach_rows: int | None = None

    def forward(self, waveforms: Tensor) -> DetectorOutput:
        rows = waveforms.abs().unflatten(1, (-1, FRAME)).mean(dim=2)
        rows[:, :2] *= 0.5
        rows[:, -2:] *= 0.5
        curve = torch.zeros(*rows.shape, labels.CLASSES)
        curve[..., 0] = rows
        return DetectorOutput(curve.amax(1), curve, rows.mean(1, keepdim=True))


def infer(windows: Tensor) -> Tensor:
    return LevelDetector()(windows).framewise


def curve_of(recording: Tensor, blocks: int) -> Tensor:
    detector = cast(Detector, LevelDetector())
    curve, samples = framewise(detector, recording.split(blocks), infer)
    assert samples == len(recording)
    return curve


class HoldingDetector(LevelDetector):
    """Says each of its rows five times, as the paper's detector says its own 32 times."""

    frame_seconds = FRAME / RATE / 5
    rows_held = 5

    def forward(self, waveforms: Tensor) -> DetectorOutput:
        heard = super().forward(waveforms)
        return heard._replace(framewise=heard.framewise.repeat_interleave(5, dim=1))


def test_rows_that_only_repeat_are_kept_once():
    recording = torch.rand(7777)
    holding = cast(Detector, HoldingDetector())
    curve, _ = framewise(holding, recording.split(1000), lambda windows: holding(windows).framewise)
    assert torch.equal(curve, curve_of(recording, 1000))
    assert row_seconds(holding) == pytest.approx(FRAME / RATE)


class NearDetector(LevelDetector):
    """Takes clips of any length: its rows depend on their neighbours alone."""

    reach_rows = 2


@settings(max_examples=50, deadline=None)
@given(frames=st.integers(1, 12000), blocks=st.integers(1, 5000), kind=st.sampled_from([LevelDetector, NearDetector]))
def test_every_row_is_computed_once_and_away_from_the_edges_of_windows(frames, blocks, kind):
    level = torch.rand(120, generator=torch.Generator().manual_seed(frames)).repeat_interleave(FRAME)[:frames]
    curve = framewise(cast(Detector, kind()), level.split(blocks), infer)[0][:, 0]
    rows = -(-frames // FRAME)
    assert curve.shape == (rows,)
    expected = torch.nn.functional.pad(level, (0, rows * FRAME - frames)).unflatten(0, (-1, FRAME)).mean(dim=1)
    # Only the recording's own two ends may be at an edge of a window.
    assert torch.allclose(curve[2:-2], expected[2:-2])


def test_nothing_is_lost_at_seams_between_windows():
    recording = torch.zeros(100 * FRAME)
    clicks = list(range(3, 97, 4))
    for row in clicks:
        recording[row * FRAME : (row + 1) * FRAME] = 0.9
    found = timeline(curve_of(recording, 777), FRAME / RATE, 10.0, threshold=0.8).events
    # The median filter is five rows wide, so clicks of one row vanish: look at the curve itself.
    assert found == []
    assert spans(curve_of(recording, 777)[:, 0].numpy(), 0.8, 0.4) == [(row, row + 1) for row in clicks]


def test_an_event_has_its_class_time_and_confidence():
    curve = torch.zeros(100, labels.CLASSES)
    siren = labels.find("Siren").index
    curve[20:40, siren] = 0.3
    curve[25:35, siren] = 0.9
    curve[60:80, siren] = 0.3
    found = timeline(curve, 0.1, 9.95, top=3, threshold=0.5)
    assert [(event.label, event.mid) for event in found.events] == [("Siren", "/m/03kmc9")]
    assert found.events[0].start == pytest.approx(2.0)
    assert found.events[0].end == pytest.approx(4.0)
    assert found.events[0].confidence == pytest.approx(0.9)
    assert len(found.tags) == 3
    assert (found.tags[0].label, round(found.tags[0].probability, 4)) == ("Siren", 0.9)


def test_the_times_of_events_have_few_digits():
    """3 x 4.8 is 14.399999999999999 in binary, which no one wants to read in JSON."""
    curve = torch.zeros(40, labels.CLASSES)
    curve[30:34, 0] = 0.9
    (event,) = timeline(curve, 0.48, 20.0).events
    assert (event.start, event.end) == (14.4, 16.32)


def test_an_event_ends_with_the_recording():
    curve = torch.full((10, labels.CLASSES), 0.9)
    assert {event.end for event in timeline(curve, 1.0, 9.3).events} == {9.3}


def test_flicker_is_smoothed_away_and_a_gap_is_closed():
    curve = np.zeros(200)
    curve[50] = 1.0
    curve[100:160] = 0.9
    curve[130:132] = 0.0
    assert spans(smooth(curve, 0.02), 0.5, 0.25) == [(100, 160)]


@given(
    curve=arrays(np.float32, st.integers(1, 60), elements=st.floats(0, 1, width=32)),
    threshold=st.floats(0.01, 1),
    release=st.floats(0.1, 1),
)
def test_hysteresis(curve, threshold, release):
    low = release * threshold
    found = spans(curve, threshold, low)
    inside = np.zeros(len(curve), bool)
    for first, end in found:
        assert not inside[first:end].any()
        inside[first:end] = True
        assert curve[first:end].max() >= threshold
        assert (curve[first:end] >= low).all()
        assert first == 0 or curve[first - 1] < low
        assert end == len(curve) or curve[end] < low
    assert found == sorted(found)
    assert not (curve[~inside] >= threshold).any(), "what reaches the threshold is always part of an event"


@given(curve=arrays(np.float32, st.integers(1, 60), elements=st.floats(0, 1, width=32)))
def test_a_higher_threshold_never_finds_more(curve):
    low, high = spans(curve, 0.3, 0.15), spans(curve, 0.6, 0.15)
    assert set(high) <= set(low)


def test_detection_stops_when_cancelled():
    answers = iter([False, False, True])
    with pytest.raises(Cancelled):
        framewise(cast(Detector, LevelDetector()), torch.zeros(5000).split(100), infer, lambda: next(answers))


def test_an_empty_recording_has_one_row():
    assert Timeline(cast(Detector, LevelDetector()), infer).finish().shape == (1, labels.CLASSES)
