"""Drum patterns of a bar in sixteenths, fills, and the keys of a General MIDI kit."""

import numpy as np

KICK, SIDE_STICK, SNARE, CLAP, CLOSED_HAT, OPEN_HAT = 36, 37, 38, 39, 42, 46
TOMS = (50, 48, 47, 45, 43, 41)  # from high to low
CRASHES, RIDE, TAMBOURINE, COWBELL, SHAKER = (49, 57), 51, 54, 56, 70

# x: struck, o: softly, O: the open hi-hat. Voices: the timekeeper, the snare, the kick.
FOUR_FOUR = (
    ("x.x.x.x.x.x.x.x.", "....x.......x...", "x.......x......."),  # rock
    ("x.x.x.x.x.x.x.x.", "....x.......x...", "x.....x.x......."),
    ("x.x.x.x.x.x.x.O.", "....x.......x..o", "x..x..x...x....."),  # funk
    ("xoxoxoxoxoxoxoxo", "....x..o.o..x...", "x.x.......x..x.."),
    ("..O...O...O...O.", "....x.......x...", "x...x...x...x..."),  # disco
    ("x.x.x.x.x.x.x.x.", "........x.......", "x.....x........."),  # half time
    ("x...x..ox...x..o", "....o.......o...", "x.........x....."),  # swing
    ("x.xxx.xxx.xxx.xx", "o..o..o...o..o..", "x..xx..xx..xx..x"),  # bossa nova
    ("xxxxxxxxxxxxxxxx", "....x.......x...", "x.........x....."),  # ballad
    ("x...x...x...x...", "....x.......x...", "x.x...x.x.x...x."),
)
THREE_FOUR = (
    ("x.x.x.x.x.x.", "....x...x...", "x..........."),
    ("x...x.x.x...", "....o...o...", "x.....x....."),
    ("x.x.x.x.x.x.", "......x.....", "x.......x..."),
)
LOUDNESS = {"x": 100, "o": 55, "O": 95}

Stroke = tuple[int, int, int]  # sixteenth, key, velocity


def draw_groove(steps: int, random: np.random.Generator) -> list[Stroke]:
    """Draw the strokes of a bar of `steps` sixteenths, 16 or 12."""
    known = FOUR_FOUR if steps == 16 else THREE_FOUR
    time, snare, kick = known[int(random.integers(len(known)))]
    keeper = int(random.choice([CLOSED_HAT, CLOSED_HAT, CLOSED_HAT, RIDE, SHAKER, TAMBOURINE, COWBELL]))
    back = int(random.choice([SNARE, SNARE, SNARE, SNARE, SIDE_STICK, CLAP]))
    strokes: list[Stroke] = []
    for key, pattern in ((keeper, time), (back, snare), (KICK, kick)):
        for at, mark in enumerate(pattern):
            if mark != ".":
                strokes.append((at, OPEN_HAT if mark == "O" else key, LOUDNESS[mark]))
    return strokes


def draw_fill(steps: int, random: np.random.Generator) -> tuple[int, list[Stroke]]:
    """Draw a fill: the sixteenth at which it takes over from the groove, and its strokes to the end of the bar."""
    begin = steps - int(random.choice([4, 4, 8]))
    every = int(random.choice([1, 2]))
    strokes = []
    for number, at in enumerate(range(begin, steps, every)):
        drum = TOMS[min(number * every * 2 // 3, len(TOMS) - 1)] if random.random() < 0.7 else SNARE
        strokes.append((at, drum, 80 + 3 * number))
    return begin, [*strokes, (begin, KICK, 100)]
