"""WebDataset shards of labelled clips: tars of pairs `KEY.opus` (or any audio) and `KEY.json` (`labels`, `mids`,
`group`, ...)."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import soxr

from models.corpus.clips import RATE


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
