"""Clips decoded once: a folder with `samples.int16` and `clips.json`, which a memory map opens at no cost."""

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from models.corpus.clips import Clip, Clips
from models.corpus.shards import decode_clip, read_shard


def load(corpus: Path, split: str, cache: Path, advance: Callable[[str], None] = lambda _: None) -> Clips:
    """The clips of one split of a corpus, decoded into `cache` the first time.

    Raises FileNotFoundError if there is neither a corpus nor a cache.
    """
    folder = cache / "corpus" / split
    index = folder / "clips.json"
    if not index.exists():
        shards = sorted(corpus.glob(f"{split}-*.tar"))
        if not shards:
            raise FileNotFoundError(f"{corpus} has no {split}-*.tar, and {folder} holds no decoded clips")
        _decode_all(shards, folder, advance)
    clips = [Clip(**record | {"mids": tuple(record["mids"])}) for record in json.loads(index.read_text())]
    return Clips(np.memmap(folder / "samples.int16", dtype=np.int16, mode="r"), clips)


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
