"""Training of a model for the zero-shot experiment: no stage is trained on the held-out classes."""

from dataclasses import replace
from pathlib import Path

from models.runs.run_folder import Place
from models.training import shipping, trainers
from models.training.detector import SCHEDULE
from models.training.loop import Advance, Report, Schedule
from models.training.setups import DetectorSetup, Machine, SeparatorSetup

# Ten classes of the shared corpus with eight source groups or more each: animals, vehicles, tools, instruments.
HELD_OUT = (
    "Pig, Chicken, rooster, Cricket, Race car, auto racing, Aircraft engine, Hammer, Chop, Organ, Flute, Tambourine"
)
DETECTOR_SHARE = 0.45  # of the time


def train_without(
    place: Place, folder: Path, minutes: float, machine: Machine, report: Report, advance: Advance
) -> Path:
    """Train detector and separator without `place.held_out`, ship them, and return the model's folder.

    Existing runs in the folder are resumed.
    """
    query_encoder, separator, model = folder / "detector", folder / "separator", folder / "model"
    first = replace(SCHEDULE, minutes=DETECTOR_SHARE * minutes)
    trainers.train_detector(query_encoder, DetectorSetup(place), first, machine, report, advance)
    second = Schedule(minutes=(1 - DETECTOR_SHARE) * minutes)
    trainers.train_separator(separator, SeparatorSetup(place, query_encoder), second, machine, report, advance)
    shipping.ship(separator, "zero-shot", "1", model)
    return model
