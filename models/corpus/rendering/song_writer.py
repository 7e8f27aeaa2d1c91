"""Songs made by rule: a key, a tempo, chords, and instruments that play them in their roles.

A song is a `Score`, as a MIDI file is. Its bars are of four or three quarters, its grid of sixteenths; players are up
to LOOSEST beside it, as people are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mido
import numpy as np

from models.corpus.relations import are_related
from models.corpus.rendering.drum_patterns import CRASHES, draw_fill, draw_groove
from models.corpus.rendering.general_midi import DRUM_KIT, DRUMS, PROGRAMS
from models.corpus.rendering.harmony import Harmony
from models.corpus.rendering.scores import Note, Score
from models.labels import find

BARS = 16
TEMPOS = (70.0, 160.0)  # beats a minute
LOOSEST = 0.012  # seconds
KITS = (0, 0, 0, 8, 16, 24, 25, 32, 40)  # programs of channel 9: standard, room, power, electronic, TR-808, jazz, brush
DRUMLESS = 0.08  # share of songs without drums
PAUSES = 0.2  # share of parts that come in late or leave early

# Classes by role; what a song needs twice is drawn twice. Names that come again are drawn more often.
BASSES = (*(4 * ("Bass guitar",)), "Double bass", "Synthesizer")
COMPING = (
    *(2 * ("Piano", "Acoustic guitar", "Electric guitar")),
    *("Electric piano", "Hammond organ", "Organ", "Harpsichord", "Harp", "Accordion", "Synthesizer", "Pizzicato"),
    *("Vibraphone", "Marimba, xylophone"),
)
MELODIES = (
    *("Flute", "Saxophone", "Trumpet", "Violin, fiddle", "Electric guitar", "Synthesizer", "Piano", "Harmonica"),
    *("Clarinet", "Oboe", "Bassoon", "Cello", "Trombone", "French horn", "Brass instrument", "Glockenspiel"),
    *("Vibraphone", "Marimba, xylophone", "Steelpan", "Sitar", "Accordion", "Acoustic guitar", "Tubular bells"),
)
PADS = ("String section", "String section", "Choir", "Organ", "Synthesizer", "Brass instrument", "Orchestra")
COLOURS = ("Timpani", "Wood block", "Drum", "Pizzicato", "Harp", "Tubular bells", "Glockenspiel")

# Pitches that an instrument is played at, where its role's are not its own.
RANGES = {
    "Timpani": (40, 57),
    "Bassoon": (40, 67),
    "Cello": (40, 69),
    "Trombone": (43, 70),
    "French horn": (45, 72),
    "Flute": (62, 93),
    "Glockenspiel": (77, 100),
    "Tubular bells": (60, 77),
    "Violin, fiddle": (57, 91),
}
ROLE_RANGES = {"bass": (28, 47), "comping": (50, 74), "melody": (60, 84), "pad": (50, 76), "colour": (55, 79)}
MELODY_RHYTHMS = (  # sixteenths of two quarters
    *((0,), (0, 4), (0, 2, 4), (0, 4, 6), (0, 2, 4, 6), (0, 3, 6), (2, 4), (4,), (), (0, 6), (0, 1, 2, 4)),
)
COMPING_RHYTHMS = {  # sixteenths of a bar of 16; a bar of 12 ends earlier
    "held": (0,),
    "quarters": (0, 4, 8, 12),
    "eighths": tuple(range(0, 16, 2)),
    "off-beats": (2, 6, 10, 14),
    "syncopated": (0, 3, 6, 10, 12),
    "charleston": (0, 6),
}


@dataclass(frozen=True)
class Player:
    """An instrument in its role; `program` from 0."""

    role: str
    label: str
    program: int
    channel: int

    @property
    def range(self) -> tuple[int, int]:
        return RANGES.get(self.label, ROLE_RANGES.get(self.role, (0, 127)))


@dataclass(frozen=True)
class Song:
    """A score with its tempo in beats a minute, quarters a bar, and players."""

    score: Score
    tempo: float
    quarters: int
    players: tuple[Player, ...]


# The beats from the song's beginning at which notes begin, their lengths in beats, pitches and velocities.
Written = list[tuple[float, float, int, int]]


def write_song(
    random: np.random.Generator, allowed: Callable[[int, int], bool] = lambda channel, program: True
) -> Song:
    """Write a song. `allowed`: whether a channel's program may be played; drums are always allowed."""
    tempo = float(random.uniform(*TEMPOS))
    quarters = 3 if random.random() < 0.12 else 4
    harmony = Harmony.draw(BARS, random)
    players = draw_players(random, allowed)
    swing = 1 / 6 if random.random() < 0.2 else 0.0  # of a quarter: the second eighth comes later
    beat = 60 / tempo
    notes: list[Note] = []
    controls: list[tuple[float, mido.Message]] = []
    for player in players:
        controls.append((0.0, mido.Message("program_change", channel=player.channel, program=player.program)))
        written = _WRITERS[player.role](player, harmony, quarters, random)
        first, last = _presence(random, BARS * quarters)
        for at, length, pitch, velocity in written:
            if not first <= at < last:
                continue
            late = swing if at % 1 == 0.5 else 0.0
            start = (at + late) * beat + float(np.clip(random.normal(0, LOOSEST / 3), -LOOSEST, LOOSEST))
            loud = int(np.clip(velocity + random.normal(0, 6), 20, 127))
            end = start + max(length * beat, 0.05)
            notes.append(Note(player.label, player.channel, pitch, loud, max(start, 0.0), end))
    notes.sort(key=lambda note: note.start)
    return Song(Score("", BARS * quarters * beat, notes, controls), tempo, quarters, players)


