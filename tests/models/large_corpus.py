"""A decoded corpus as large as AudioSet, over sparse files, and what it costs to train on: a program.

`python -m tests.models.large_corpus FOLDER --clips 2000000` makes the corpus where there is none yet, opens it, plans
batches of the paper's detector and separator, and prints figures as JSON. Its sound is silence that no disk holds:
reading and networks are left out, which grow with a batch and not with the corpus.
"""

import argparse
import hashlib
import json
import statistics
import time
from collections import Counter
from pathlib import Path

import numpy as np

from models.bench.machine import peak_mib
from models.corpus.clips import ENERGY_HOP, RATE
from models.corpus.decoded import open_folder
from models.labels import classes
from models.training import detector, paper
from models.training.mixing import Mixer, Plan

SECONDS = 10
FRAMES = SECONDS * RATE
BATCHES = 50


def make(folder: Path, clips: int) -> None:
    """Write a corpus whose classes are as uneven as AudioSet's: the n-th has a clip where the first one has n."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    mids = [label.mid for label in classes()]
    shares = 1 / np.arange(1, len(mids) + 1)
    chosen = random.choice(len(mids), (clips, 3), p=shares / shares.sum())
    with (folder / "clips.jsonl").open("w", encoding="utf-8") as file:
        for number, places in enumerate(chosen.tolist()):
            clip = {"key": f"Y{number:011d}", "start": number * FRAMES, "frames": FRAMES}
            clip |= {"mids": [mids[place] for place in dict.fromkeys(places)], "group": f"video{number:011d}"}
            source = {"package": "audioset", "path": f"unbalanced/{clip['key']}.flac", "license": "CC-BY-4.0"}
            file.write(json.dumps(clip | {"kind": "effect", "source": source}) + "\n")
    for name, size in (("samples.int16", 2 * clips * FRAMES), ("energies.float32", 4 * clips * FRAMES // ENERGY_HOP)):
        with (folder / name).open("wb") as file:
            file.truncate(size)


def digest(plan: Plan) -> str:
    """Return a digest of a plan: what a batch is made of."""
    numbers = (plan.clips, plan.offsets, plan.speeds, plan.source_of_play, plan.mixture_of_source, plan.gains)
    return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:16]


def measure(folder: Path) -> dict[str, object]:
    """Return seconds of a start, milliseconds of a plan, peak memory in MiB, and what was drawn."""
    began, processor = time.monotonic(), time.process_time()
    clips = open_folder(folder)
    opened = time.monotonic()
    mixer = Mixer(clips, None, detector.PAPER_RECIPE, (1024, 320, 1024))
    ready = time.monotonic()
    pairs = paper.PairMixer(clips, np.full(len(clips.clips), FRAMES // 2), 128)
    found: dict[str, object] = {
        "clips": len(clips.clips),
        "terabytes": round(clips.samples.nbytes / 1e12, 3),
        "open_seconds": round(opened - began, 2),
        "start_seconds": round(ready - began, 2),
        "start_processor_seconds": round(time.process_time() - processor, 2),
    }
    drawn: Counter[str] = Counter()
    for name, drawing in (("detector", mixer), ("separator", pairs.mixer)):
        times = []
        for step in range(BATCHES):
            start = time.process_time()
            plan = drawing.plan(step)
            times.append(1000 * (time.process_time() - start))
            if name == "detector":
                drawn.update(mid for index in plan.clips for mid in clips.clips[index].mids[:1])
        found[f"{name}_plan_ms"] = round(statistics.median(times), 2)
        found[f"{name}_plan"] = digest(drawing.plan(BATCHES))
    found["classes_drawn"] = len(drawn)
    found["most_drawn"] = drawn.most_common(1)[0][1] / drawn.total()
    found["sound"] = float(mixer.renderer.sources(mixer.plan(0)).abs().max())
    found["peak_mebibytes"] = round(peak_mib())
    return found


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=2_000_000)
    arguments = parser.parse_args()
    if not arguments.folder.exists():
        make(arguments.folder, arguments.clips)
    print(json.dumps(measure(arguments.folder)))


if __name__ == "__main__":
    main()
