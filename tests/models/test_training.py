"""Training: examples of detectors and separators, and the way from a corpus to a shipped model."""

import csv
import json
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from models import checkpoints
from models.__main__ import main
from models.audio import Waveform
from models.corpus.clips import RATE, Clip, Clips
from models.corpus.decoded import load_source
from models.corpus.relations import ancestors, are_related, with_descendants
from models.corpus.unlabelled import Unlabelled
from models.engine import Engine
from models.errors import LabelUnknown
from models.evaluation.detector_under_test import DetectorUnderTest
from models.experiments.zero_shot_training import HELD_OUT
from models.labels import classes, find
from models.networks import DetectorOutput
from models.networks.htsat import HTSAT, HyperParameters
from models.networks.unet import HyperParameters as UNetSizes
from models.networks.yamnet import Yamnet
from models.runs import clip_embeddings, run_folder
from models.spectrum import stft
from models.training import anchors, paper, trainers
from models.training.detector import (
    DetectorLearner,
    LabelTargets,
    Lessons,
    Teacher,
    blend_with_reversed,
    mask_stripes,
    over_patches,
)
from models.training.mixing import UNLABELLED, Mixer
from models.training.recipe import Recipe
from models.validation import mixtures
from models.validation.metrics import attenuation, sdr, si_sdr
from models.validation.separation_figures import area_under_curve
from tests.models import small_corpus

DETECTOR = HyperParameters(
    patch=(8, 2), runs=1, channels=8, depths=(1, 2), heads=(2, 2), window_size=800, merge_time=False, level=0.08
)
LIKE_THE_PAPERS = HyperParameters(frames=128, runs=4, channels=8, depths=(1, 2), heads=(2, 2), window=4, level=0.08)
UNET = UNetSizes(fft_size=256, hop=64, channels=(4, 8), query_size=16)

pytestmark = pytest.mark.usefixtures("one_thread")


def column(name: str) -> int:
    return [label.name for label in classes()].index(name)


# --- detectors ---


def test_targets_hold_what_is_implied_and_leave_out_what_is_unknown() -> None:
    labelled = [frozenset({find("Dog").mid}), frozenset({find("Bark").mid, find("Speech").mid})]
    wanted, known = LabelTargets()(labelled, torch.device("cpu"))
    for name, there, told in [("Dog", 1, True), ("Animal", 1, True), ("Bark", 0, False), ("Cat", 0, True)]:
        assert (wanted[0, column(name)], known[0, column(name)]) == (there, told), name
    assert wanted[1, [column("Bark"), column("Dog"), column("Speech"), column("Animal")]].tolist() == [1, 1, 1, 1]
    assert known[1, column("Bark")] and not known[1, column("Conversation")]


def test_of_a_mixture_with_an_unlabelled_part_only_its_labels_are_known() -> None:
    wanted, known = LabelTargets()([frozenset({UNLABELLED, find("Dog").mid})], torch.device("cpu"))
    assert wanted[0, [column("Dog"), column("Animal")]].tolist() == [1, 1]
    assert known.sum() == wanted.sum()


def test_unlabelled_audio_is_used_with_the_teacher_and_at_most_once_in_a_mixture(tmp_path: Path) -> None:
    for number in range(3):
        path = tmp_path / "more" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.random.default_rng(number).standard_normal(RATE) * 0.1, RATE)
    more = load_source(Unlabelled(tmp_path / "more"), tmp_path / "cache", workers=1)
    assert [clip.mids for clip in more.clips] == [()] * 3
    joined = small_corpus.clips().join(more)
    assert np.array_equal(joined.waveform(joined.clips[-1]), more.waveform(more.clips[-1]))
    drawn = Mixer(joined, None, Recipe(mixtures=50, queries=0, single_source=0.0, third_source=0.5), (1024, 320, 800))
    plan = drawn.plan(0)
    counts = [0] * 50
    for play, source in enumerate(plan.source_of_play):
        counts[plan.mixture_of_source[source]] += not joined.clips[plan.clips[play]].mids
    classes_of = drawn.classes_of(plan)
    with_some = [UNLABELLED in mids for mids in classes_of]
    assert 10 < sum(with_some) < 40
    assert all(bool(count) == some for count, some in zip(counts, with_some, strict=True))


