"""Rendered songs as rows of a pack: each is an excerpt of a song, and its pieces are the excerpt's parts.

Parts of one song have the same `song` and length; their samples add up to the mix. A song depends on the seed, its
number and the sources alone.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mido
import numpy as np

from models.corpus.clips import RATE
from models.corpus.packing import Encoded, Settings, encode_piece
from models.corpus.rendering.general_midi import OTHER
from models.corpus.rendering.scores import midi_files, read
from models.corpus.rendering.singing import SINGING, Voice
from models.corpus.rendering.song_writer import write_song
from models.corpus.rendering.sources import PACKAGES, Bank, ScoreFolder
from models.corpus.rendering.studio import ROLE_DB, SPREAD_DB, at_level, produce
from models.corpus.rendering.synthesizer import synthesizer
from models.corpus.sources.recordings import Fault, key_of
from models.labels import find

SHARE_OF_SCORES = 0.3  # of songs that are excerpts of MIDI files, if there are any
SHARE_OF_VOCALS = 0.45
SHARE_DRY = 0.5  # of songs without the synthesizer's reverberation
LATEST = 240.0  # seconds into a MIDI file: some repeat for half an hour
SCORE_SPREAD_DB = 2.0
LEAST_PARTS = 2
FULL_SCALE = 32767


@dataclass(frozen=True)
class Songs:
    """The split `train` of a number of songs; rows are their numbers.

    apart_from: source groups that are not rendered, of the validation split of the corpus that is trained on.
    """

    seed: int
    count: int
    banks: tuple[Bank, ...]
    scores: tuple[ScoreFolder, ...] = ()
    voices: tuple[Voice, ...] = field(default=(), repr=False)
    apart_from: frozenset[str] = frozenset()
    name: str = "songs"
    split: str = "train"
    root: Path = Path("/")

    def files(self) -> Iterator[Path]:
        yield from (bank.path for bank in self.banks)
        yield from (path for path, _ in self._midi_files)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def about(self) -> dict[str, Any]:
        """Return what the rows depend on apart from files."""
        return {
            "seed": self.seed,
            "songs": self.count,
            "voices": [voice.group for voice in self.voices],
            "apart_from": sorted(self.apart_from),
        }

    @cached_property
    def _midi_files(self) -> list[tuple[Path, ScoreFolder]]:
        return [(path, folder) for folder in self.scores for path in midi_files((folder.path,))]

    def encode(self, row: int, settings: Settings) -> Encoded:
        """Render a song; return its parts, encoded. A song with fewer than LEAST_PARTS audible parts is a fault."""
        song = f"{self.seed}-{row:06d}"
        try:
            parts = self.render(row, settings.max_seconds)
        except ValueError as fault:
            return Encoded([], 0.0, [Fault(song, "unreadable score", str(fault))])
        if len(parts) < LEAST_PARTS:
            return Encoded([], 0.0, [Fault(song, f"fewer than {LEAST_PARTS} audible parts")])
        pieces = []
        for place, part in enumerate(parts):
            samples = (part.sound * FULL_SCALE).round().astype(np.int16)
            said = {
                "labels": [part.label],
                "mids": [find(part.label).mid],
                "seconds": round(len(samples) / RATE, 3),
                "group": part.group,
                "kind": "instrument",
                **part.source,
                "song": song,
            }
            pieces.append((key_of(f"song-{song}-{place}"), encode_piece(samples, settings.format), said))
        return Encoded(pieces, 0.0, [])

    def render(self, number: int, seconds: float) -> list["Part"]:
        """Return the audible parts of a song's excerpt.

        Raises ValueError if its score cannot be read, ChildProcessError if FluidSynth fails.
        """
        random = np.random.default_rng([self.seed, number])
        excerpt = self._draw_excerpt(random, seconds)
        dry = random.random() < SHARE_DRY
        parts: dict[str, Part] = {}
        sounds: dict[str, np.ndarray] = {}
        for label, midi in excerpt.parts.items():
            presets = _presets_of(midi)
            fitting = [bank for bank in self.banks if all(self._may_play(bank, *preset) for preset in presets)]
            level = float(random.normal(0, SPREAD_DB if excerpt.roles else SCORE_SPREAD_DB))
            chosen = int(random.integers(1 << 16))
            if label == OTHER or not fitting:
                continue
            bank = fitting[chosen % len(fitting)]
            channel, program = presets[0]
            sound = synthesizer(bank.path, PACKAGES, ambience=not dry).render(midi, seconds)
            if excerpt.roles:
                sound = at_level(sound, ROLE_DB[excerpt.roles[label]] - 20 + level)
            else:
                sound = sound * np.float32(10 ** (level / 20))
            sounds[label] = sound
            licence = "; score ".join([bank.licence, excerpt.licence] if excerpt.licence else [bank.licence])
            source = {"package": bank.package, "path": bank.preset(channel, program), "license": licence}
            parts[label] = Part(label, bank.group(channel, program), source | {"phrase": excerpt.title}, sound)
        sings, whose, level = random.random() < SHARE_OF_VOCALS, random.random(), random.normal(0, SPREAD_DB)
        if self.voices and sings and parts and SINGING not in parts:
            voice = self.voices[int(whose * len(self.voices))]
            loudest = max(float(np.sqrt(np.square(sound).mean())) for sound in sounds.values())
            sung = voice.sing(round(seconds * RATE), excerpt.bar, random)
            sounds[SINGING] = at_level(sung, 20 * math.log10(max(loudest, 1e-6)) + ROLE_DB["vocals"] + 3 + level)
            source = {name: voice.source[name] for name in ("package", "path", "license") if name in voice.source}
            parts[SINGING] = Part(SINGING, voice.group, source | {"phrase": excerpt.title}, sung)
        produced, roomy = produce(sounds, random)
        reverb = {"reverb": roomy or not dry}
        return [
            replace(parts[label], sound=sound, source=parts[label].source | reverb) for label, sound in produced.items()
        ]

    def _may_play(self, bank: Bank, channel: int, program: int) -> bool:
        return bank.group(channel, program) not in self.apart_from

    def _draw_excerpt(self, random: np.random.Generator, seconds: float) -> "Excerpt":
        if self._midi_files and random.random() < SHARE_OF_SCORES:
            path, folder = self._midi_files[int(random.integers(len(self._midi_files)))]
            score = read(path)
            start = float(random.uniform(0, max(0.0, min(score.seconds, LATEST) - seconds)))
            title = f"score:{folder.package}/{path.name}"
            return Excerpt(score.excerpt(start, seconds), {}, title, f"{folder.package} {folder.licence}", 2.0)
        song = write_song(
            random, lambda channel, program: any(self._may_play(bank, channel, program) for bank in self.banks)
        )
        bar = song.quarters * 60 / song.tempo
        last = int((song.score.seconds - seconds) // bar)
        start = int(random.integers(0, max(last, 0) + 1)) * bar
        roles = {player.label: player.role for player in song.players}
        return Excerpt(song.score.excerpt(start, seconds), roles, "rule", "", bar)


@dataclass(frozen=True)
class Part:
    """A part of a song's mix: sound (n,) float32 at its level in the mix."""

    label: str
    group: str
    source: dict[str, Any]
    sound: np.ndarray


@dataclass(frozen=True)
class Excerpt:
    """Parts of a score by label, their roles if it is made by rule, its title and licence, and a bar in seconds."""

    parts: dict[str, mido.MidiFile]
    roles: dict[str, str]
    title: str
    licence: str
    bar: float


def _presets_of(part: mido.MidiFile) -> list[tuple[int, int]]:
    """Return the channels and programs that play a part's notes, the one that plays most first."""
    programs, played = dict.fromkeys(range(16), 0), {}
    for message in part.tracks[0]:
        if message.type == "program_change":
            programs[message.channel] = message.program
        elif message.type == "note_on" and message.velocity:
            preset = message.channel, programs[message.channel]
            played[preset] = played.get(preset, 0) + 1
    return sorted(played, key=lambda preset: -played[preset])
