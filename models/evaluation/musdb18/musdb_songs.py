"""Songs of MUSDB18 and MUSDB18-HQ, and the highlights that are the paper's examples.

MUSDB18 is `train/TITLE.stem.mp4` and `test/TITLE.stem.mp4` of five streams each; HQ is `train/TITLE/` and
`test/TITLE/` with mixture.wav and a file for each stem. Both are read through `musdb`, one stem at a time.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.audio import Waveform
from models.engine import Engine
from models.errors import SilentQuery
from models.media import Limits, open_audio
from models.queries.query import Query

STEMS = ("vocals", "drums", "bass", "other")
HIGHLIGHTS = 90  # number of training songs for the paper's queries
HIGHLIGHT_SECONDS = 30.0


@dataclass(frozen=True)
class Song:
    """A song's title, and a function that decodes its "mixture" or a stem."""

    name: str
    read: Callable[[str], Waveform]


def songs(root: Path, subset: str) -> list[Song]:
    """Return the songs of "train" or "test" by title; wav folders take precedence over stem files.

    Raises FileNotFoundError if there is neither, or no ffmpeg to read them.
    """
    wavs = any((root / subset).glob("*/mixture.wav"))
    if not wavs and not any((root / subset).glob("*.stem.mp4")):
        raise FileNotFoundError(
            f"{root / subset} holds neither MUSDB18-HQ (TITLE/mixture.wav) nor MUSDB18 (TITLE.stem.mp4)"
        )
    return [_song(track) for track in _musdb().DB(root=str(root), subsets=[subset], is_wav=wavs)]


def _musdb():
    """Import musdb, which fails without ffmpeg. Raises FileNotFoundError."""
    try:
        import musdb
    except RuntimeError as error:
        raise FileNotFoundError(f"musdb needs ffmpeg and ffprobe, which are not installed: {error}") from error
    return musdb


def _song(track) -> Song:
    missing = [name for name in STEMS if name not in track.sources]
    if missing:
        raise FileNotFoundError(f"{track.path}: {track.name} has no {', '.join(missing)}")

    def read(name: str) -> Waveform:
        samples = (track if name == "mixture" else track.sources[name]).audio
        channels = np.atleast_2d(samples.T)  # mono songs are (n,)
        return Waveform(torch.from_numpy(np.ascontiguousarray(channels, dtype=np.float32)), int(track.rate))

    return Song(track.name, read)


def read_highlights(folder: Path, stem: str) -> Iterator[Waveform]:
    """Yield the recordings in `folder`/`stem` by name. Raises FileNotFoundError if there are none."""
    files = sorted(path for path in (folder / stem).glob("*") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"{folder / stem} holds no highlights of {stem}")
    for path in files:
        with open_audio(path, Limits(seconds=600)) as reader:
            blocks = [torch.from_numpy(block) for block in reader]
            yield Waveform(torch.cat(blocks, dim=1), reader.rate)


def substitutes(training: Iterable[Song], stem: str) -> Iterator[Waveform]:
    """Yield each stem's loudest 30 s by energy, in place of the paper's highlights, which are not published."""
    for song in training:
        whole = song.read(stem)
        first = loudest(whole.samples, round(HIGHLIGHT_SECONDS * whole.rate))
        yield Waveform(whole.samples[:, first : first + round(HIGHLIGHT_SECONDS * whole.rate)], whole.rate)


def loudest(samples: Tensor, length: int) -> int:
    """Return the start of the `length` samples of (C, n) with the most energy; 0 if there are no more than `length`."""
    if samples.shape[1] <= length:
        return 0
    energy = torch.nn.functional.pad(samples.double().square().sum(dim=0).cumsum(0), (1, 0))
    return int((energy[length:] - energy[:-length]).argmax())


def mean_query(engine: Engine, highlights: Iterable[Waveform]) -> tuple[Query, int, int]:
    """Return the mean of the highlights' embeddings, the number used, and the number of silent ones left out.

    One highlight is in memory at a time. Raises SilentQuery if all are silent.
    """
    embedded, silent = [], 0
    for highlight in highlights:
        try:
            embedded.append(engine.embed([highlight]))
        except SilentQuery:
            silent += 1
    if not embedded:
        raise SilentQuery(f"none of the {silent} highlights holds any sound")
    vectors = torch.stack([query.vector for query in embedded])
    mean = vectors.mean(dim=0)
    coherence = torch.nn.functional.cosine_similarity(vectors, mean[None], dim=1).mean().clamp(0, 1).item()
    seconds = sum(query.seconds_used for query in embedded)
    return Query(mean, engine.model_id, coherence, seconds), len(embedded), silent
