"""The scores and the sound bank of the evaluations; neither is part of the training corpus."""

from pathlib import Path

from models.corpus.rendering import synthesizer as rendering
from models.corpus.rendering.synthesizer import Synthesizer

BANK = Path("/usr/share/sounds/sf2/TimGM6mb.sf2")
PACKAGES = "fluidsynth timgm6mb-soundfont simutrans-data planetblupi-music-midi"
FOLDERS = (Path("/usr/share/games/simutrans/music"), Path("/usr/share/planetblupi/music"))


def synthesizer(bank: Path) -> Synthesizer:
    """Return FluidSynth with a bank. Raises FileNotFoundError, which says what to install."""
    return rendering.synthesizer(bank, PACKAGES)