def test_stripes_hide_stretches_of_frames_and_of_bands_and_nothing_else() -> None:
    torch.manual_seed(0)
    bands = torch.ones(64, 200, 64)
    masked = mask_stripes(bands, 2, (64, 8))
    hidden = masked == 0
    frames, rows = hidden.all(2), hidden.all(1)
    assert (hidden == (frames[:, :, None] | rows[:, None])).all(), "whole frames or whole bands"
    assert frames.sum(1).max() <= 128 and rows.sum(1).max() <= 16
    assert 30 < frames.sum(1).float().mean() < 80 and 3 < rows.sum(1).float().mean() < 10
    assert torch.equal(mask_stripes(bands, 0, (64, 8)), bands)


def test_blending_mixes_a_batch_with_its_reverse() -> None:
    rows = torch.arange(4.0)[:, None]
    assert blend_with_reversed(rows, torch.full((4, 1), 0.75)).flatten().tolist() == [0.75, 1.25, 1.75, 2.25]


def small_batches(queries: int = 0) -> Mixer:
    clips = small_corpus.clips()
    recipe = Recipe(
        mixtures=8, queries=queries, third_source=0.0, single_source=1.0, filtered=0.0, room=0.0, seconds=0.96
    )
    return Mixer(clips, small_corpus.embeddings(clips), recipe, (1024, 320, 800))


