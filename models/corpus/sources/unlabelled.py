"""A folder of unlabelled audio files, for training a detector with a teacher."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models.corpus.reading import FileAudio
from models.corpus.sources.recordings import Fault, Recording, key_of
from models.errors import CorpusInvalid
from models.media.suffixes import is_recording


@dataclass(frozen=True)
class Unlabelled:
    """Source of every audio file below a folder, each a recording without classes."""

    root: Path
    split: str = "unlabelled"

    @property
    def name(self) -> str:
        return self.root.name

    def files(self) -> Iterator[Path]:
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root} is not a folder")
        found = sorted(path for path in self.root.rglob("*") if is_recording(path.name) and path.is_file())
        if not found:
            raise CorpusInvalid(f"{self.root} holds no audio files")
        yield from found

    def __iter__(self) -> Iterator[Recording | Fault]:
        for path in self.files():
            name = path.relative_to(self.root).as_posix()
            source = {"package": self.name, "path": name}
            yield Recording(key_of(name), (), f"{self.name}/{name}", "unlabelled", source, FileAudio(path), name)
