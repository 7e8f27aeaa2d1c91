"""Runs: cached embeddings, held-out classes, and the way from a corpus to a shipped model."""

import csv
import json
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from models import checkpoints
from models.__main__ import main
from models.audio import Waveform
from models.compute.precision import has_bfloat16
from models.corpus.clips import RATE, Clip, Clips
from models.corpus.relations import ancestors, with_descendants
from models.engine import Engine
from models.errors import LabelUnknown
from models.experiments.zero_shot_training import HELD_OUT
from models.labels import find
from models.networks.yamnet import Yamnet
from models.runs import clip_embeddings, run_folder
from models.runs.clip_embeddings import weights_digest
from models.training import setups
from models.validation import mixtures
from tests.models import small_corpus

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.fixture(scope="module")
def trained_ear(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector's run of one step."""
    run = tmp_path_factory.mktemp("trained") / "ear"
    common = ["--corpus", str(corpus), "--batch", "2", "--accelerator", "cpu", "--steps", "1"]
    assert main(["train", "detector", *common, "--run", str(run)]) == 0
    return run


@pytest.fixture
def ear(trained_ear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run, `ear` in the folder where commands are run."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained_ear, "ear"))


def test_from_labels_alone_to_a_model_with_a_held_out_class(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    # It has the sizes of the first, and here blocks that the first lacks.
    second = ["--ear", "ear", "--run", "second", "--from", "cut", "--learning-rate", "0.1", "--set", "room=0.5"]
    assert main(["train", "separator", *common, "--batch", "2", *second, "--blocks", "1,2,3,1"]) == 0
    setup = json.loads(Path("second/run.json").read_text())
    assert setup["recipe"]["room"] == 0.5
    assert setup["sizes"] == {"channels": [8, 8, 8, 8], "blocks": [1, 2, 3, 1]}
    # It ships without a curve where it was killed before its first validation.
    whole = torch.load("second/checkpoint.pt", weights_only=True)
    whole["state"]["rows"] = []
    torch.save(whole, "second/checkpoint.pt")
    blend = ["--blend", "cut", "--blend", "cut"]
    assert main(["ship", "--run", "second", "--name", "model", "--output", "mean", *blend]) == 0
    assert Path("made/training.csv").exists() and not Path("mean/training.csv").exists()
    first, last = (run_folder.load_separator(Path(run))[1].state_dict() for run in ("cut", "second"))
    shipped = checkpoints.load("mean").separator.state_dict()
    name = "head_norm.weight"
    assert not torch.allclose(first[name], last[name], rtol=1e-4)
    torch.testing.assert_close(shipped[name], (2 * first[name] + last[name]) / 3, rtol=1e-6, atol=0)
    name = "encoder.2.2.conv2.weight"  # of a block that the first lacks, where it is as if it were zero
    torch.testing.assert_close(shipped[name], last[name] / 3, rtol=2e-3, atol=1e-7)  # float16

    # Only networks of the same sizes have a mean, or can begin where another ended.
    assert main(["ship", "--run", "second", "--name", "model", "--output", "other", "--blend", "base"]) == 1
    third = ["--ear", "ear", "--run", "third", "--from", "base", "--blocks", "1,2,3,1"]
    assert main(["train", "separator", *common, *sizes, *third]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    base = checkpoints.load("base").separator
    base_size, run_size = (sum(entry.numel() for entry in state.values()) for state in (base.state_dict(), last))
    assert f"base has other sizes than this run's: {base_size:,} weights, not {run_size:,} weights" in said[0]
    assert said == 2 * said[:1] and not Path("other").exists()


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


@pytest.mark.usefixtures("ear")
def test_a_changed_query_encoder_is_refused(corpus: Path) -> None:
    common = ["--corpus", str(corpus), "--batch", "2", "--accelerator", "cpu"]
    sizes = ["--channels", "8,8,8,8", "--ear", "ear", "--run", "cut"]
    assert main(["train", "separator", *common, "--steps", "1", *sizes]) == 0
    assert main(["train", "detector", *common, "--steps", "2", "--run", "ear"]) == 0
    assert main(["ship", "--run", "cut", "--output", "made"]) == 1


def test_a_run_goes_on_as_it_began_or_not_at_all(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    begun = ["train", "detector", "--corpus", str(corpus), "--accelerator", "cpu", "--run", "ear", "--batch", "2"]
    here, other = ("bf16-mixed", "32-true")[:: 1 if has_bfloat16("cpu") else -1]
    assert main([*begun, "--steps", "1", "--precision", other]) == 0
    written = Path("ear/run.json").read_text()
    assert {"seed": 0, "learning_rate": 0.001, "precision": other}.items() <= json.loads(written).items()
    for option, said in (
        (["--seed", "1"], "seed 0, not 1"),
        (["--learning-rate", "0.5"], "learning rate 0.001, not 0.5"),
        (["--precision", here], f"precision {other}, not {here}"),
        (["--batch", "4"], "(recipe: mixtures 2, not 4)"),
    ):
        assert main([*begun, "--steps", "2", *option]) == 1
        assert said in " ".join(capfd.readouterr().err.split())
        assert Path("ear/run.json").read_text() == written
    for said in ("'step': 2,", "ear is finished (2 steps"):
        assert main([*begun, "--steps", "2"]) == 0
        assert said in " ".join(capfd.readouterr().err.split())
    assert Path("ear/run.json").read_text() == written
    assert main(["describe", "--weights", "ear"]) == 1
    assert "ear is a training's run, not a model: make one of it with `ship --run ear`" in capfd.readouterr().err
    # What an earlier release began tells none of them, lacks newer fields, and goes on as a new run would.
    old = {name: value for name, value in json.loads(written).items() if name not in setups.COURSE}
    del old["place"]["more"], old["recipe"]["songs"]
    Path("ear/run.json").write_text(json.dumps(old))
    assert main([*begun, "--steps", "3"]) == 0
    assert json.loads(Path("ear/run.json").read_text()) == json.loads(written) | {"precision": here}


def test_a_start_that_is_refused_leaves_its_folder_free(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["train", "separator", "--corpus", str(corpus), "--batch", "2", "--accelerator", "cpu", "--steps", "1"]
    assert main([*common, "--ear", "base", "--run", "cut", "--channels", "8,8"]) == 1
    assert "need four levels, not 2" in capsys.readouterr().err
    assert main([*common, "--ear", "base", "--run", "cut", "--channels", "8,8,8,8"]) == 0
    assert json.loads(Path("cut/run.json").read_text())["sizes"]["channels"] == [8, 8, 8, 8]
    assert main([*common, "--ear", "base", "--run", "cut", "--channels", "8,8,8,16"]) == 1
    assert "holds another run" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_so(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "detector", "--corpus", str(corpus), "--accelerator", "cuda", "--run", "ear"]) == 1
    assert "no cuda: use --accelerator auto or cpu" in capsys.readouterr().err


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


@pytest.mark.usefixtures("ear")
def test_an_encoder_trained_on_a_held_out_class_is_refused(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--corpus", str(corpus), "--steps", "1", "--batch", "2", "--accelerator", "cpu"]
    assert main(["train", "separator", *common, "--hold-out", "Siren", "--ear", "ear", "--run", "cut"]) == 1
    assert "was trained on held-out classes" in capsys.readouterr().err
    assert main(["train", "detector", *common, "--hold-out", "Dog", "--run", "ear"]) == 1
    assert "holds another run" in capsys.readouterr().err
    assert main(["train", "separator", *common, "--ear", "ear", "--run", "ear"]) == 1
    assert "ear holds another run, of a detector" in capsys.readouterr().err
    assert main(["ship", "--run", "ear"]) == 1
    assert "base is shipped with the program, and would be lost" in capsys.readouterr().err
    assert main(["ship", "--run", "ear", "--output", "made"]) == 1
    assert "ship the run of a separator" in capsys.readouterr().err


@pytest.mark.usefixtures("ear")
def test_a_model_is_a_query_encoder_too(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["train", "separator", "--corpus", str(corpus), "--batch", "2", "--accelerator", "cpu", "--steps", "1"]
    sizes = ["--channels", "8,8,8,8"]
    assert main([*common, *sizes, "--ear", "base", "--run", "cut"]) == 0
    made = run_folder.load_separator(Path("cut"))[0]
    assert weights_digest(made) == weights_digest(checkpoints.load("base").detector)
    assert main(["ship", "--run", "cut", "--output", "made", "--name", "made"]) == 0
    assert main([*common, *sizes, "--ear", "made", "--run", "again"]) == 0
    for options, said in (
        (["--ear", "cut"], "cut is the run of a separator: a query encoder is a detector's run, such as its own, base"),
        (["--ear", "nowhere"], "nowhere: neither a folder nor one of the shipped models"),
        (["--ear", "base", "--hold-out", "Siren"], "a teacher knows all classes, as a model does"),
        (["--ear", "base", "--query", "probabilities"], "queries of probabilities are the teacher's: base is a model"),
    ):
        assert main([*common, *options, "--run", "other"]) == 1
        assert said in " ".join(capsys.readouterr().err.split())
        assert not Path("other").exists()


@pytest.mark.usefixtures("ear")
def test_the_papers_recipe_ends_in_a_model_of_the_papers_kind(corpus: Path) -> None:
    common = ["--corpus", str(corpus), "--steps", "1", "--batch", "2", "--accelerator", "cpu"]
    wanted = ["--recipe", "paper", "--channels", "4,4", "--ear", "ear", "--run", "cut"]
    assert main(["train", "separator", *common, *wanted]) == 0
    assert main(["ship", "--run", "cut", "--name", "model", "--output", "made"]) == 0
    bundle = checkpoints.load("made")
    assert bundle.config["preset"] == "paper" and bundle.presence is None
    with torch.inference_mode():
        assert bundle.separator(torch.randn(1, RATE), torch.randn(1, 256)).shape == (1, RATE)
