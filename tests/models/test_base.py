"""The shipped model: its files, and the claims of its model card."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from models import checkpoints
from models.audio import Waveform
from models.checkpoints import SHIPPED
from models.corpus.clips import Clips
from models.engine import Engine
from models.errors import QueryModelMismatch
from models.labels import find
from models.options import SeparationOptions
from models.queries.query import Query, surroundings
from models.validation import mixtures
from models.validation.metrics import attenuation, sdr, si_sdr
from tests.models.demo_recordings import recording

RATE = 32_000
SOME = range(0, 300, 10)  # of the validation mixtures: enough for a floor, and quick


@pytest.fixture(scope="module")
def rows(validation_clips: Callable[[Iterable[object]], Clips]) -> list[mixtures.Mixture]:
    listed = mixtures.read()
    some = [listed[at] for at in SOME]
    return list(mixtures.render(some, validation_clips(some)))


@dataclass(frozen=True)
class Separated:
    """A validation mixture, its target, both (1, n), the queries of it and of an absent sound, and their stems."""

    mixture: Tensor
    target: Tensor
    queries: dict[str, Query]
    stems: dict[str, Waveform]


@pytest.fixture(scope="module")
def separated(auto: Engine, rows: list[mixtures.Mixture]) -> list[Separated]:
    found = []
    for row in rows:
        mixture, target = (torch.from_numpy(samples)[None] for samples in (row.mixture, row.target))
        queries = {
            name: auto.embed([Waveform(torch.from_numpy(samples)[None], RATE)])
            for name, samples in (("present", row.query), ("absent", row.absent))
        }
        stems = auto.separate(Waveform(mixture, RATE), queries, SeparationOptions(gate=False)).stems
        found.append(Separated(mixture, target, queries, stems))
    return found


def test_its_files_are_what_they_say_and_small_enough() -> None:
    config = json.loads((SHIPPED / "base.json").read_text())
    weights = (SHIPPED / "base.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == config["sha256"]
    assert sum(path.stat().st_size for path in SHIPPED.glob("base.*")) <= 24_000_000


def test_every_training_clip_is_named_with_its_licence() -> None:
    with (SHIPPED / "base.manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 6_000
    assert all(row["package"] and row["path"] and row["licence"] and row["label"] for row in rows)
    classes = {row["mid"] for row in rows if row["package"] != "synthesis"}  # no class's name is of synthetic sounds
    config = json.loads((SHIPPED / "base.json").read_text())
    only_in_songs = {find(name).mid for name in ("Accordion", "Harmonica")}
    assert classes == (set(config["class_embeddings"]) - set(config["predicted"])) | only_in_songs


def test_every_class_that_it_detects_is_askable_by_name(exact: Engine) -> None:
    described = exact.describe()["classes"]
    assert len(described) == 524, "521 of the detector and 3 that it has clips of"
    assert [entry["label"] for entry in described if not entry["askable"]] == []
    assert Counter(entry["source"] for entry in described) == {"clips": 182, "predicted": 342}
    vectors = torch.stack([exact.label(entry["mid"]).vector for entry in described])
    assert vectors.isfinite().all() and (vectors.norm(dim=1) > 1).all()
    assert len(vectors.unique(dim=0)) == 524, "no two classes have the same query"
    for name in (
        "Bark",
        "Typing",
        "Baby cry, infant cry",
        "Lawn mower",
        "Hiss",
        "Hum",
        "Meow",
        "Cough",
        "Conversation",
    ):
        assert exact.label(name).model == "base@8"


def test_its_card_lists_every_class_with_source_and_groups() -> None:
    config = json.loads((SHIPPED / "base.json").read_text())
    with (SHIPPED / "base.classes.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["mid"]: row for row in csv.DictReader(file)}
    assert list(config["class_embeddings"]) == sorted(rows)
    for mid, row in rows.items():
        assert row["source"] == ("predicted" if mid in config["predicted"] else "clips")
        assert (int(row["groups"]) > 0) == (row["source"] == "clips")


def test_a_version_is_a_separator() -> None:
    """Class queries may be made anew, and saved queries stay valid, as long as the separator is this one."""
    digest = hashlib.sha256()
    bundle = checkpoints.load("base")
    for name, entry in sorted(bundle.separator.state_dict().items()):
        digest.update(name.encode() + entry.contiguous().numpy().tobytes())
    assert (bundle.version, digest.hexdigest()[:16]) == ("8", "4fae9b9183d5babc")


def test_a_predicted_class_takes_birds_from_a_guitar(exact: Engine) -> None:
    """The recordings hold a class that no training clip has; a class that is not there gains nothing."""
    mixture, target = recording("mixture"), recording("target")
    queries = {name: exact.label(name) for name in ("chirp-tweet", "lawn-mower")}
    stems = exact.separate(mixture, queries, SeparationOptions(gate=False)).stems
    before = si_sdr(mixture.samples, target.samples)
    gains = {name: (si_sdr(stem.samples, target.samples) - before).min() for name, stem in stems.items()}
    assert gains["chirp-tweet"] > 3 > gains["lawn-mower"]


def test_it_takes_birds_from_a_guitar(exact: Engine) -> None:
    mixture, target = recording("mixture"), recording("target")
    done = exact.separate(mixture, {"birds": exact.embed([recording("example")])})
    stem = done.stems["birds"]
    gained = si_sdr(stem.samples, target.samples) - si_sdr(mixture.samples, target.samples)
    assert gained.min() > 3, "on each side"
    assert torch.allclose(stem.samples + done.residual.samples, mixture.samples, atol=1e-6)
    assert done.presence["birds"] > 0.5


def test_precision_auto_is_close_to_exact(exact: Engine, auto: Engine) -> None:
    """At most 0.05 dB of SI-SDR, and 30 dB of SNR: the promise of `precision="auto"`, on a real separation."""
    mixture, target = recording("mixture"), recording("target")
    stems = [
        engine.separate(mixture, {"birds": engine.embed([recording("example")])}, SeparationOptions(gate=False))
        .stems["birds"]
        .samples
        for engine in (exact, auto)
    ]
    ratios = [si_sdr(stem, target.samples).mean() for stem in stems]
    assert abs(ratios[0] - ratios[1]) < 0.05
    assert sdr(stems[1], stems[0]).min() > 30


def test_a_span_apart_from_its_surroundings_is_close_to_the_exact_one(exact: Engine, auto: Engine) -> None:
    mixture, target = recording("mixture"), recording("target")
    spans = [(1.0, 2.0)]
    around = [mixture.span(*part) for part in surroundings(spans, mixture.duration)]
    stems = []
    for engine in (exact, auto):
        query = engine.embed([mixture], spans, from_mixture=True, surroundings=around)
        stems.append(engine.separate(mixture, {"birds": query}, SeparationOptions(gate=False)).stems["birds"].samples)
    ratios = [si_sdr(stem, target.samples).mean() for stem in stems]
    assert abs(ratios[0] - ratios[1]) < 0.05
    assert sdr(stems[1], stems[0]).min() > 30


def test_it_keeps_its_floor_on_validation_mixtures(separated: list[Separated]) -> None:
    gained = [si_sdr(one.stems["present"].samples, one.target) - si_sdr(one.mixture, one.target) for one in separated]
    cut = [attenuation(one.stems["absent"].samples, one.mixture) for one in separated]
    # The card's means are over all 300; these are those means less three standard errors of thirty.
    assert torch.cat(gained).mean() > 1.0
    assert torch.cat(cut).mean() > 10.0


def test_high_quality_gains_in_the_mean_and_adds_up(auto: Engine, separated: list[Separated]) -> None:
    gained, options = [], SeparationOptions(gate=False, quality="high")
    for one in separated:
        done = auto.separate(Waveform(one.mixture, RATE), {"present": one.queries["present"]}, options)
        stem = done.stems["present"].samples
        gained.append(si_sdr(stem, one.target) - si_sdr(one.stems["present"].samples, one.target))
        assert torch.equal(done.residual.samples, one.mixture - stem)
    assert torch.cat(gained).mean() > 0


def test_high_quality_keeps_silence_and_repeats_to_the_bit(auto: Engine) -> None:
    options, query = SeparationOptions(quality="high"), {"birds": auto.embed([recording("example")])}
    silence = Waveform(torch.zeros(2, 3 * RATE), RATE)
    assert not auto.separate(silence, query, options).stems["birds"].samples.any()
    twice = [auto.separate(recording("mixture"), query, options).stems["birds"].samples for _ in range(2)]
    assert torch.equal(*twice)


def test_a_class_can_be_separated_by_name(auto: Engine) -> None:
    done = auto.separate(recording("mixture"), {"birds": auto.label("Bird vocalization, bird call, bird song")})
    assert done.presence["birds"] > 0.3


def test_the_timeline_has_the_events_of_the_recording(auto: Engine) -> None:
    tags = [tag.label for tag in auto.detect(recording("target"), top=5).tags]
    assert "Bird" in tags, tags


def test_it_understands_the_queries_of_the_version_before(auto: Engine) -> None:
    """A query that says base@4 is used as it is. That both encoders agree is compared by `ship`, not here."""
    mixture = recording("mixture")
    saved = auto.embed([recording("example")])
    earlier = Query(saved.vector, "base@4", saved.coherence, saved.seconds_used)
    stems = auto.separate(mixture, {"now": saved, "before": earlier}, SeparationOptions(gate=False)).stems
    assert torch.equal(stems["now"].samples, stems["before"].samples)
    with pytest.raises(QueryModelMismatch):
        auto.accept(Query(saved.vector, "base@1"))
