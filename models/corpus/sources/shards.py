"""WebDataset shards of labelled clips: tars `SPLIT-NNN.tar` of pairs `KEY.opus` (or any audio) and `KEY.json`.

The JSON has `mids` (or `labels`, by name), and optionally `group`, `kind` and the clip's source.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.corpus.reading import MemberAudio
from models.corpus.sources.recordings import Fault, Recording, Unusable, key_of, kind_of, mids_of, unique
from models.media.suffixes import is_recording

_NAME = re.compile(r"(?P<split>.+?)(?:-(?P<number>\d+))?\.tar")
# Keys of the JSON that are fields of a recording, or follow from them.
_FIELDS = {"labels", "mids", "group", "kind", "seconds"}


@dataclass(frozen=True)
class Shards:
    """One split of a folder of shards."""

    root: Path
    split: str

    @property
    def name(self) -> str:
        return self.root.name

    def files(self) -> Iterator[Path]:
        named = [(path, _NAME.fullmatch(path.name)) for path in self.root.glob("*.tar")]
        # By number: from a thousand shards on, names sort differently.
        found = [(int(name["number"] or 0), path) for path, name in named if name and name["split"] == self.split]
        yield from (path for _, path in sorted(found))

    def __iter__(self) -> Iterator[Recording | Fault]:
        yield from unique(row for path in self.files() for row in read_shard(path))


def splits(root: Path) -> tuple[str, ...]:
    """Return the splits of a folder's shards."""
    return tuple(sorted({name["split"] for path in root.glob("*.tar") if (name := _NAME.fullmatch(path.name))}))


def read_shard(path: Path) -> Iterator[Recording | Fault]:
    """Yield the pairs of one shard; only the JSON is read."""
    waiting: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                key, _, suffix = member.name.removeprefix("./").rpartition(".")
                part = "json" if suffix.lower() == "json" else "audio"
                if part == "audio" and not is_recording(member.name):
                    yield Fault(f"{path.name}:{member.name}", "neither audio nor JSON")
                    continue
                pair = waiting.setdefault(key, {})
                if part in pair:
                    yield Fault(f"{path.name}:{member.name}", "duplicate key", key)
                    continue
                stored = tar.extractfile(member) if part == "json" else None
                pair[part] = stored.read() if stored else MemberAudio.of(path, member)
                if len(pair) == 2:
                    del waiting[key]
                    yield _recording(key, pair["json"], pair["audio"], f"{path.name}:{key}")
    except (tarfile.TarError, EOFError) as error:
        yield Fault(path.name, "truncated shard", str(error))
    for key, pair in waiting.items():
        yield Fault(f"{path.name}:{key}", "JSON without audio" if "json" in pair else "audio without JSON")


def _recording(key: str, description: bytes, audio: MemberAudio, place: str) -> Recording | Fault:
    try:
        fields = json.loads(description)
        labels = fields.get("mids") or fields.get("labels") or []
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise TypeError("labels are not a list of texts")
        mids = mids_of(labels)
    except Unusable as error:
        return Fault(place, error.reason, error.detail)
    except (ValueError, TypeError, AttributeError) as error:
        return Fault(place, "malformed JSON", str(error))
    return Recording(
        key=key_of(key),
        mids=mids,
        group=str(fields.get("group") or key),
        kind=str(fields.get("kind") or kind_of(mids)),
        source={name: value for name, value in fields.items() if name not in _FIELDS},
        audio=audio,
        place=place,
    )
