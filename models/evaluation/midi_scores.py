"""Rendering of MIDI scores, with a waveform for each instrument, whose sum is the band.

FluidSynth renders them with a General MIDI sound bank. An instrument is a class of the ontology; channels of one class
are one part. Reverberation and chorus are linear, so they are kept.
"""

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mido
import numpy as np
import soundfile
from mido.midifiles.meta import KeySignatureError

from models.corpus.clips import RATE

BANK = Path("/usr/share/sounds/sf2/TimGM6mb.sf2")  # not part of the training corpus
PACKAGES = "fluidsynth timgm6mb-soundfont simutrans-data planetblupi-music-midi"
FOLDERS = (Path("/usr/share/games/simutrans/music"), Path("/usr/share/planetblupi/music"))
LEAD = 1.0  # seconds rendered before an excerpt, so that it does not begin with an onset of all notes
GAIN = 0.5
DRUMS = 9  # the channel of percussion, counted from 0
ALL_SOUND_OFF = 120
TICKS = 480  # a beat, of half a second
OTHER = "other"  # programs without a clear class: music boxes, effects

# Programs from 0, as sound banks number them, in the classes that the corpus gives the same programs.
PROGRAMS: dict[str, tuple[int, ...]] = {
    "Piano": (0, 1, 2, 3),
    "Electric piano": (4, 5),
    "Harpsichord": (6,),
    "Glockenspiel": (8, 9),
    "Vibraphone": (11,),
    "Marimba, xylophone": (12, 13),
    "Tubular bells": (14,),
    "Hammond organ": (16, 17, 18),
    "Organ": (19, 20),
    "Accordion": (21, 23),
    "Harmonica": (22,),
    "Acoustic guitar": (24, 25),
    "Electric guitar": (26, 27, 28, 29, 30, 31),
    "Double bass": (32, 43),
    "Bass guitar": (33, 34, 35, 36, 37),
    "Violin, fiddle": (40, 110),
    "Cello": (42,),
    "String section": (44, 48, 49),
    "Pizzicato": (45,),
    "Harp": (46,),
    "Timpani": (47,),
    "Choir": (52, 53),
    "Orchestra": (55,),
    "Trumpet": (56, 59),
    "Trombone": (57,),
    "Brass instrument": (58, 61),
    "French horn": (60,),
    "Saxophone": (64, 65, 66, 67),
    "Oboe": (68,),
    "Bassoon": (70,),
    "Clarinet": (71,),
    "Flute": (72, 73, 75),
    "Synthesizer": (38, 39, 50, 51, 54, 62, 63, *range(80, 104)),
    "Sitar": (104,),
    "Steelpan": (114,),
    "Wood block": (115,),
    "Drum": (116, 117, 118),
}
DRUM_KIT = "Drum kit"
_LABELS = {program: label for label, programs in PROGRAMS.items() for program in programs}


@dataclass(frozen=True)
class Note:
    """A note from `start` to `end`, in seconds."""

    label: str
    channel: int
    pitch: int
    velocity: int
    start: float
    end: float


@dataclass(frozen=True)
class Score:
    """A score's notes, and all other messages that affect the sound, in order: (seconds, message)."""

    digest: str
    seconds: float
    notes: list[Note]
    controls: list[tuple[float, mido.Message]]

    def excerpt(self, start: float, seconds: float) -> dict[str, mido.MidiFile]:
        """Return each playing instrument's part by label, from LEAD before `start` on.

        Earlier control messages are applied at the start, and notes that already sound begin there."""
        first, last = start - LEAD, start + seconds
        playing = [note for note in self.notes if note.start < last and note.end > first]
        return {label: self._part(label, playing, first, last) for label in sorted({note.label for note in playing})}

    def _part(self, label: str, playing: list[Note], first: float, last: float) -> mido.MidiFile:
        events: list[tuple[float, int, mido.Message]] = [
            (max(time - first, 0.0), 0, message) for time, message in self.controls if time < last
        ]
        for note in playing:
            if note.label == label:
                struck = mido.Message("note_on", channel=note.channel, note=note.pitch, velocity=note.velocity)
                released = mido.Message("note_off", channel=note.channel, note=note.pitch)
                events += [(max(note.start - first, 0.0), 2, struck), (min(note.end, last) - first, 1, released)]
        # A pedal that is held down would keep FluidSynth rendering forever.
        events += [
            (last - first, 3, mido.Message("control_change", channel=channel, control=ALL_SOUND_OFF))
            for channel in range(16)
        ]
        track, before = mido.MidiTrack(), 0
        for time, _, message in sorted(events, key=lambda event: event[:2]):
            ticks = round(time * 2 * TICKS)
            track.append(message.copy(time=ticks - before))
            before = ticks
        return mido.MidiFile(ticks_per_beat=TICKS, tracks=[track])


