"""WebDataset shards of labelled clips, decoded once into a flat int16 array that training can index freely.

A shard is a tar of pairs `KEY.opus` (or any audio) and `KEY.json` (`labels`, `mids`, `group`, ...). The decoded
form is a folder with `samples.int16` and `clips.json`: a memory map costs nothing to open and no decoder runs
while training.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import soxr

from models.labels import ontology

RATE = 32_000


@dataclass(frozen=True)
class Clip:
    """One labelled clip; `start` and `frames` are its place in the flat array.

    mids: the classes that it is labelled with, at least one; never all that are true of it.
    """

    key: str
    start: int
    frames: int
    mids: tuple[str, ...]
    group: str
    kind: str
    source: dict[str, Any]  # package, path, licence: what attribution needs

    @property
    def mid(self) -> str:
        """The first class."""
        return self.mids[0]

    @property
    def label(self) -> str:
        """The first class's name."""
        return ontology()[self.mid].name


@dataclass(frozen=True)
class Clips:
    """Decoded clips: `samples` is int16 at 32 kHz, all clips end to end."""

    samples: np.ndarray
    clips: list[Clip]

    def waveform(self, clip: Clip) -> np.ndarray:
        """The clip, float32 in [-1, 1]."""
        return self.samples[clip.start : clip.start + clip.frames].astype(np.float32) / 32768


def load(shards: list[Path], cache: Path, advance: Callable[[str], None] = lambda _: None) -> Clips:
    """Read `shards`, decoding them into `cache` the first time.

    Raises FileNotFoundError if there are no shards and no cache.
    """
    index = cache / "clips.json"
    if not index.exists():
        if not shards:
            raise FileNotFoundError(f"no shards to decode, and {cache} holds no decoded clips")
        _decode_all(shards, cache, advance)
    records = json.loads(index.read_text())
    return Clips(np.memmap(cache / "samples.int16", dtype=np.int16, mode="r"), [Clip(**record | {"mids": tuple(record["mids"])}) for record in records])


def read_shard(path: Path) -> Iterator[tuple[str, dict[str, Any], bytes]]:
    """Pairs of one shard: key, the JSON, and the encoded audio."""
    waiting: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            stored = tar.extractfile(member)
            if stored is None:
                continue
            key, _, suffix = member.name.rpartition(".")
            pair = waiting.setdefault(key, {})
            pair["json" if suffix == "json" else "audio"] = stored.read()
            if len(pair) == 2:
                del waiting[key]
                yield key, json.loads(pair["json"]), pair["audio"]


def decode_clip(encoded: bytes) -> np.ndarray:
    """Encoded mono audio -> int16 at 32 kHz."""
    with av.open(io.BytesIO(encoded), "r") as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", layout="mono")
        blocks = [
            converted.to_ndarray()[0] for frame in container.decode(stream) for converted in resampler.resample(frame)
        ]
        rate = stream.rate
    samples = soxr.resample(np.concatenate(blocks), rate, RATE, quality="HQ")
    return (samples * 32768).round().clip(-32768, 32767).astype(np.int16)


def _decode_shard(path: Path) -> list[tuple[str, dict[str, Any], np.ndarray]]:
    return [(key, description, decode_clip(audio)) for key, description, audio in read_shard(path)]


def _decode_all(shards: list[Path], cache: Path, advance: Callable[[str], None]) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    records, start = [], 0
    with ProcessPoolExecutor() as pool, (cache / "samples.int16").open("wb") as samples:
        for path, decoded in zip(shards, pool.map(_decode_shard, shards), strict=True):
            advance(path.name)
            for key, description, clip in decoded:
                samples.write(clip.tobytes())
                source = {name: description[name] for name in ("package", "path", "license") if name in description}
                records.append(
                    {
                        "key": key,
                        "start": start,
                        "frames": len(clip),
                        "mids": description["mids"],
                        "group": description["group"],
                        "kind": description["kind"],
                        "source": source,
                    }
                )
                start += len(clip)
    # Written last: its presence says that the samples are whole.
    (cache / "clips.json").write_text(json.dumps(records))
