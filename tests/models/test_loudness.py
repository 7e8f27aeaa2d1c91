import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.separation.loudness import LoudnessMeter


def measure(samples: np.ndarray, rate: int, block: int = 65536) -> float | None:
    meter = LoudnessMeter(rate, len(samples))
    for start in range(0, samples.shape[1], block):
        meter.add(samples[:, start : start + block])
    return meter.loudness()


def tone(rate: int, seconds: float, decibels: float, frequency: float = 997.0) -> np.ndarray:
    return 10 ** (decibels / 20) * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", [32000, 44100, 48000, 96000, 192000])
def test_a_full_scale_tone_in_one_channel_measures_3_01_lufs_below_zero(rate):
    # BS.1770: "a 0 dB FS, 997 Hz sine wave applied to the left ... input: the indicated loudness is -3.01 LKFS".
    assert measure(tone(rate, 3, 0)[None], rate) == pytest.approx(-3.01, abs=0.03)


def test_two_channels_are_three_decibels_louder_than_one():
    one = tone(48000, 3, -23)
    assert measure(np.stack([one, one]), 48000) == pytest.approx(-23.0, abs=0.05)


def test_gates_leave_out_silence_and_quiet_parts():
    # EBU Tech 3341, case 3: 10 s at -36, 60 s at -23 and 10 s at -36 dBFS measure -23 LUFS.
    stereo = np.concatenate([tone(48000, 10, -36), tone(48000, 60, -23), tone(48000, 10, -36)])
    assert measure(np.stack([stereo, stereo]), 48000) == pytest.approx(-23.0, abs=0.15)
    quiet = np.concatenate([tone(48000, 3, -20), np.zeros(48000 * 20)])
    assert measure(quiet[None], 48000) == pytest.approx(-23.0, abs=0.3)


@settings(max_examples=20, deadline=None)
@given(block=st.integers(1, 50000))
def test_blocks_do_not_matter(block):
    samples = np.random.default_rng(0).standard_normal((2, 50000)).astype(np.float32) * 0.1
    assert measure(samples, 44100, max(block, 500)) == pytest.approx(measure(samples, 44100), abs=1e-9)


def test_silence_has_no_loudness_and_a_click_has_one():
    assert measure(np.zeros((1, 48000)), 48000) is None
    assert measure(np.zeros((1, 0)), 48000) is None
    assert measure(tone(48000, 0.05, -10)[None], 48000) == pytest.approx(-13, abs=0.5)