def train_and_compare(learner: DetectorLearner, steps: int = 60) -> tuple[float, float]:
    """The loss before and after."""
    drawn = small_batches()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    learner.train()
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = learner(drawn.batch(step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[:5]) / 5, sum(losses[-5:]) / 5


@pytest.mark.parametrize("hyper", [DETECTOR, LIKE_THE_PAPERS], ids=["small", "like the paper's"])
def test_a_detector_learns_from_clip_level_labels(hyper: HyperParameters) -> None:
    torch.manual_seed(0)
    learner = DetectorLearner(hyper, Lessons(mixup=0.0, stripes=0, drop_path=0.0))
    before, after = train_and_compare(learner)
    assert after < 0.5 * before, (before, after)
    clips, detector = small_corpus.clips(), learner.network.eval()
    with torch.inference_mode():
        answers = detector(torch.stack([torch.from_numpy(clips.waveform(clip)) for clip in clips.clips])).clipwise
    places = [find(name).index for name, _ in small_corpus.CLASSES]
    right = answers[:, places].argmax(1) == torch.arange(4).repeat_interleave(small_corpus.GROUPS)
    assert right.float().mean() > 0.8


def test_a_trained_detector_hears_every_clip_at_the_level_of_its_training() -> None:
    """Tagging, anchors, the timeline and queries give it clips as they are; its mixtures had no level of their own."""
    torch.manual_seed(0)
    detector = HTSAT(DETECTOR).eval()
    clips = small_corpus.clips()
    sounds = torch.stack([torch.from_numpy(clips.waveform(clip)) for clip in clips.clips[:3]])
    levels = torch.tensor([0.02, 1.0, 30.0])[:, None]
    with torch.inference_mode():
        for part, other in zip(detector(sounds), detector(sounds * levels), strict=True):
            torch.testing.assert_close(part, other, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(detector.embed(sounds), detector.embed(levels * sounds), rtol=1e-3, atol=1e-4)
        # A mixture of a batch, of whatever energy, is heard as the clip of the same sound.
        spectra = stft(sounds, 1024, 320, 800).abs() / levels[:, :, None]
        torch.testing.assert_close(
            detector.bands_of(detector.at_level(spectra)), detector.log_bands(sounds), rtol=1e-3, atol=1e-3
        )
        raw = HTSAT(replace(DETECTOR, level=None)).eval()
        raw.load_state_dict(detector.state_dict())
        assert not torch.allclose(raw(sounds[:1]).embedding, raw(0.02 * sounds[:1]).embedding, atol=1e-2), (
            "the authors'"
        )
    tagged = DetectorUnderTest("it", detector, "cpu")
    waveform = clips.waveform(clips.clips[0])
    np.testing.assert_allclose(tagged.clipwise(waveform, RATE), tagged.clipwise(0.02 * waveform, RATE), atol=1e-4)
    with pytest.raises(ValueError, match="have no level"):
        DetectorLearner(replace(DETECTOR, level=None))


def test_a_student_comes_nearer_to_its_teacher() -> None:
    torch.manual_seed(0)
    clips = small_corpus.clips()
    detector = Yamnet(list(range(521))).eval().requires_grad_(False)
    teacher = Teacher(detector, small_corpus.embeddings(clips)[:, 0])
    # Nothing but the teacher is learned from: neither labels nor masks.
    learner = DetectorLearner(DETECTOR, Lessons(labels=0.0, stripes=0, drop_path=0.0), teacher)
    before, after = train_and_compare(learner, 40)
    assert after < 0.8 * before, (before, after)
    assert not any(name.startswith("teacher") for name, _ in learner.named_parameters())


def test_patches_are_means_of_three_columns() -> None:
    columns = torch.arange(5.0)[None, :, None]
    assert over_patches(columns).flatten().tolist() == [1, 2, 3]


# --- anchors, and the paper's recipe ---


@pytest.mark.parametrize(("loud", "expected"), [((3.0, 5.0), 3.0), ((0.0, 0.5), 0.0), ((9.5, 10.0), 8.0)])
def test_anchors_lie_where_the_curve_is_high(loud: tuple[float, float], expected: float) -> None:
    curve = np.full(500, 0.01)
    curve[int(loud[0] / 0.02) : int(loud[1] / 0.02)] = 1
    start = anchors.loudest_stretch(curve, 0.02, 2 * RATE, 10 * RATE)
    assert start / RATE == pytest.approx(expected, abs=0.75)
    held = curve[int(start / RATE / 0.02) : int((start / RATE + 2) / 0.02)]
    assert held.sum() == pytest.approx(curve.sum() - 0.01 * (500 - len(held)), rel=0.02), "all of the sound is in it"


def test_anchors_are_found_once_for_a_detector_and_its_clips(tmp_path: Path) -> None:
    from tests.models.bands import BandDetector

    class Counting(BandDetector):
        heard = 0

        def forward(self, waveforms: torch.Tensor) -> DetectorOutput:
            self.heard += 1
            return super().forward(waveforms)

    detector, clips = Counting(), small_corpus.clips()
    found = [anchors.load(detector, clips, tmp_path, seconds) for seconds in (0.5, 0.5, 0.25)]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    assert detector.heard == 2 and len(list(tmp_path.iterdir())) == 2


def test_a_flat_curve_is_cut_in_the_middle() -> None:
    assert anchors.loudest_stretch(np.ones(500), 0.02, 2 * RATE, 10 * RATE) / RATE == pytest.approx(4, abs=0.5)


def test_anchors_find_the_sound_that_the_detector_detects() -> None:
    """Silence, then the tone: the band detector's curve of its class follows the sound."""
    from tests.models.bands import BandDetector

    samples = np.zeros(5 * RATE, np.int16)
    samples[3 * RATE : 4 * RATE] = 20_000 * np.sin(2 * np.pi * 250 * np.arange(RATE) / RATE)
    mid = classes()[0].mid
    detector = BandDetector()
    found = anchors.mine(detector, Clips(samples, [Clip("a", 0, 5 * RATE, (mid,), "a", "effect", {})]), 1.0)
    assert found[0] / RATE == pytest.approx(3, abs=0.3)


def test_pairs_have_equal_energy_and_come_from_different_classes() -> None:
    clips = small_corpus.clips()
    drawn = paper.PairMixer(clips, np.zeros(len(clips.clips), int), 16)
    pairs = drawn.batch(0)
    energy = pairs.sources.square().sum(1).unflatten(0, (-1, 2))
    assert torch.allclose(energy[:, 0], energy[:, 1], rtol=1e-3)
    classes_of = drawn.mixer.classes_of(drawn.mixer.plan(0))
    assert all(len(mids) == 2 for mids in classes_of)
    halves = torch.cat([drawn.batch(0, part, 2).sources for part in range(2)])
    assert torch.allclose(halves, pairs.sources, atol=1e-6)


def test_the_papers_separator_learns() -> None:
    torch.manual_seed(0)

    detector = HTSAT(DETECTOR).eval().requires_grad_(False)
    learner = paper.PaperLearner(detector, UNET)
    clips = small_corpus.clips()
    batch = paper.Pairs(paper.PairMixer(clips, np.zeros(len(clips.clips), int), 2).batch(0).sources[:, :16_000])
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3, amsgrad=True)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = learner(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses
    with pytest.raises(ValueError, match="queries of 8 values"):
        paper.PaperLearner(detector, replace(UNET, query_size=8))


# --- embeddings ---


def test_embeddings_are_cached_for_the_same_encoder_and_the_same_clips(tmp_path: Path) -> None:
    clips = small_corpus.clips(("Dog", "Siren"))
    detector = Yamnet(list(range(521))).eval()
    first = clip_embeddings.load(detector, clips, tmp_path)
    assert first.shape == (6, clip_embeddings.VERSIONS, 1024) and first.any(axis=2).all()
    assert np.array_equal(clip_embeddings.load(detector, clips, tmp_path), first)
    assert len(list(tmp_path.iterdir())) == 1
    clip_embeddings.load(detector, clips.without(with_descendants([find("Dog").mid])), tmp_path)
    torch.nn.init.normal_(detector.stem.weight)
    clip_embeddings.load(detector, clips, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3, "other clips, another ear"


# --- runs ---


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("Siren", ["Siren"]),
        ("Siren, Hammer", ["Siren", "Hammer"]),
        ("Chicken, rooster, Pig", ["Chicken, rooster", "Pig"]),
        ("Bird vocalization, bird call, bird song", ["Bird vocalization, bird call, bird song"]),
        ("siren,Race car, auto racing", ["Siren", "Race car, auto racing"]),
    ],
)
def test_names_with_commas_can_be_held_out(text: str, names: list[str]) -> None:
    assert set(run_folder.class_mids(text)) == with_descendants(find(name).mid for name in names)


def test_the_ten_classes_of_the_zero_shot_model_have_eight_source_groups_each(shared: Path) -> None:
    with (shared / "corpus" / "classes.csv").open() as file:
        groups = {row["mid"]: int(row["groups"]) for row in csv.DictReader(file)}
    mids = run_folder.class_mids(HELD_OUT)
    named = [mid for mid in mids if mid in groups and not ancestors(mid) & set(mids)]
    assert len(named) == 10 and min(groups[mid] for mid in named) >= 8


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(LabelUnknown, match="Sirenn"):
        run_folder.class_mids("Dog, Sirenn")


def test_teachers_are_refused_where_something_is_held_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="teacher knows all classes"):
        run_folder.load_query_encoder(tmp_path, ("/m/0bt9lr",))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wav files with a CSV of labels."""
    folder = tmp_path_factory.mktemp("corpus")
    with (folder / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "labels", "group", "split"])
        for name, frequency in small_corpus.CLASSES:
            for group in range(4):
                sound = small_corpus.sound(frequency, group, np.random.default_rng(group))
                path = folder / f"{name}{group}.wav"
                with wave.open(str(path), "wb") as out:
                    out.setparams((1, 2, RATE, len(sound), "NONE", ""))
                    out.writeframes((sound * 32767).astype("<i2").tobytes())
                writer.writerow([path.name, name, f"{name}/{group}", "valid" if group > 1 else "train"])
    return folder


def test_from_labels_alone_to_a_model_with_a_held_out_class(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paper's claim as commands: detector, separator, model, all of them without the class."""
    monkeypatch.chdir(tmp_path)
    common = ["--corpus", str(corpus), "--hold-out", "Siren", "--steps", "2", "--accelerator", "cpu"]
    assert main(["train", "detector", *common, "--batch", "2", "--run", "ear"]) == 0
    assert main(["evaluate", "tagging", "--corpus", str(corpus), "--detector", "ear", "--output", "tags.json"]) == 0
    assert json.loads(Path("tags.json").read_text())
    sizes = ["--channels", "8,8,8,8", "--batch", "2"]
    assert main(["train", "separator", *common, *sizes, "--ear", "ear", "--run", "cut"]) == 0
    assert main(["ship", "--run", "cut", "--name", "model", "--output", "made"]) == 0
    config = json.loads(Path("made/config.json").read_text())
    assert set(config["held_out"]) == with_descendants([find("Siren").mid])
    assert set(config["class_embeddings"]) == {find(name).mid for name in ("Dog", "Bell", "Wind")}
    assert config["presence"]["weights"]
    with Path("made/manifest.csv").open() as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"Dog", "Bell", "Wind"}
    bundle = checkpoints.load("made")
    engine = Engine(bundle, "cpu")
    sound = Waveform(torch.from_numpy(small_corpus.sound(300.0, 0, np.random.default_rng(0)))[None], RATE)
    done = engine.separate(sound, {"dog": engine.embed([sound])})
    assert torch.allclose(done.stems["dog"].samples + done.residual.samples, sound.samples, atol=1e-6)
    assert engine.detect(sound).framewise.shape[0] >= 49, "a row every 20 ms"

    # A second stage begins where the first ended, and what ships may be a mean of both.
    second = ["--ear", "ear", "--run", "second", "--from", "cut", "--learning-rate", "0.1", "--set", "room=0.5"]
    assert main(["train", "separator", *common, *sizes, *second]) == 0
    assert json.loads(Path("second/run.json").read_text())["recipe"]["room"] == 0.5
    blend = ["--blend", "cut", "--blend", "cut"]
    assert main(["ship", "--run", "second", "--name", "model", "--output", "mean", *blend]) == 0
    first, last = (run_folder.load_separator(Path(run))[1].state_dict() for run in ("cut", "second"))
    shipped = checkpoints.load("mean").separator.state_dict()
    name = "head_norm.weight"
    assert not torch.allclose(first[name], last[name], rtol=1e-4)
    torch.testing.assert_close(shipped[name], (2 * first[name] + last[name]) / 3, rtol=1e-6, atol=0)


