"""Options of ablations: their effect, their entry in the run, and evaluation of a run without shipping it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import checkpoints
from models.__main__ import main
from models.corpus.clips import RATE, Clip, Clips
from models.corpus.relations import with_descendants
from models.evaluation import reporting_mixtures
from models.experiments import zero_shot
from models.labels import find
from models.networks.resunet import ResUNet
from models.networks.yamnet import Yamnet
from models.runs import assembly, clip_embeddings, run_folder
from models.training.mixing import Mixer
from models.training.recipe import Recipe
from models.training.separator import SeparatorLearner, waveform_l1
from tests.models import small_corpus, tones

LONGEST = 0.7  # seconds of a clip: nobody learns much here
SMALL = {"bands": 64, "channels": (8, 8, 16, 16), "blocks": (1, 1, 1, 1), "code": 8, "recurrent": 8}

pytestmark = pytest.mark.usefixtures("one_thread")


# --- queries of probabilities ---


@torch.inference_mode()
def test_a_query_encoder_may_return_probabilities_in_place_of_embeddings() -> None:
    torch.manual_seed(0)
    latent = Yamnet(list(range(521))).eval()
    asked = Yamnet(list(range(521)), probabilities=True).eval()
    asked.load_state_dict(latent.state_dict())
    sound = 0.1 * torch.randn(2, RATE)
    heard, other = asked(sound), latent(sound)
    assert torch.equal(heard.framewise, other.framewise) and heard.embedding.shape == (2, 521)
    assert torch.allclose(heard.embedding, heard.framewise[..., :521].mean(1), atol=1e-6)
    # Of one patch, its probabilities are those of its embedding.
    patch = sound[:, : int(0.96 * RATE)]
    wanted = torch.sigmoid(latent.classes(latent.embed(patch)))
    assert torch.allclose(asked.embed(patch), wanted, atol=1e-6)
    magnitude = torch.rand(1, 64, 513)
    (same, columns), (feature_map, embedded) = asked.encode_spectrum(magnitude), latent.encode_spectrum(magnitude)
    assert torch.equal(same, feature_map)
    assert torch.allclose(columns, torch.sigmoid(latent.classes(embedded)), atol=1e-6)


def test_both_kinds_of_queries_of_one_encoder_are_cached(tmp_path: Path) -> None:
    clips = small_corpus.clips(("Dog",))
    latent = Yamnet(list(range(521))).eval()
    asked = Yamnet(list(range(521)), probabilities=True).eval()
    asked.load_state_dict(latent.state_dict())
    assert clip_embeddings.load(latent, clips, tmp_path).shape[2] == 1024
    for _ in range(2):
        assert clip_embeddings.load(asked, clips, tmp_path).shape[2] == 521


# --- the separator ---


def test_a_query_that_is_only_a_bias_has_half_the_conditioning_values() -> None:
    torch.manual_seed(0)
    ear = Yamnet(list(range(521))).eval()
    film, bias = (ResUNet(ear, **SMALL, scales=scales).eval() for scales in (True, False))
    assert 2 * sum(bias.film_sizes) == sum(film.film_sizes)
    for name, weight in bias.named_parameters():
        if name.endswith("conv2.weight"):  # zero before training
            torch.nn.init.normal_(weight, std=0.1)
    with torch.inference_mode():
        magnitude = bias.spectrum(0.1 * torch.randn(1, RATE)).abs().expand(2, -1, -1)
        masks = bias.mask(magnitude, bias.condition(torch.rand(2, 1024)))
        assert (masks[0] - masks[1]).abs().max() > 1e-3
        bias.fold()
        folded = bias.mask(magnitude, bias.condition(torch.zeros(2, 1024)))
    assert folded.isfinite().all()


def test_l1_is_of_waveforms_and_blind_to_level() -> None:
    mixtures, errors = torch.randn(3, 1000), torch.randn(3, 1000)
    found = waveform_l1(errors, mixtures)
    pairs = zip(errors, mixtures, strict=True)
    wanted = [error.abs().mean() / mixture.square().mean().sqrt() for error, mixture in pairs]
    assert found.item() == pytest.approx(torch.stack(wanted).mean().item())
    quieter = torch.tensor([1.0, 0.1, 0.001])[:, None]
    assert waveform_l1(quieter * errors, quieter * mixtures).item() == pytest.approx(found.item(), rel=1e-4)


def test_a_separator_learns_by_l1() -> None:
    torch.manual_seed(0)
    clips = small_corpus.clips()
    found = small_corpus.embeddings(clips)
    learner = SeparatorLearner(Yamnet(list(range(521))).eval().requires_grad_(False), SMALL, "l1").train()
    learner.network.learn_queries(torch.from_numpy(found[:, 0].astype("float32")))
    batch = Mixer(clips, found, Recipe(mixtures=2, seconds=0.5, room=0.0), learner.stft).batch(0)
    # What the loss says is what is heard: the mean error of the waveforms.
    with torch.no_grad():
        network = learner.network
        mixtures = batch.mixture.repeat_interleave(2, 0)
        mask = network.mask(mixtures.abs(), network.condition(batch.queries))
        waveforms = [network.waveform(part, batch.samples) for part in (mask * mixtures, batch.targets, mixtures)]
        plainly = waveform_l1(waveforms[0] - waveforms[1], waveforms[2])
        assert learner(batch).item() == pytest.approx(plainly.item(), rel=1e-2)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = learner(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses


# --- the recipe ---


def test_the_loudest_of_more_places_is_louder_and_one_place_is_random() -> None:
    """A clip whose level rises: where it is cut tells how many places were tried."""
    samples = (np.random.default_rng(0).standard_normal(20 * RATE) * np.linspace(0, 8000, 20 * RATE)).astype(np.int16)
    mids = [find(name).mid for name in ("Dog", "Siren")]
    listed = [Clip(str(at), at * 10 * RATE, 10 * RATE, (mid,), str(at), "effect", {}) for at, mid in enumerate(mids)]
    clips = Clips(samples, listed)
    means = []
    for louder_of in (1, 2, 8):
        recipe = Recipe(mixtures=64, varied_speed=0.0, seconds=2.0, louder_of=louder_of)
        mixer = Mixer(clips, small_corpus.embeddings(clips), recipe, (1024, 320, 800))
        offsets = [offset for step in range(4) for offset in mixer.plan(step).offsets]
        means.append(np.mean(offsets) / (8 * RATE))
    # The mean of the largest of n even draws is n / (n + 1).
    assert means == pytest.approx([1 / 2, 2 / 3, 8 / 9], abs=0.06)


def test_examples_may_be_used_without_correction() -> None:
    clips = small_corpus.clips()
    versions = np.random.default_rng(0).random((len(clips.clips), 4, 1024)).astype(np.float16)
    recipe = Recipe(mixtures=16, other_group=0.0, absent=0.0, query_versions=1, query_dropout=0.0)
    plan = Mixer(clips, versions, recipe, (1024, 320, 800)).plan(0)
    unchanged = {row.astype(np.float32).tobytes() for row in versions[:, 0]}
    assert all(query.tobytes() in unchanged for query in plan.queries)
    varied = Mixer(clips, versions, Recipe(mixtures=16), (1024, 320, 800)).plan(0)
    assert not all(query.tobytes() in unchanged for query in varied.queries)


# --- commands ---


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones as files, in a folder where commands are run."""
    folder = tmp_path_factory.mktemp("switches")
    (folder / "corpus").mkdir()
    tones.write(folder / "corpus", LONGEST)
    return folder