def draw_players(random: np.random.Generator, allowed: Callable[[int, int], bool]) -> tuple[Player, ...]:
    """Draw the instruments of a song, none of a class related to another's."""
    roles = [("bass", BASSES, 0.92), ("comping", COMPING, 0.95), ("melody", MELODIES, 0.85), ("pad", PADS, 0.35)]
    roles += [("comping", COMPING, 0.35), ("colour", COLOURS, 0.12)]
    players: list[Player] = []
    if random.random() >= DRUMLESS:
        players.append(Player("drums", DRUM_KIT, int(random.choice(KITS)), DRUMS))
    for channel, (role, labels, share) in enumerate(roles):
        if random.random() >= share:
            continue
        mids = [find(player.label).mid for player in players]
        fitting = [
            (label, programs)
            for label in labels
            if not any(are_related(find(label).mid, mid) for mid in mids)
            and (programs := [program for program in _programs(role, label) if allowed(channel, program)])
        ]
        if fitting:
            label, programs = fitting[int(random.integers(len(fitting)))]
            players.append(Player(role, label, int(random.choice(programs)), channel))
    return tuple(players)


def _programs(role: str, label: str) -> tuple[int, ...]:
    """Return the programs of a class that fit a role."""
    programs = PROGRAMS.get(label, ())
    if label == "Synthesizer":  # basses, leads, pads
        kinds = {"bass": (38, 39), "melody": tuple(range(80, 88)), "pad": (50, 51, 54, *range(88, 96))}
        return kinds.get(role, (62, 63, *range(80, 96)))
    if label == "Electric guitar" and role == "comping":
        return tuple(program for program in programs if program != 31)  # harmonics
    return programs