def test_every_stage_trains_as_if_the_class_had_never_been_there(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, query statistics and averages of both stages, bit for bit, beside a corpus without the class."""
    monkeypatch.chdir(tmp_path)
    never = tmp_path / "never"
    never.mkdir()
    rows = (corpus / "clips.csv").read_text().splitlines()
    (never / "clips.csv").write_text("\n".join(row for row in rows if not row.startswith("Siren")) + "\n")
    for path in corpus.glob("*.wav"):
        (never / path.name).symlink_to(path)
    states = []
    for folder, more in ((corpus, ["--hold-out", "Siren"]), (never, [])):
        common = ["--corpus", str(folder), *more, "--steps", "2", "--batch", "4", "--accelerator", "cpu"]
        detector, cut = f"{folder.name}-ear", f"{folder.name}-cut"
        assert main(["train", "detector", *common, "--run", detector]) == 0
        assert main(["train", "separator", *common, "--channels", "8,8,8,8", "--ear", detector, "--run", cut]) == 0
        whole = [torch.load(Path(run) / "checkpoint.pt", weights_only=True) for run in (detector, cut)]
        states.append([checkpoint[kind] for checkpoint in whole for kind in ("learner", "average")])
    for held, without in zip(*states, strict=True):
        assert held.keys() == without.keys()
        assert all(torch.equal(value, without[name]) for name, value in held.items())


def test_a_changed_query_encoder_is_refused(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--corpus", str(corpus), "--batch", "2", "--accelerator", "cpu"]
    assert main(["train", "detector", *common, "--steps", "1", "--run", "ear"]) == 0
    sizes = ["--channels", "8,8,8,8", "--ear", "ear", "--run", "cut"]
    assert main(["train", "separator", *common, "--steps", "1", *sizes]) == 0
    assert main(["train", "detector", *common, "--steps", "2", "--run", "ear"]) == 0
    assert main(["ship", "--run", "cut", "--output", "made"]) == 1


def test_a_run_goes_on_as_it_began_or_not_at_all(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    begun = ["train", "detector", "--corpus", str(corpus), "--accelerator", "cpu", "--run", "ear", "--batch", "2"]
    assert main([*begun, "--steps", "1"]) == 0
    written = Path("ear/run.json").read_text()
    assert {"seed": 0, "learning_rate": 0.001, "precision": "bf16-mixed"}.items() <= json.loads(written).items()
    for option, said in (
        (["--seed", "1"], "seed 0, not 1"),
        (["--learning-rate", "0.5"], "learning rate 0.001, not 0.5"),
        (["--precision", "32-true"], "precision bf16-mixed, not 32-true"),
        (["--batch", "4"], "(recipe)"),
    ):
        assert main([*begun, "--steps", "2", *option]) == 1
        assert said in " ".join(capfd.readouterr().err.split())
        assert Path("ear/run.json").read_text() == written
    # What an earlier release began tells neither, and goes on.
    old = {name: value for name, value in json.loads(written).items() if name not in trainers.COURSE}
    Path("ear/run.json").write_text(json.dumps(old))
    assert main([*begun, "--steps", "2"]) == 0
    assert json.loads(Path("ear/run.json").read_text()) == json.loads(written)


@pytest.mark.parametrize("names", [("Dog", "Siren"), ("Music", "Piano"), ()])
def test_too_few_classes_to_watch_by_are_said_so(names: tuple[str, ...]) -> None:
    random = np.random.default_rng(0)
    listed = [
        Clip(f"{name}{group}", (3 * at + group) * RATE, RATE, (find(name).mid,), f"{name}/{group}", "effect", {})
        for at, name in enumerate(names)
        for group in range(3)
    ]
    samples = (3000 * random.standard_normal(max(1, len(listed)) * RATE)).astype(np.int16)
    with pytest.raises(ValueError, match=r"two source groups|too few classes"):
        mixtures.draw(Clips(samples, listed), 4)


def test_an_encoder_trained_on_a_held_out_class_is_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--corpus", str(corpus), "--steps", "1", "--batch", "2", "--accelerator", "cpu"]
    assert main(["train", "detector", *common, "--run", "ear"]) == 0
    assert main(["train", "separator", *common, "--hold-out", "Siren", "--ear", "ear", "--run", "cut"]) == 1
    assert "was trained on held-out classes" in capsys.readouterr().err
    assert main(["train", "detector", *common, "--hold-out", "Dog", "--run", "ear"]) == 1
    assert "holds another run" in capsys.readouterr().err
    assert main(["ship", "--run", "ear"]) == 1
    assert "ship the run of a separator" in capsys.readouterr().err


def test_the_papers_recipe_ends_in_a_model_of_the_papers_kind(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--corpus", str(corpus), "--steps", "1", "--batch", "2", "--accelerator", "cpu"]
    assert main(["train", "detector", *common, "--run", "ear"]) == 0
    wanted = ["--recipe", "paper", "--channels", "4,4", "--ear", "ear", "--run", "cut"]
    assert main(["train", "separator", *common, *wanted]) == 0
    assert main(["ship", "--run", "cut", "--name", "model", "--output", "made"]) == 0
    bundle = checkpoints.load("made")
    assert bundle.config["preset"] == "paper" and bundle.presence is None
    with torch.inference_mode():
        assert bundle.separator(torch.randn(1, RATE), torch.randn(1, 256)).shape == (1, RATE)


# --- what is measured with ---


def test_the_validation_list_is_what_it_says(shared: Path) -> None:
    import tarfile

    rows = mixtures.read()
    assert len(rows) == 300
    listed = {key for row in rows for key in (row.target, row.interference, row.query, row.absent)}
    with tarfile.open(shared / "corpus" / "valid-000.tar") as tar:
        described = {
            member.name.split(".")[0]: json.loads(tar.extractfile(member).read())  # type: ignore[union-attr]
            for member in tar
            if member.name.endswith(".json") and member.name.split(".")[0] in listed
        }
    assert set(described) == listed
    for row in rows:
        target, interference, query, absent = (
            described[key] for key in (row.target, row.interference, row.query, row.absent)
        )
        assert target["mids"] == query["mids"] and target["group"] != query["group"]
        assert not are_related(target["mids"][0], interference["mids"][0])
        assert not any(are_related(absent["mids"][0], other["mids"][0]) for other in (target, interference))


def test_measures() -> None:
    target, noise = torch.randn(4, 1_000), torch.randn(4, 1_000)
    noise -= (noise * target).sum(1, keepdim=True) / target.square().sum(1, keepdim=True) * target
    noise *= (target.square().sum(1) / noise.square().sum(1)).sqrt()[:, None]
    estimate = target + 0.1 * noise
    assert torch.allclose(si_sdr(estimate, target), torch.full((4,), 20.0), atol=1e-3)
    assert torch.allclose(si_sdr(3 * estimate, target), torch.full((4,), 20.0), atol=1e-3)
    assert torch.allclose(sdr(estimate, target), torch.full((4,), 20.0), atol=1e-3)
    assert torch.allclose(sdr(0.5 * target, target), torch.full((4,), 6.02), atol=1e-2)
    assert torch.allclose(attenuation(0.1 * target, target), torch.full((4,), 20.0), atol=1e-3)
    assert area_under_curve(torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([1, 1, 0, 0])) == 0.75
