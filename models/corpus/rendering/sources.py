"""Sound banks and scores that songs are rendered with, and their licences."""

import re
from dataclasses import dataclass
from pathlib import Path

from models.corpus.rendering.general_midi import DRUMS

PACKAGES = "fluidsynth fluid-soundfont-gm musescore-general-soundfont-lossless"
ELECTRONIC_KITS = (24, 25)
_BANKS = Path("/usr/share/sounds/sf2")
# By file name: Debian's package, licence, and the family of banks that share samples.
KNOWN_BANKS = {
    "FluidR3_GM.sf2": ("fluid-soundfont-gm", "MIT", "fluid+musescore"),
    "MuseScore_General_Full.sf2": ("musescore-general-soundfont-lossless", "MIT", "fluid+musescore"),
}
# By the last part of a folder's name: Debian's package and licence.
KNOWN_SCORES = {"openmsx": ("openttd-openmsx", "GPL-2")}
# Of the evaluations: nothing that is trained on may come from these.
RESERVED = ("TimGM6mb", "simutrans", "planetblupi", "freedink", "dink", "mma")


@dataclass(frozen=True)
class Bank:
    """An SF2 bank. family: of banks that share samples."""

    path: Path
    package: str
    licence: str
    family: str

    def group(self, channel: int, program: int) -> str:
        """Return the source group of a program, as the corpus names it."""
        if channel == DRUMS:
            return f"gm-drums/{self.family}/{'electronic' if program in ELECTRONIC_KITS else 'acoustic'}"
        return f"gm-program-{program:03d}/{self.family}"

    def preset(self, channel: int, program: int) -> str:
        """Return the preset's path: of the file, and the bank and program in it."""
        return f"{str(self.path).lstrip('/')}#{128 if channel == DRUMS else 0}:{program}"


@dataclass(frozen=True)
class ScoreFolder:
    """A folder of MIDI files."""

    path: Path
    package: str
    licence: str


def banks(given: list[str] | None) -> tuple[Bank, ...]:
    """Return the banks FILE, or FILE=LICENCE where a licence is not known; by default those known and installed.

    Raises FileNotFoundError, which says what to install, and ValueError for banks of the evaluations or of no licence.
    """
    if given is None:
        given = [str(_BANKS / name) for name in KNOWN_BANKS if (_BANKS / name).is_file()]
        if not given:
            raise FileNotFoundError(f"no sound bank in {_BANKS}; on Debian: apt-get install {PACKAGES}")
    found = []
    for text in given:
        path, licence = _split(text)
        package, known, family = KNOWN_BANKS.get(path.name, (path.stem, "", path.stem))
        if not path.is_file():
            raise FileNotFoundError(f"the sound bank {path} is missing; on Debian: apt-get install {PACKAGES}")
        found.append(Bank(path, package, _licence(path, licence or known, "FILE"), family))
    return tuple(found)


def score_folders(given: list[str] | None) -> tuple[ScoreFolder, ...]:
    """Return the folders FOLDER, or FOLDER=LICENCE where a licence is not known. Raises as `banks`."""
    found = []
    for text in given or ():
        path, licence = _split(text)
        package, known = KNOWN_SCORES.get(path.name, (path.name, ""))
        if not any(path.glob("*.mid")):
            raise FileNotFoundError(f"no MIDI files (*.mid) in {path}")
        found.append(ScoreFolder(path, package, _licence(path, licence or known, "FOLDER")))
    return tuple(found)


def _split(text: str) -> tuple[Path, str]:
    path, _, licence = text.partition("=")
    return Path(path), licence


def _licence(path: Path, licence: str, what: str) -> str:
    # Of a part such as "freedink-data" or "TimGM6mb.sf2", the first word; "mmartin" is not of mma.
    if any(re.split(r"[^A-Za-z0-9]", part)[0] in RESERVED for part in path.resolve().parts):
        raise ValueError(f"{path} belongs to the evaluations: nothing may be trained on it")
    if not licence:
        raise ValueError(f"the licence of {path} is not known: give {what}=LICENCE")
    return licence