def _presence(random: np.random.Generator, beats: int) -> tuple[float, float]:
    """Return the beats from and to which a part plays."""
    if random.random() >= PAUSES:
        return 0.0, float(beats)
    cut = float(random.integers(2, beats // 4 - 1) * 4)
    return (cut, float(beats)) if random.random() < 0.5 else (0.0, cut)


def _write_drums(player: Player, harmony: Harmony, quarters: int, random: np.random.Generator) -> Written:
    steps = 4 * quarters
    groove = draw_groove(steps, random)
    fills_every = int(random.choice([4, 4, 8, 2]))
    written: Written = []
    for bar in range(BARS):
        strokes = groove
        if bar % fills_every == fills_every - 1:
            begin, fill = draw_fill(steps, random)
            strokes = [stroke for stroke in groove if stroke[0] < begin] + fill
        if bar % fills_every == 0 and random.random() < 0.8:
            strokes = [*strokes, (0, int(random.choice(CRASHES)), 95)]
        written += [(bar * quarters + at / 4, 0.2, key, velocity) for at, key, velocity in strokes]
    return written


def _write_bass(player: Player, harmony: Harmony, quarters: int, random: np.random.Generator) -> Written:
    low, high = player.range
    style = str(random.choice(["roots", "eighths", "fifths", "octaves", "walking", "syncopated"]))
    written: Written = []
    for bar in range(BARS):
        root = low + (harmony.root(bar) - low) % 12
        following = low + (harmony.root((bar + 1) % BARS) - low) % 12
        fifth = root + 7 if root + 7 <= high else root - 5
        third = harmony.chord(bar, root)[1]
        lines: dict[str, list[tuple[float, float, int]]] = {
            "roots": [(0, quarters, root)],
            "eighths": [(step / 2, 0.45, root) for step in range(2 * quarters)],
            "fifths": [(0, 1.5, root), (2, 1, fifth)],
            "octaves": [(step / 2, 0.4, root + 12 * (step % 2)) for step in range(2 * quarters)],
            "walking": [(0, 0.95, root), (1, 0.95, third), (2, 0.95, fifth), (3, 0.95, following + 1)],
            "syncopated": [(0, 0.7, root), (0.75, 0.7, root), (1.5, 0.9, fifth), (2.5, 0.5, root), (3, 0.5, following)],
        }
        written += [
            (bar * quarters + at, length, max(low - 4, pitch), 95)
            for at, length, pitch in lines[style]
            if at < quarters
        ]
    return written


def _write_comping(player: Player, harmony: Harmony, quarters: int, random: np.random.Generator) -> Written:
    low, _ = player.range
    style = str(random.choice([*COMPING_RHYTHMS, "arpeggio", "arpeggio"]))
    turn = int(random.choice([1, 2]))  # sixteenths or eighths of arpeggios
    written: Written = []
    for bar in range(BARS):
        chord = harmony.chord(bar, low)
        begin = bar * quarters
        if style == "arpeggio":
            up_and_down = [*chord, chord[0] + 12, *reversed(chord[1:])]
            written += [
                (begin + step / 4, 0.25 * turn, up_and_down[number % len(up_and_down)], 85)
                for number, step in enumerate(range(0, 4 * quarters, turn))
            ]
            continue
        places = [place for place in COMPING_RHYTHMS[style] if place < 4 * quarters]
        for number, place in enumerate(places):
            until = places[number + 1] if number + 1 < len(places) else 4 * quarters
            length = (until - place) / 4 * (0.95 if style == "held" else 0.7)
            written += [(begin + place / 4, length, pitch, 85) for pitch in chord]
    return written


def _write_melody(player: Player, harmony: Harmony, quarters: int, random: np.random.Generator) -> Written:
    """A walk through the key that rests on the chord on the beats; a rhythm of two bars comes again."""
    low, high = player.range
    pitches = harmony.pitches(low, high)
    motif = [MELODY_RHYTHMS[int(random.integers(len(MELODY_RHYTHMS)))] for _ in range(quarters)]
    onsets = sorted({place / 4 + 2 * half for half, rhythm in enumerate(motif) for place in rhythm})
    onsets = [at for at in onsets if at < 2 * quarters] or [0.0, 2.0]
    at_place = len(pitches) // 2
    written: Written = []
    for bar in range(0, BARS, 2):
        for number, at in enumerate(onsets):
            at_place = int(np.clip(at_place + random.integers(-2, 3), 0, len(pitches) - 1))
            if at % 1 == 0:
                chord = {pitch % 12 for pitch in harmony.chord(bar + int(at >= quarters), low)}
                near = sorted(range(len(pitches)), key=lambda place: abs(place - at_place))
                at_place = next((place for place in near if pitches[place] % 12 in chord), at_place)
            until = onsets[number + 1] if number + 1 < len(onsets) else 2 * quarters
            written.append((bar * quarters + at, 0.9 * min(until - at, 2.0), pitches[at_place], 95))
    return written


def _write_pad(player: Player, harmony: Harmony, quarters: int, random: np.random.Generator) -> Written:
    low, _ = player.range
    return [(bar * quarters, 0.98 * quarters, pitch, 75) for bar in range(BARS) for pitch in harmony.chord(bar, low)]


def _write_colour(player: Player, harmony: Harmony, quarters: int, random: np.random.Generator) -> Written:
    """Single notes of the chord where a rhythm of a bar has them."""
    low, high = player.range
    steps = sorted({0, *random.integers(0, 2 * quarters, 3).tolist()})
    written: Written = []
    for bar in range(BARS):
        chord = [pitch for pitch in harmony.chord(bar, low) if pitch <= high] or [low]
        written += [
            (bar * quarters + step / 2, 0.5, chord[number % len(chord)], 90) for number, step in enumerate(steps)
        ]
    return written


_WRITERS: dict[str, Callable[[Player, Harmony, int, np.random.Generator], Written]] = {
    "drums": _write_drums,
    "bass": _write_bass,
    "comping": _write_comping,
    "melody": _write_melody,
    "pad": _write_pad,
    "colour": _write_colour,
}
