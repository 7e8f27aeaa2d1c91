"""`corpus stats`, `check` and `manifest`, and their parts."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from models.corpus.commands import app
from models.corpus.duplicates import ALIKE, SAME, alike, correlation, thumbnail
from models.corpus.measurements import count_clipping, measure_corpus
from models.corpus.reading import FileAudio
from models.corpus.statistics import count_classes, totals
from models.corpus.synthesis.catalogue import CATALOGUE
from models.errors import ModelsError
from models.labels import find
from tests.media_files import write_packets
from tests.models.small_corpora import RATE, noise, pair, tone, write_shard


def run(*arguments: str | Path) -> Result:
    """The command, one worker; its errors raised."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in arguments], catch_exceptions=False)


def figures(row: str) -> list[str]:
    """The cells of a line of a table."""
    return [cell.strip() for cell in re.split("[│┃]", row) if cell.strip()]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two splits that have nothing in common; one clip has two labels."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    bark, speech = find("Bark").mid, find("Speech").mid
    clips = [
        *pair("a", noise(1, 1.0), "Bark", group="g"),
        *pair("b", noise(2, 2.0), "Bark", group="g"),
        *pair("c", noise(3, 3.0), "Bark", mids=[bark, speech]),
        *pair("d", noise(4, 6.0), "Piano", package="p", path="d.wav", license="CC0"),
    ]
    write_shard(folder / "train-000.tar", clips)
    write_shard(folder / "valid-000.tar", pair("e", noise(5, 1.0), "Piano"))
    return folder


def test_stats_count_classes_groups_and_what_is_below_a_class(corpus: Path, tmp_path: Path) -> None:
    picture, faults = tmp_path / "stats.png", tmp_path / "faults.csv"
    shown = run("stats", corpus, "--split", "train", "--plot", picture, "--faults", faults)
    assert shown.exit_code == 0
    rows = {figures(line)[0]: figures(line)[1:] for line in shown.output.splitlines() if figures(line)}
    assert rows["Bark"] == ["3", "0.10", "2", "2.00", "3"]
    assert rows["Speech"] == ["1", "0.05", "1", "3.00", "1"]
    assert rows["Animal"] == ["0", "3"], "no label, but what barks is an animal"
    assert rows["all"] == ["4", "0.2", "3"] and rows["instrument"] == ["1", "0.1", "1"]
    assert "3 classes, 1 clips with several labels" in shown.output
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
    assert faults.read_text() == "place,reason,detail\n"


def test_stats_as_json_say_the_same(corpus: Path) -> None:
    said = json.loads(run("stats", corpus, "--json").stdout)
    assert said["totals"]["clips"] == 5 and said["totals"]["several_labels"] == 1
    assert said["totals"]["by_split"]["valid"] == {"clips": 1, "minutes": 0.02, "groups": 1}
    assert {row["label"]: row["clips"] for row in said["classes"] if row["clips"]} == {
        "Bark": 3,
        "Piano": 2,
        "Speech": 1,
    }


def test_faults_are_summed_shown_and_listed_and_stop_nothing(corpus: Path, tmp_path: Path) -> None:
    broken = [(f"x{at}.json", b"{}") for at in range(12)]
    write_shard(corpus / "train-001.tar", [*broken, *pair("f", noise(7), "Dog")])
    shown = run("manifest", corpus, "-o", tmp_path / "manifest.csv", "--faults", tmp_path / "faults.csv")
    assert shown.exit_code == 0
    assert "12 faults: 12 × JSON without audio" in shown.stderr and "train-001.tar:x0" in shown.stderr
    assert "x10" not in shown.stderr, "the first ten are shown"
    listed = rows_of(tmp_path / "faults.csv")
    assert len(listed) == 12 and listed[11] == {
        "place": "train-001.tar:x11",
        "reason": "JSON without audio",
        "detail": "",
    }


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-000.tar", [("x.json", b"{}")])
    with pytest.raises(ModelsError, match="1 × JSON without audio"):
        run("stats", tmp_path)


def test_a_manifest_is_sorted_with_one_row_a_class(corpus: Path, tmp_path: Path) -> None:
    assert run("manifest", corpus, "-o", tmp_path / "manifest.csv").exit_code == 0
    rows = (tmp_path / "manifest.csv").read_text().splitlines()
    assert rows[0] == "package,path,licence,label,mid,split"
    assert rows[1:] == sorted(rows[1:]) and "p,d.wav,CC0,Piano,/m/05r5c,train" in rows
    assert ",,,Speech,/m/09x0r,train" in rows and ",,,Piano,/m/05r5c,valid" in rows


def test_the_manifest_of_the_shipped_model_is_of_the_shared_corpus_and_of_what_the_project_makes(
    shared: Path, tmp_path: Path
) -> None:
    run("manifest", shared / "corpus", "--split", "train", "-o", tmp_path / "manifest.csv")
    shipped = Path(__file__).parents[2] / "models" / "weights" / "base.manifest.csv"
    trained, of_corpus = (set(path.read_text().splitlines()) for path in (shipped, tmp_path / "manifest.csv"))
    assert of_corpus <= trained
    made = {row.split(",")[0] for row in trained - of_corpus}
    banks = {"fluid-soundfont-gm", "musescore-general-soundfont-lossless", "freepats"}  # of songs, and a choir
    assert made == banks | {"synthesis"}
    with shipped.open(newline="") as file:
        by_rule = [row for row in csv.DictReader(file) if row["package"] == "synthesis"]
    makers = {f"{maker.__module__.rpartition('.')[2]}/{maker.__name__}": label for label, maker in CATALOGUE}
    assert all(makers[row["path"].rpartition("/")[0]] == row["label"] for row in by_rule)


