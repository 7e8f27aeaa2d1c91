"""Rendering of parts of scores by FluidSynth with a General MIDI sound bank."""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mido
import numpy as np
import soundfile

from models.corpus.clips import RATE
from models.corpus.rendering.scores import LEAD

GAIN = 0.5


def synthesizer(bank: Path, packages: str, *, ambience: bool = True) -> "Synthesizer":
    """Return FluidSynth with a bank; see Synthesizer. Raises FileNotFoundError, which says to install `packages`."""
    program = shutil.which("fluidsynth")
    if program is None or not bank.is_file():
        what = "the program fluidsynth" if program is None else f"the sound bank {bank}"
        raise FileNotFoundError(f"{what} is missing; on Debian: apt-get install {packages}")
    return Synthesizer(program, bank, ambience)


@dataclass(frozen=True)
class Synthesizer:
    """Renders parts by FluidSynth; the bank is an SF2 file.

    ambience: with FluidSynth's reverberation and chorus, which are linear: rendered parts add up to the band.
    """

    program: str
    bank: Path
    ambience: bool = True

    def render(self, part: mido.MidiFile, seconds: float) -> np.ndarray:
        """Render an excerpt's part after LEAD: (n,) float32 at 32 kHz, the mean of both channels.

        Raises ChildProcessError if FluidSynth fails: it cannot read the bank, or the disk is full.
        """
        frames = round(seconds * RATE)
        with tempfile.TemporaryDirectory() as folder:
            score, sound = Path(folder) / "part.mid", Path(folder) / "part.wav"
            part.save(score)
            command = [self.program, "-n", "-i", "-q", "-f", "/dev/null", "-r", str(RATE), "-g", str(GAIN)]
            command += ["-O", "float", "-T", "wav", "-F", str(sound)]
            command += ["-o", "synth.dynamic-sample-loading=1"]  # only the samples that are played
            # Without this it plays the system's bank, an evaluation's, in place of one that it cannot read.
            command += ["-o", "synth.default-soundfont="]
            command += [] if self.ambience else ["-R", "0", "-C", "0"]
            command += [str(self.bank), str(score)]
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)  # noqa: S603
            # After an error it goes on, with less sound or none, and ends with 0.
            if done.returncode or not sound.exists() or "error:" in done.stderr:
                raise ChildProcessError(f"fluidsynth cannot render with {self.bank.name}: {done.stderr.strip()[-300:]}")
            samples, _ = soundfile.read(sound, dtype="float32", always_2d=True)
        mono = samples.mean(axis=1)[round(LEAD * RATE) :][:frames]
        return np.pad(mono, (0, frames - len(mono)))
