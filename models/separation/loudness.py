"""Integrated loudness after ITU-R BS.1770-5, measured block by block.

The standard gives the filters for 48 kHz; for other rates they are derived from the same analogue prototypes, as in
De Man, "Evaluation of Implementations of the EBU R128 Loudness Measurement", AES 2018.
"""

import math
from functools import cache

import numpy as np

_STEP_SECONDS = 0.1  # blocks of 400 ms, each 100 ms after the last
_STEPS_A_BLOCK = 4
_ABSOLUTE_GATE = -70.0  # LUFS
_RELATIVE_GATE = -10.0  # LU below the mean of what passes the absolute gate
_CHUNK = 32  # samples that are filtered by one matrix product
_OFFSET = -0.691  # dB, so that a 997 Hz tone of -20 dBFS measures -23 LUFS - 0.01


def _shelf(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pre-filter's coefficients, a shelf of about +4 dB above 2 kHz for the acoustic effect of the head."""
    frequency, gain, quality = 1681.974450955533, 3.999843853973347, 0.7071752369554196
    k = math.tan(math.pi * frequency / rate)
    high = 10 ** (gain / 20)
    band = high**0.4996667741545416
    a0 = 1 + k / quality + k * k
    return (
        np.array([high + band * k / quality + k * k, 2 * (k * k - high), high - band * k / quality + k * k]) / a0,
        np.array([1, 2 * (k * k - 1) / a0, (1 - k / quality + k * k) / a0]),
    )


def _high_pass(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the RLB filter's coefficients, a high-pass at about 60 Hz."""
    frequency, quality = 38.13547087602444, 0.5003270373238773
    k = math.tan(math.pi * frequency / rate)
    a0 = 1 + k / quality + k * k
    return np.array([1.0, -2.0, 1.0]), np.array([1, 2 * (k * k - 1) / a0, (1 - k / quality + k * k) / a0])


def _weights(channels: int) -> np.ndarray:
    """Return the channels' weights: 1.41 for surround channels, 0 for the low-frequency one, 1 beyond 5.1."""
    if channels == 5:
        return np.array([1, 1, 1, 1.41, 1.41])
    if channels == 6:
        return np.array([1, 1, 1, 0, 1.41, 1.41])
    return np.ones(channels)


class _Filter:
    """Both filters in a row, applied to streams (C, n) in chunks: an IIR filter is linear in a chunk's samples and in
    the state before it, so that matrix products do what a loop over samples would. (scipy has such a loop, but takes as
    long to import as a minute of stereo to measure.)

    Of one chunk, y = x @ outputs + state @ responses, and the next state is x @ drives + state @ decay. States are
    float64, since errors would add up in them.
    """

    def __init__(self, rate: int, channels: int) -> None:
        outputs, responses, self._drives, self._decay = _matrices(rate)
        self._outputs = np.concatenate([outputs, responses]).astype(np.float32)
        self._state = np.zeros((channels, len(self._decay)))
        self._waiting = np.zeros((channels, 0), np.float32)

    def feed(self, block: np.ndarray) -> np.ndarray:
        """Take (C, n) float32 and return what is ready, whole chunks."""
        held = np.concatenate([self._waiting, block], axis=1, dtype=np.float32)
        count = held.shape[1] // _CHUNK
        chunks = held[:, : count * _CHUNK].reshape(len(held), count, _CHUNK)
        self._waiting = held[:, count * _CHUNK :]
        # The states after each chunk are sums over those before it, here by doubling.
        states = np.concatenate([self._state[:, None], chunks.astype(np.float64) @ self._drives], axis=1)
        decay, distance = self._decay, 1
        while distance <= count:
            states[:, distance:] += states[:, :-distance] @ decay
            decay, distance = decay @ decay, 2 * distance
        self._state = states[:, -1]
        inputs = np.concatenate([chunks, states[:, :-1].astype(np.float32)], axis=2)
        return (inputs @ self._outputs).reshape(len(held), -1)

    def rest(self) -> np.ndarray:
        """Return what `feed` has not returned yet, at the end."""
        left = self._waiting.shape[1]
        return self.feed(np.zeros((len(self._waiting), _CHUNK - left), np.float32))[:, :left]


@cache
def _matrices(rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return outputs (chunk, chunk), responses (state, chunk), drives (chunk, state) and decay (state, state)."""
    sections = [_shelf(rate), _high_pass(rate)]
    size = 2 * len(sections)
    # The rows: an impulse at each sample of a chunk, then a one in each number of the state before it.
    inputs = np.concatenate([np.eye(_CHUNK), np.zeros((size, _CHUNK))])
    states = np.concatenate([np.zeros((_CHUNK, size)), np.eye(size)])
    answers = np.empty_like(inputs)
    for time in range(_CHUNK):
        sample = inputs[:, time]
        for number, (b, a) in enumerate(sections):
            state = states[:, 2 * number : 2 * number + 2]
            filtered = b[0] * sample + state[:, 0]
            state[:, 0] = b[1] * sample - a[1] * filtered + state[:, 1]
            state[:, 1] = b[2] * sample - a[2] * filtered
            sample = filtered
        answers[:, time] = sample
    return answers[:_CHUNK], answers[_CHUNK:], states[:_CHUNK], states[_CHUNK:]


class LoudnessMeter:
    """Meter of integrated loudness: add blocks (C, n) with `add`, then call `loudness`."""

    def __init__(self, rate: int, channels: int) -> None:
        self._filter = _Filter(rate, channels)
        self._weights = _weights(channels)
        self._step = round(_STEP_SECONDS * rate)
        self._left = np.zeros((channels, 0), np.float32)
        self._energies: list[float] = []  # weighted energy of each whole step

    def add(self, block: np.ndarray) -> None:
        self._measure(self._filter.feed(block))

    def _measure(self, filtered: np.ndarray) -> None:
        held = np.concatenate([self._left, filtered], axis=1)
        steps = held.shape[1] // self._step
        whole = held[:, : steps * self._step].reshape(len(held), steps, 1, self._step)
        energies = np.matmul(whole, whole.transpose(0, 1, 3, 2))[:, :, 0, 0]
        self._energies += (self._weights @ energies).tolist()
        self._left = held[:, steps * self._step :]

    def loudness(self) -> float | None:
        """Return the loudness in LUFS, None if nothing exceeds -70 LUFS. Less than 400 ms counts as one block. Nothing
        may be added afterwards."""
        self._measure(self._filter.rest())
        steps = np.array(self._energies)
        if len(steps) < _STEPS_A_BLOCK:
            samples = len(steps) * self._step + self._left.shape[1]
            rest = float(self._weights @ np.square(self._left).sum(axis=1))
            powers = np.array([(steps.sum() + rest) / max(samples, 1)])
        else:
            powers = np.convolve(steps, np.ones(_STEPS_A_BLOCK), "valid") / (_STEPS_A_BLOCK * self._step)
        powers = powers[powers > _power(_ABSOLUTE_GATE)]
        if len(powers) == 0:
            return None
        powers = powers[powers > powers.mean() * 10 ** (_RELATIVE_GATE / 10)]
        return float(_OFFSET + 10 * math.log10(powers.mean()))


def _power(loudness: float) -> float:
    return 10 ** ((loudness - _OFFSET) / 10)