def train(name: str, teacher: Path, *options: str) -> int:
    common = ["--corpus", "corpus", "--ear", str(teacher), "--run", name, "--steps", "1", "--batch", "2"]
    sizes = ["--channels", "8,8,8,8", "--accelerator", "cpu"]
    return main(["train", "separator", *common, *sizes, *options])


def test_a_run_is_measured_as_the_model_that_it_would_ship_as(
    place: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    switches = ["--query", "probabilities", "--loss", "l1", "--bias-only", "--hide", "Siren", "--set", "louder_of=1"]
    assert train("run", shared / "teacher", *switches) == 0
    setup = json.loads(Path("run/run.json").read_text())
    assert (setup["query"], setup["loss"], setup["sizes"]["scales"]) == ("probabilities", "l1", False)
    assert setup["recipe"]["louder_of"] == 1 and setup["place"]["held_out"] == []
    hidden = with_descendants([find("Siren").mid])
    assert set(setup["place"]["separator_held_out"]) == hidden

    checkpoints.save(assembly.assemble(Path("run"), "made", "1").bundle, "made", half=True)
    bundle = checkpoints.load("made")
    assert bundle.separator.query_size == 521 and bundle.detector.probabilities
    assert "held_out" not in bundle.config and zero_shot.classes_never_seen(bundle.config) == hidden
    # Queries of probabilities are their own classifier: every other class, also one that is hidden, is predicted.
    assert set(bundle.clip_embeddings) == {find(name).mid for name in ("Speech", "Dog", "Wind")}
    assert find("Siren").mid in bundle.predicted
    assert len(list(Path(".cache/embeddings").iterdir())) == 1, "the cache holds all clips, whatever is held out"

    valid, training = (tones.corpus(split, longest=LONGEST) for split in ("valid", "train"))
    reporting_mixtures.write(reporting_mixtures.draw(valid, training, 2), Path("list.csv"))
    common = ["--corpus", "corpus", "--device", "cpu", "--output"]
    measured = []
    for weights in ("run", "made"):
        options = [f"{weights}.json", "--weights", weights, "--list", "list.csv"]
        assert main(["evaluate", "mixtures", *common, *options]) == 0
        measured.append(json.loads(Path(f"{weights}.json").read_text()))
    assert measured[0]["model"] == "run@run"
    values = [whole["rows"]["values"] for whole in measured]
    assert values[0].keys() == values[1].keys()
    for name, column in values[0].items():
        other = np.array(values[1][name], float)
        assert np.array(column, float) == pytest.approx(other, abs=0.1, nan_ok=True), name

    options = ["unseen.json", "--weights", "run", "--beside", "made", "--rows", "2", "--valid-only"]
    assert main(["evaluate", "zero-shot", *common, *options]) == 0
    unseen = json.loads(Path("unseen.json").read_text())
    assert unseen["held_out_from"] == "the separator" and unseen["rows"]["label"] == ["Siren"] * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--query", "guesses"], "a query is one of embeddings, probabilities"),
        (["--loss", "l2"], "the loss is one of snr, l1"),
        (["--recipe", "paper", "--loss", "l1"], "leave out other options"),
        (["--recipe", "paper", "--bias-only"], "leave out other options"),
        (["--hold-out", "Siren"], "a teacher knows all classes"),
    ],
)
def test_switches_that_mean_nothing_are_refused(
    place: Path, shared: Path, options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(place)
    assert train("refused", shared / "teacher", *options) in (1, 2)
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_detector_that_was_trained_has_no_probabilities_to_ask_with(tmp_path: Path) -> None:
    (tmp_path / run_folder.SETUP).write_text("{}")
    with pytest.raises(ValueError, match="are the teacher's"):
        run_folder.load_query_encoder(tmp_path, query="probabilities")