def read(path: Path) -> Score:
    """Read a score from a standard MIDI file. Raises ValueError if it cannot be read."""
    try:
        file = mido.MidiFile(path, clip=True)
        messages = list(file)
    except (KeySignatureError, OSError, EOFError, ValueError, TypeError, KeyError, IndexError) as fault:
        raise ValueError(f"{path.name} is not a readable score: {fault or type(fault).__name__}") from fault
    notes: list[Note] = []
    controls: list[tuple[float, mido.Message]] = []
    programs, sounding = dict.fromkeys(range(16), 0), {}
    time = 0.0

    def release(place: tuple[int, int]) -> None:
        if place in sounding:
            label, velocity, start = sounding.pop(place)
            notes.append(Note(label, *place, velocity, start, time))

    for message in messages:
        time += message.time
        if message.type in ("note_on", "note_off"):
            place = (message.channel, message.note)
            release(place)  # a note that is struck again ends here
            if message.type == "note_on" and message.velocity:
                label = DRUM_KIT if message.channel == DRUMS else _LABELS.get(programs[message.channel], OTHER)
                sounding[place] = (label, message.velocity, time)
        elif not message.is_meta:
            if message.type == "program_change":
                programs[message.channel] = message.program
            controls.append((time, message))
    for place in list(sounding):
        release(place)
    notes.sort(key=lambda note: note.start)
    return Score(hashlib.sha256(path.read_bytes()).hexdigest()[:16], time, notes, controls)


def midi_files(folders: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the MIDI files of folders, by name."""
    for folder in folders:
        yield from sorted(folder.glob("*.mid"))


def synthesizer(bank: Path) -> "Synthesizer":
    """Return FluidSynth with a bank. Raises FileNotFoundError, which says what to install."""
    program = shutil.which("fluidsynth")
    if program is None or not bank.is_file():
        what = "the program fluidsynth" if program is None else f"the sound bank {bank}"
        raise FileNotFoundError(f"{what} is missing; on Debian: apt-get install {PACKAGES}")
    return Synthesizer(program, bank)


@dataclass(frozen=True)
class Synthesizer:
    """Renders parts by FluidSynth; the bank is an SF2 file."""

    program: str
    bank: Path

    def render(self, part: mido.MidiFile, seconds: float) -> np.ndarray:
        """Render an excerpt's part after LEAD: (n,) float32 at 32 kHz, the mean of both channels.

        Raises ValueError if FluidSynth fails.
        """
        frames = round(seconds * RATE)
        with tempfile.TemporaryDirectory() as folder:
            score, sound = Path(folder) / "part.mid", Path(folder) / "part.wav"
            part.save(score)
            command = [self.program, "-n", "-i", "-q", "-f", "/dev/null", "-r", str(RATE), "-g", str(GAIN)]
            command += ["-O", "float", "-T", "wav", "-F", str(sound), str(self.bank), str(score)]
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)  # noqa: S603
            if done.returncode or not sound.exists():
                raise ValueError(f"fluidsynth cannot render with {self.bank.name}: {done.stderr.strip()[-300:]}")
            samples, _ = soundfile.read(sound, dtype="float32", always_2d=True)
        mono = samples.mean(axis=1)[round(LEAD * RATE) :][:frames]
        return np.pad(mono, (0, frames - len(mono)))
