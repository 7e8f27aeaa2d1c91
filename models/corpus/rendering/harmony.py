"""Keys, scales, chord progressions and chords, in semitones."""

from dataclasses import dataclass

import numpy as np

SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
# Degrees of the scale, from 0, a bar each.
PROGRESSIONS = {
    "major": (
        *((0, 4, 5, 3), (0, 5, 3, 4), (5, 3, 0, 4), (0, 3, 4, 3), (0, 3, 0, 4), (1, 4, 0, 0), (0, 0, 3, 4)),
        *((0, 2, 3, 4), (0, 4, 1, 3), (3, 4, 2, 5), (0, 5, 1, 4), (0, 0, 0, 0, 3, 3, 0, 0, 4, 3, 0, 4)),
    ),
    "minor": (
        *((0, 5, 2, 6), (0, 3, 4, 0), (0, 6, 5, 4), (0, 5, 3, 4), (0, 0, 5, 6), (0, 3, 6, 2), (0, 6, 0, 6)),
        *((5, 6, 0, 0), (0, 2, 6, 3), (0, 4, 5, 3), (0, 0, 0, 0, 3, 3, 0, 0, 4, 3, 0, 4)),
    ),
}


@dataclass(frozen=True)
class Harmony:
    """The key's tonic (a pitch class), the scale, and the degree of the scale on which each bar's chord stands."""

    tonic: int
    scale: tuple[int, ...]
    degrees: tuple[int, ...]
    sevenths: bool

    @staticmethod
    def draw(bars: int, random: np.random.Generator) -> "Harmony":
        """Draw a key and a progression that repeats."""
        mode = "major" if random.random() < 0.55 else "minor"
        known = PROGRESSIONS[mode]
        loop = known[int(random.integers(len(known)))]
        degrees = tuple(loop[bar % len(loop)] for bar in range(bars))
        return Harmony(int(random.integers(12)), SCALES[mode], degrees, bool(random.random() < 0.3))

    def step(self, degree: int) -> int:
        """Return the semitones from the tonic to a degree of the scale, which may be below 0 or above an octave."""
        octave, place = divmod(degree, len(self.scale))
        return 12 * octave + self.scale[place]

    def root(self, bar: int) -> int:
        """Return the pitch class of a bar's chord."""
        return (self.tonic + self.step(self.degrees[bar])) % 12

    def chord(self, bar: int, low: int) -> list[int]:
        """Return the pitches of a bar's chord, each as low as it may be from `low` on: neighbours share positions."""
        thirds = (0, 2, 4, 6) if self.sevenths else (0, 2, 4)
        classes = [self.tonic + self.step(self.degrees[bar] + third) for third in thirds]
        return sorted(low + (pitch - low) % 12 for pitch in classes)

    def pitches(self, low: int, high: int) -> list[int]:
        """Return the pitches of the key from `low` to `high`."""
        return [pitch for pitch in range(low, high + 1) if (pitch - self.tonic) % 12 in self.scale]
