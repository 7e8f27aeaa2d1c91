"""MIDI scores, and their excerpts as a part for each instrument.

An instrument is a class of the ontology; channels of one class are one part.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mido
from mido.midifiles.meta import KeySignatureError

from models.corpus.rendering.general_midi import label_of

LEAD = 1.0  # seconds rendered before an excerpt, so that it does not begin with an onset of all notes
ALL_SOUND_OFF = 120
TICKS = 480  # a beat, of half a second


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
                label = label_of(message.channel, programs[message.channel])
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