def test_check_of_a_good_corpus_ends_with_0(corpus: Path) -> None:
    shown = run("check", corpus)
    assert shown.exit_code == 0
    assert "0 groups in two splits" in shown.output and "0 pairs of one sound in two splits" in shown.output


def test_check_names_silent_clipped_short_and_repeated_recordings(corpus: Path) -> None:
    square = np.sign(tone(500)) * 0.99999
    clips = [("silent", np.zeros(RATE)), ("clipped", square), ("short", noise(9, 0.05)), ("again", noise(1, 1.0))]
    write_shard(corpus / "train-001.tar", [member for key, sound in clips for member in pair(key, sound, "Dog")])
    shown = run("check", corpus)
    assert shown.exit_code == 0, "doubtful, but no reason to distrust a validation"
    assert re.search(r"1 silent.*\n  train-001.tar:silent: 1.00 s, -inf dBFS", shown.output)
    assert re.search(r"1 clipped.*\n  train-001.tar:clipped", shown.output)
    assert re.search(r"1 shorter than 0.1 s\n  train-001.tar:short", shown.output)
    assert "1 recordings that repeat another of their split" in shown.output


def recode(sound: np.ndarray, folder: Path, muxer: str, codec: str) -> np.ndarray:
    path = folder / f"recoded.{muxer}"
    write_packets(path, sound[None].astype(np.float32), 48_000 if codec == "libopus" else RATE, muxer, codec)
    return np.concatenate(list(FileAudio(path).blocks(pytest.fail))) / 32768


@pytest.mark.parametrize("change", ["exact", "quieter", "inverted", "cut", "mp3", "vorbis", "group"])
def test_check_finds_a_sound_of_another_split(change: str, corpus: Path, tmp_path: Path) -> None:
    sound = noise(3, 3.0)
    if change == "mp3":
        sound = recode(sound, tmp_path, "mp3", "libmp3lame")
    elif change == "vorbis":
        import soundfile

        soundfile.write(tmp_path / "v.ogg", sound, RATE, format="OGG", subtype="VORBIS")
        sound = np.concatenate(list(FileAudio(tmp_path / "v.ogg").blocks(pytest.fail))) / 32768
    else:
        changed = {"quieter": 0.05 * sound, "inverted": -sound, "cut": 0.5 * sound[160:-320], "group": noise(8, 3.0)}
        sound = changed.get(change, sound)
    group = {"group": "g"} if change == "group" else {}
    write_shard(corpus / "valid-001.tar", pair("twin", sound, "Dog", **group))
    shown = run("check", corpus, "--pairs", tmp_path / "pairs.csv")
    assert shown.exit_code == 1
    pairs = rows_of(tmp_path / "pairs.csv")
    if change == "group":
        assert "1 groups in two splits\n  g: train, valid" in shown.output and not pairs
    else:
        assert [(row["key"], row["other_key"]) for row in pairs] == [("c", "twin")]
        assert f"{int(change == 'exact')} of them sample for sample" in shown.output


def test_other_takes_are_no_duplicates() -> None:
    """Noise through one envelope: the thumbnails are alike, the waveforms are not."""
    envelope = np.interp(np.linspace(0, 7, RATE), np.arange(8), [0.1, 1, 0.3, 0.9, 0.2, 0.5, 1, 0.1])
    takes = [np.random.default_rng(seed).standard_normal(RATE) * envelope * 0.1 for seed in (0, 1)]
    thumbnails = [thumbnail((take * 32767).astype(np.int16)).astype(float) for take in takes]
    assert thumbnails[0] @ thumbnails[1] > ALIKE
    assert correlation(takes[0], takes[1]) < 0.2 < SAME


def test_sounds_of_another_length_are_not_compared() -> None:
    one = np.stack([thumbnail((noise(1, 1.0) * 32767).astype(np.int16))] * 2)
    lengths = np.array([1.0, 1.5])
    assert set(alike(one, one, lengths, lengths)) == {(0, 0), (1, 1)}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1_000), shift=st.integers(0, 300), level=st.floats(0.05, 2), seconds=st.floats(0.3, 3))
def test_thumbnails_bear_level_and_a_few_milliseconds(seed: int, shift: int, level: float, seconds: float) -> None:
    sound = noise(seed, seconds)
    one, other = (thumbnail((take * 32767).astype(np.int16)).astype(float) for take in (sound, level * sound[shift:]))
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-2)
    assert one @ other > ALIKE
    assert correlation(sound, level * sound[shift:]) > SAME


@pytest.mark.parametrize("frames", [1, 100, 3_200])
def test_thumbnails_of_silence_and_of_clicks_are_finite(frames: int) -> None:
    assert not thumbnail(np.zeros(frames, np.int16)).any()
    click = np.zeros(frames, np.int16)
    click[frames // 2] = 20_000
    assert np.isfinite(thumbnail(click)).all()


@pytest.mark.parametrize(
    ("samples", "count"),
    [([32767] * 3, 3), ([32767, 0] * 9, 0), ([-32768] * 2 + [0] + [-32768] * 5, 5), ([1, 2, 3], 0), ([], 0)],
)
def test_clipping_is_runs_at_full_scale(samples: list[int], count: int) -> None:
    assert count_clipping(np.array(samples, np.int16)) == count


def test_sums_do_not_count_a_clip_twice(corpus: Path) -> None:
    heard = measure_corpus(corpus, ["train", "valid"], 1).recordings
    counted = {one.label: one for one in count_classes(heard)}
    sums = totals(heard)
    assert sums["clips"] == 5 and sums["minutes"] == pytest.approx(13 / 60, abs=0.01) and sums["classes"] == 3
    assert counted["Animal"].with_parts == 3 and counted["Human sounds"].with_parts == 1
    assert counted["Musical instrument"].with_parts == counted["Piano"].clips == 2
