"""What synthetic sounds are made of. Sounds are (n,) float64 at RATE, of any level."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import signal

from models.corpus.clips import RATE

Random = np.random.Generator
Sound = np.ndarray

LOWEST_HZ = 20.0
HIGHEST_HZ = 0.47 * RATE
_SILENCE = 1e-3  # of a struck mode, where it ends


def samples(seconds: float) -> int:
    """Return the samples of a time, at least one."""
    return max(1, round(seconds * RATE))


def noise(frames: int, random: Random, slope: float = 0.0) -> Sound:
    """Return noise of root mean square 1 whose spectrum rises by `slope` dB an octave: 0 is white, -3 pink."""
    spectrum = np.fft.rfft(random.standard_normal(frames))
    hertz = np.fft.rfftfreq(frames, 1 / RATE)
    shaped = np.fft.irfft(spectrum * np.maximum(hertz, LOWEST_HZ) ** (slope / 6.02), frames)
    return shaped / (np.sqrt(np.square(shaped).mean()) + 1e-12)


def band(sound: Sound, low: float = 0.0, high: float = HIGHEST_HZ, order: int = 2) -> Sound:
    """Keep what is between two frequencies in Hz, with slopes of 6 dB an octave times `order`."""
    if low > 0:
        sound = _filter(sound, low, "highpass", order)
    if high < HIGHEST_HZ:
        sound = _filter(sound, high, "lowpass", order)
    return sound


def _filter(sound: Sound, hertz: float, kind: str, order: int) -> Sound:
    sections = np.asarray(signal.butter(order, hertz, kind, fs=RATE, output="sos"))
    return np.asarray(signal.sosfilt(sections, sound))


def resonate(sound: Sound, hertz: float, width: float) -> Sound:
    """Pass a sound through a resonance of a width in Hz, with gain 1 at its peak."""
    numerator, denominator = signal.iirpeak(min(hertz, HIGHEST_HZ), max(hertz / width, 0.3), fs=RATE)
    return np.asarray(signal.lfilter(numerator, denominator, sound))


def curve(frames: int, random: Random, per_second: float, low: float, high: float) -> Sound:
    """Return a smooth curve between two values, with so many random points a second."""
    count = max(4, int(frames / RATE * per_second) + 4)
    points = random.uniform(low, high, count)
    places = np.arange(frames) * (per_second / RATE) + random.uniform(0, 1)
    whole = np.minimum(places.astype(int), count - 2)
    smooth = 0.5 - 0.5 * np.cos(np.pi * np.minimum(places - whole, 1.0))
    return points[whole] * (1 - smooth) + points[whole + 1] * smooth


def breakpoints(frames: int, times: list[float], values: list[float]) -> Sound:
    """Return straight lines through points at rising times in seconds."""
    return np.interp(np.arange(frames) / RATE, times, values)


def envelope(frames: int, attack: float, release: float) -> Sound:
    """Return a gain that rises and falls within times in seconds."""
    times = np.arange(frames) / RATE
    return np.clip(np.minimum(times / attack, (frames / RATE - times) / release), 0, 1)


def tone(hertz: Sound, harmonics: np.ndarray) -> Sound:
    """Return a tone of a moving pitch (n,) with amplitudes of its harmonics (H,); those above half the rate are left
    out."""
    phase = 2 * np.pi * np.cumsum(hertz) / RATE
    sound = np.zeros(len(hertz))
    for number, amplitude in enumerate(harmonics, 1):
        audible = number * hertz < HIGHEST_HZ
        if amplitude and audible.any():
            sound += amplitude * audible * np.sin(number * phase)
    return sound


def sawtooth(count: int, slope: float = 1.0) -> np.ndarray:
    """Return amplitudes of `count` harmonics that fall as 1 / number ** slope."""
    return 1 / np.arange(1, count + 1) ** slope


def strike(hertz: np.ndarray, seconds: np.ndarray, gains: np.ndarray) -> Sound:
    """Return a struck body: modes (M,) in Hz that decay by 60 dB within `seconds` (M,)."""
    frames = samples(float(seconds.max()))
    times = np.arange(frames) / RATE
    sound = np.zeros(frames)
    for pitch, decay, gain in zip(hertz, seconds, gains, strict=True):
        if pitch < HIGHEST_HZ:
            sound += gain * np.exp(np.log(_SILENCE) * times / decay) * np.sin(2 * np.pi * pitch * times)
    return sound


def add(sound: Sound, grain: Sound, at: float, gain: float = 1.0) -> None:
    """Add a grain at a time in seconds, in place; what is outside is cut off."""
    first = round(at * RATE)
    begin, end = max(first, 0), min(first + len(grain), len(sound))
    if end > begin:
        sound[begin:end] += gain * grain[begin - first : end - first]


def scatter(
    frames: int,
    random: Random,
    rate: float,
    grains: list[Sound],
    gain: Callable[[], float],
    density: Sound | None = None,
) -> Sound:
    """Add grains, each drawn evenly, at random times: `rate` a second on average.

    density: (n,) between 0 and 1, how likely a grain is kept at its time.
    """
    sound = np.zeros(frames)
    for _ in range(random.poisson(rate * frames / RATE)):
        at = random.uniform(0, frames / RATE)
        if density is None or random.random() < density[min(int(at * RATE), frames - 1)]:
            add(sound, grains[int(random.integers(len(grains)))], at, gain())
    return sound


def power_law(random: Random, exponent: float = 1.5) -> float:
    """Draw a loudness in (0, 1]: few are loud, most are soft."""
    return float(random.uniform(0.03, 1.0) ** exponent)


def throat(source: Sound, formants: Sequence[tuple[float, float, float]]) -> Sound:
    """Pass a source through formants: (Hz, width in Hz, gain)."""
    return np.sum([gain * resonate(source, hertz, width) for hertz, width, gain in formants], axis=0)


def log_uniform(random: Random, low: float, high: float) -> float:
    """Draw a value whose logarithm is uniform."""
    return float(np.exp(random.uniform(np.log(low), np.log(high))))
