import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from models import checkpoints
from models.__main__ import COMMANDS, LazyCommand, app, main
from models.detected_targets import separate_detected
from models.engine import Engine
from models.media import Limits
from models.networks import htsat, unet
from models.options import Auto, SeparationOptions
from models.own_recordings import open_recording
from models.queries.query import PAPER_RULES
from tests.conftest import REPOSITORY
from tests.models.bands import tone

DETECTOR = htsat.HyperParameters(
    bands=32, frames=256, runs=2, patch=(2, 2), channels=8, depths=(2, 2), heads=(2, 4), window=4, window_samples=81600
)
SEPARATOR = unet.HyperParameters(fft_size=256, hop=64, query_size=16, channels=(4, 8))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A folder with small networks of the paper's kind, and two class embeddings."""
    torch.manual_seed(0)
    config = {"preset": "paper", "detector": vars(DETECTOR), "separator": vars(SEPARATOR), "query": vars(PAPER_RULES)}
    classes = {"/m/03kmc9": torch.rand(16), "/m/0bt9lr": torch.rand(16)}
    networks = htsat.HTSAT(DETECTOR).eval(), unet.UNet(SEPARATOR).eval()
    folder = tmp_path_factory.mktemp("weights") / "small"
    checkpoints.save(checkpoints.Bundle("small", "1", *networks, config, classes), folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the user is, with a mixture in 16-bit stereo and two examples."""
    monkeypatch.chdir(tmp_path)
    time = 3 * 22050
    stereo = torch.stack([tone(0, time, 22050), tone(1, time, 22050)], dim=1)
    soundfile.write("mixture.flac", stereo.numpy(), 22050, "PCM_16")
    for number in (1, 2):
        soundfile.write(f"example{number}.wav", tone(number, 44100, 44100).numpy(), 44100)
    soundfile.write("silence.wav", np.zeros(44100), 44100)
    soundfile.write("crumb.wav", tone(1, 441, 44100).numpy(), 44100)
    (tmp_path / "notes.txt").write_text("no audio")
    return tmp_path


def run(*arguments: str) -> str:
    answer = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def test_separate_writes_stems_that_add_up(folder, weights):
    options = ("--query", "example1.wav", "--query", "example2.wav", "--label", "siren", "--span", "0.5-2.5")
    options += ("--residual", "--quality", "high")
    said = run("separate", "mixture.flac", *options, "-o", "out", "--weights", weights, "--json")
    answer = json.loads(said)
    assert answer["computation"]["speeds"] == 3
    assert answer["model"] == "small@1"
    assert [stem["name"] for stem in answer["stems"]] == ["target", "span", "siren", "residual"]
    assert set(answer["presence"]) == {"target", "span", "siren"}
    assert (answer["rate"], answer["channels"], answer["frames"]) == (22050, 2, 3 * 22050)
    mixture, _ = soundfile.read("mixture.flac", dtype="int32")
    total = sum(soundfile.read(stem["path"], dtype="int32")[0].astype(np.int64) for stem in answer["stems"])
    assert np.array_equal(total, mixture)


def test_separate_prints_a_table_and_leaves_the_residual_out(folder, weights):
    said = run("separate", "mixture.flac", "--label", "Dog", "--format", "wav", "--weights", weights, "--joint")
    assert "dog" in said
    assert [path.name for path in (folder / "mixture-stems").iterdir()] == ["mixture-dog.wav"]


def test_separate_says_which_sounds_may_not_be_there(folder, weights):
    words = ("separate", "mixture.flac", "--label", "Dog", "--label", "Siren", "--weights", weights)
    presence = json.loads(run(*words, "--json"))["presence"]
    said = " ".join(CliRunner().invoke(app, words).stderr.split())
    assert presence["dog"] < 0.5
    assert [name for name in presence if f"{name} may not be in the recording" in said] == [
        name for name, probability in presence.items() if probability < 0.5
    ]


def test_separate_says_that_a_mixture_is_silent(folder, weights):
    words = ("--label", "Dog", "--weights", weights, "-o", "out")
    answer = json.loads(run("separate", "silence.wav", *words, "--json"))
    assert [warning[:21] for warning in answer["warnings"]] == ["The mixture is silent"]
    said = " ".join(CliRunner().invoke(app, ("separate", "silence.wav", *words)).stderr.split())
    assert "silence.wav: The mixture is silent" in said
    rows = json.loads(run("separate", "silence.wav", "example1.wav", *words, "--json"))
    assert ["silent" in row["warnings"] for row in rows] == [True, False]
    assert json.loads(run("separate", "mixture.flac", *words, "--json"))["warnings"] == []


def test_separate_takes_words_with_and_without_examples(folder, weights):
    words = ("--text", "my dog", "--text", "SIRENS [/a]", "--query", "example1.wav", "--query-text", "a dog")
    answer = json.loads(run("separate", "mixture.flac", *words, "-o", "out", "--weights", weights, "--json"))
    assert [stem["name"] for stem in answer["stems"]] == ["target", "my-dog", "sirens-a"]
    run("separate", "mixture.flac", "--label", "Dog", "--query", "example1.wav", "-o", "plain", "--weights", weights)
    by_name, by_text, heard, both = (
        soundfile.read(folder / place / f"mixture-{name}.flac")[0]
        for place, name in (("plain", "dog"), ("out", "my-dog"), ("plain", "target"), ("out", "target"))
    )
    assert np.array_equal(by_name, by_text) and not np.array_equal(heard, both)


def test_separate_takes_off_what_the_sounds_are_not(folder, weights):
    words = ("separate", "mixture.flac", "--query", "example1.wav", "--weights", weights)
    for place, more in (("plain", ()), ("class", ("--not-label", "siren")), ("sound", ("--not-query", "example2.wav"))):
        run(*words, *more, "-o", place)
    plain, less, least = (soundfile.read(f"{place}/mixture-target.flac")[0] for place in ("plain", "class", "sound"))
    assert not np.array_equal(plain, less) and not np.array_equal(plain, least) and not np.array_equal(less, least)
    run("separate", "mixture.flac", "example2.wav", *words[2:], "--not-label", "Siren", "-o", "many")
    assert np.array_equal(soundfile.read("many/mixture-target.flac")[0], less)


def test_labels_answers_as_the_api_does(weights):
    answer = json.loads(run("labels", "my", "dog", "--weights", weights, "--json"))
    assert (answer["refusal"], answer["near"]) == (None, [])
    assert answer["data"][0] == {
        "label": "Dog",
        "mid": "/m/0bt9lr",
        "slug": "dog",
        "path": ["Animal", "Domestic animals, pets", "Dog"],
        "askable": True,
        "source": "clips",
        "score": pytest.approx(0.99, abs=0.02),
    }
    answer = json.loads(run("labels", "doog", "--weights", weights, "--json"))
    assert "'Dog'" in answer["refusal"] and answer["near"] == ["Dog"]
    everything, others = (
        json.loads(run("labels", *more, "--limit", "1000", "--weights", weights, "--json"))["data"]
        for more in ((), ("--not-askable",))
    )
    assert [one["label"] for one in everything if one not in others] == ["Dog", "Siren"]
    said = CliRunner().invoke(app, ("labels", "dog and siren", "--limit", "1", "--weights", weights))
    assert "Dog" in said.stdout and "a target of its own" in " ".join(said.stderr.split())


def test_a_file_that_begins_with_a_dash_is_named_with_its_folder(folder, capsys):
    (folder / "mixture.flac").rename(folder / "-mixture.flac")
    assert "write ./-mixture.flac" in fails(capsys, "detect", "-mixture.flac")[1]
    assert "write ./" not in fails(capsys, "detect", "-nothing.flac")[1]


def test_separate_takes_what_is_detected_for_targets(folder, weights):
    words = ("--auto", "--residual", "--weights", weights, "--json")
    answer = json.loads(run("separate", "mixture.flac", *words, "--most", "2", "--threshold", "0.01", "-o", "out"))
    names = [stem["name"] for stem in answer["stems"]]
    assert 2 <= len(names) <= 3 and names[-1] == "residual" and set(answer["presence"]) == set(names[:-1])
    mixture, _ = soundfile.read("mixture.flac", dtype="int32")
    total = sum(soundfile.read(stem["path"], dtype="int32")[0].astype(np.int64) for stem in answer["stems"])
    assert np.array_equal(total, mixture)
    nothing = json.loads(run("separate", "mixture.flac", *words, "--threshold", "1", "-o", "none"))
    assert [stem["name"] for stem in nothing["stems"]] == ["residual"]
    assert "No sound is detected with a probability of 1" in nothing["warnings"][0]
    said = CliRunner().invoke(app, ["separate", "mixture.flac", "--auto", "--threshold", "1", "--weights", weights])
    assert said.exit_code == 0 and "there are no targets" in " ".join(said.stderr.split())
    assert not (folder / "mixture-stems").exists()


def test_the_detection_before_a_separation_shows_its_progress(folder, weights):
    stages: list[str] = []
    engine, place = Engine.load(weights), (folder / "example1.wav", folder / "out")
    options = SeparationOptions(format="wav")
    separate_detected(engine, *place, options, Auto(1, 1.0), "a", lambda ratio, stage: stages.append(stage))
    assert stages[0] == "detecting" and stages[-1] == "encoding"


def test_embed_makes_a_query_that_separate_takes(folder, weights):
    said = json.loads(
        run("embed", "example1.wav", "example2.wav", "-o", "mine.safetensors", "--weights", weights, "--json")
    )
    assert said["model"] == "small@1"
    assert 0 <= said["coherence"] <= 1
    with safe_open("mine.safetensors", "pt") as file:
        assert file.metadata()["model"] == "small@1"
    run("separate", "mixture.flac", "--query", "mine.safetensors", "-o", "out", "--weights", weights)
    assert (folder / "out" / "mixture-mine.flac").is_file()
    assert "coherence" in run("embed", "mixture.flac", "--span", "0-2", "-o", "span.safetensors", "--weights", weights)


def test_detect_prints_tags_and_events_and_draws_them(folder, weights):
    options = ("--weights", weights, "--top", "3", "--threshold", "0.4")
    answer = json.loads(run("detect", "mixture.flac", *options, "--json", "--plot", "out.png"))
    assert len(answer["tags"]) == 3
    assert answer["duration"] == pytest.approx(3.0, abs=1e-3)
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")
    assert answer["tags"][0]["label"] in run("detect", "mixture.flac", *options)


def fails(capsys, *arguments: str) -> tuple[int, str]:
    code = main(list(arguments))
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("separate", "mixture.flac"), 2, "give a target"),
        (("separate", "mixture.flac", "--auto", "--label", "Dog"), 2, "give no other"),
        (("separate", "mixture.flac", "--auto", "--not-label", "Dog"), 2, "give no other"),
        (("separate", "mixture.flac", "--label", "Dog", "--not-label", "Dgo"), 1, "Did you mean 'Dog'?"),
        (("separate", "mixture.flac", "--label", "Dog", "--not-label", "dog"), 1, "is the same sound as dog: nothing"),
        (
            ("separate", "mixture.flac", "--label", "Dog", "--not-label", "Siren", "--not-query", "example1.wav"),
            2,
            "at most one of",
        ),
        (("separate", "nowhere.wav", "--label", "Dog"), 2, "nowhere.wav"),
        (("separate", "mixture.flac", "--span", "3"), 2, "START-END"),
        (("separate", "mixture.flac", "--span", "0:01-0:61"), 2, "START-END"),
        (("separate", "mixture.flac", "--span", "0:01-0:09"), 1, "from 1 to 9 s is not inside the recording"),
        (("separate", "mixture.flac", "--label", "Dog", "-o", "-"), 2, "which are files"),
        (("separate", "-", "--label", "Dog"), 2, "recordings are files"),
        (("separate", "mixture.flac", "--span", "2-9"), 1, "not inside the recording"),
        (("separate", "mixture.flac", "--label", "Dgo"), 1, "Did you mean 'Dog'? Give --query an"),
        (("separate", "mixture.flac", "--label", "Bark"), 1, "Give --query an example"),
        (("separate", "mixture.flac", "--text", "a dog barking"), 1, "near it: 'Dog'; give --query an example"),
        (("separate", "mixture.flac", "--label", "Dog", "-o", "dog.flac"), 2, "folder of the stems; --format chooses"),
        (("separate", "mixture.flac", "--text", "dog and siren"), 1, "a target of its own"),
        (("separate", "mixture.flac", "--text", "no dog"), 1, "Ask for the sound itself"),
        (("separate", "mixture.flac", "--label", "Dog", "--query-text", "dog"), 2, "--query"),
        (("separate", "mixture.flac", "--query", "silence.wav"), 1, "silent"),
        (("separate", "mixture.flac", "--query", "crumb.wav"), 1, "the example lasts 0.010 s, which is too short: at"),
        (("separate", "mixture.flac", "--span", "1-1.05"), 1, "the span lasts 0.050 s, which is too short: at"),
        (("separate", "mixture.flac", "--query", "notes.txt"), 1, "notes.txt: "),
        (("separate", "notes.txt", "--label", "Dog"), 1, "notes.txt: This is not a media file"),
        (("separate", "mixture.flac", "--label", "Dog", "--format", "aiff"), 1, "known are wav"),
        (("separate", "mixture.flac", "--label", "Dog", "--bit-depth", "20"), 1, "bit depth"),
        (("separate", "mixture.flac", "--label", "Dog", "--window", "1"), 1, "too short"),
        (("separate", "mixture.flac", "--label", "Dog", "--device", "cuda:63"), 1, "auto or cpu"),
        (("separate", "mixture.flac", "--label", "Dog", "--precision", "half"), 2, "neither auto nor exact"),
        (("detect", "notes.txt"), 1, "notes.txt: This is not a media file"),
        (("embed", "example1.wav", "example2.wav", "-o", "q.safetensors", "--span", "0-1"), 2, "one file"),
        (("embed", "silence.wav", "-o", "q.safetensors"), 1, "silent"),
        (("embed", "example1.wav", "-o", "q.safetensors", "--precision", "half"), 2, "neither auto nor exact"),
        (("embed", "example1.wav", "crumb.wav", "-o", "q.safetensors"), 1, "example 2 lasts 0.010 s"),
    ],
    ids=lambda value: " ".join(value[2:] or value) if isinstance(value, tuple) else None,
)
def test_a_mistake_is_one_line_that_says_what_to_do(arguments, code, words, folder, weights, capsys):
    before = set(folder.iterdir())
    given, said = fails(capsys, *arguments, "--weights", weights)
    assert given == code
    assert words in " ".join(said.split())
    assert said.startswith("error: ") == (code == 1)
    if code == 1:
        assert said.count("\n") == 1
    assert set(folder.iterdir()) == before, "nothing is left behind"


def test_weights_that_are_not_there_are_one_line(folder, capsys):
    code, said = fails(capsys, "detect", "mixture.flac", "--weights", "nowhere")
    assert (code, said.count("\n")) == (1, 1)
    assert "neither a folder nor one of the shipped models" in said and "convert" in said


def test_convert_refuses_what_is_no_checkpoint(folder, capsys):
    code, said = fails(capsys, "convert", "--separator", "notes.txt", "-o", "model")
    assert (code, said.count("\n")) == (1, 1)
    assert not (folder / "model").exists()


def test_ctrl_c_is_no_traceback_and_leaves_nothing(folder, weights, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("models.separation.long_recordings.Masking.__call__", interrupt)
    assert fails(capsys, "separate", "mixture.flac", "--label", "Dog", "--weights", weights) == (130, "stopped\n")
    assert not (folder / "mixture-stems").exists()


def test_help_names_every_command_in_its_own_words():
    for words in (("--help",), ("train", "--help"), ("corpus", "--help"), ("evaluate", "--help")):
        assert "..." not in run(*words).partition("Commands:")[2], "sentences are not cut"
    said = " ".join(run("--help").split())
    for name, (place, sentence) in COMMANDS.items():
        own = " ".join((LazyCommand(name, place, sentence).load().help or "").split())
        assert name in said and sentence in said and own.startswith(sentence), name


def test_help_loads_neither_torch_nor_what_else_takes_time():
    """Torch alone takes a second."""
    code = """
import sys
from models.__main__ import main
for words in ([], ["separate"], ["detect"], ["embed"]):
    assert main([*words, "--help"]) == 0
print(*sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert said.stdout.count("Usage:") == 4
    assert not {"torch", "numpy", "scipy", "av", "matplotlib", "lightning"} & set(said.stdout.splitlines()[-1].split())


def test_separate_and_detect_load_nothing_that_they_do_not_use():
    """Each of these takes half a second or more."""
    code = "import sys, models.engine; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert not {"scipy", "matplotlib", "lightning", "sympy", "pandas"} & set(said.stdout.split())


# Real files


def test_commands_decode_in_a_child_and_print_what_is_missing(folder, weights, field):
    options = ("--label", "Dog", "-o", "out", "--weights", weights)
    answer = json.loads(run("separate", str(field.make("gap.webm")), *options, "--json"))
    assert "no sound from" in answer["warnings"][0]
    assert answer["duration"] == pytest.approx(8, abs=0.01)
    answer = json.loads(run("detect", str(field.make("cut.mp3")), "--weights", weights, "--json"))
    assert "are missing" in answer["warnings"][0]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_embed_prints_what_is_missing_and_takes_spans_of_long_files(folder, weights, field, capsys):
    options = ("-o", "q.safetensors", "--weights", weights, "--json")
    answer = json.loads(run("embed", str(field.make("cut.wav")), *options))
    assert "cut.wav: The recording ends after" in answer["warnings"][0]
    soundfile.write("long.wav", np.random.default_rng(1).uniform(-0.5, 0.5, 601 * 8000), 8000)
    assert json.loads(run("embed", "long.wav", "--span", "599-601", *options))["seconds_used"] <= 2
    for chosen in ((), ("--span", "0-600.5")):
        code, said = fails(capsys, "embed", "long.wav", *chosen, *options)
        assert code == 1
        assert "may last 600 s" in said


def test_a_file_that_crashes_the_decoder_is_one_line(folder, weights, capsys, field):
    code, said = fails(capsys, "detect", str(field.make("crash.aiff")), "--weights", weights)
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith("error: crash.aiff: ")


def test_names_may_be_in_any_encoding_and_hold_brackets(folder, weights, field):
    name = os.fsdecode(b"Bj\xf6rk [live] (1).flac")
    Path(name).write_bytes(Path("mixture.flac").read_bytes())
    said = run("separate", name, "--query", name, "--span", "0-2", "--weights", weights)
    assert "[live]" in "".join(said.split())
    stem = Path(name).stem
    assert (folder / f"{stem}-stems" / f"{stem}-target.flac").is_file()
    assert run("detect", name, "--plot", "out.png", "--weights", weights)


def test_a_track_is_chosen(folder, weights, field):
    options = ("--label", "Dog", "-o", "out", "--weights", weights, "--json")
    assert json.loads(run("separate", str(field.make("obs.mkv")), *options))["channels"] == 1
    assert json.loads(run("separate", str(field.make("obs.mkv")), "--track", "2", *options))["channels"] == 2


def test_recordings_may_be_longer_than_a_service_allows(folder, weights):
    minute = np.zeros((60 * 8000, 1), np.int16)
    minutes = int(Limits().seconds / 60) + 1
    with soundfile.SoundFile("long.flac", "w", 8000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(minutes):
            file.write(minute)
    with open_recording(Path("long.flac")) as recording:
        assert recording.info.duration == 60 * minutes
