"""`separate` and `detect` of files, folders and globs."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from models.many.inputs import NothingFound, find
from models.media import ANY_LENGTH, AudioUndecodable
from models.media.serving import DecodingChild
from tests.field_truth import CONTAINERS, FAULTS
from tests.models.bands import tone
from tests.models.test_commands import fails, run
from tests.models.test_commands import weights as weights


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user is, with recordings of one window and of several, in a tree, and a file that is none."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "clips"
    (folder / "street").mkdir(parents=True)
    (folder / "empty").mkdir()
    for number in range(3):
        soundfile.write(folder / f"{number}.wav", tone(number, 30000 + 5 * number, 22050).numpy(), 22050)
    stereo = np.stack([tone(1, 44100, 44100).numpy(), tone(2, 44100, 44100).numpy()], axis=1)
    soundfile.write(folder / "street" / "dog.wav", stereo, 44100)
    soundfile.write(folder / "street" / "dog.flac", tone(0, 22050, 22050).numpy(), 22050)
    soundfile.write(folder / "street" / "long.flac", tone(0, 12 * 8000, 8000).numpy(), 8000)
    (folder / "broken.mp3").write_text("no audio")
    (folder / "notes.txt").write_text("no recording")
    return folder


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["recording"]: row for row in csv.DictReader(file)}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


STEMS = ("0-dog", "1-dog", "2-dog", "street/dog.wav-dog", "street/dog.flac-dog", "street/long-dog")


def test_folders_are_separated_with_their_tree_go_on_after_a_failure_and_are_not_done_twice(
    clips: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("separate", "clips", "--label", "Dog", "-o", "out", "--weights", weights)
    code, said = fails(capsys, *command)
    assert code == 1
    assert "broken.mp3: This is not a media file" in said
    assert files(Path("out")) == {*(f"{stem}.flac" for stem in STEMS), "separations.csv"}
    first = rows(Path("out/separations.csv"))
    assert [row["status"] for row in first.values()].count("done") == 6
    assert first["clips/broken.mp3"]["status"] == "failed" and first["clips/broken.mp3"]["error"]
    assert 0 <= float(first["clips/0.wav"]["presence of dog"]) <= 1
    made = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.flac")}

    # Again, with one stem lost and one recording changed: only these are made again.
    Path("out/0-dog.flac").unlink()
    soundfile.write(clips / "1.wav", tone(1, 30000, 22050).numpy(), 22050)
    (clips / "broken.mp3").unlink()
    rows_again = json.loads(run(*command, "--json"))
    assert {row["recording"]: row["status"] for row in rows_again} == {
        **dict.fromkeys(first.keys() - {"clips/broken.mp3"}, "skipped"), "clips/0.wav": "done", "clips/1.wav": "done"
    }  # fmt: skip
    again = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.flac")}
    assert {path.name for path in made if again[path] != made[path]} == {"0-dog.flac", "1-dog.flac"}

    # Other options, other stems.
    assert {row["status"] for row in json.loads(run(*command, "--no-gate", "--json"))} == {"done"}


def test_many_stems_are_those_of_one_at_a_time(clips: Path, weights: str) -> None:
    """In batches with others, samples differ by rounding."""
    options = ("--query", "clips/0.wav", "--residual", "--format", "wav", "--precision", "exact", "--weights", weights)
    run("separate", "clips/*.wav", "clips/street/*.wav", "clips/street/*.flac", *options, "-o", "many")
    for path in (*clips.glob("*.wav"), *(clips / "street").iterdir()):
        run("separate", str(path), *options, "-o", "single")
        name = path.name if path.stem == "dog" else path.stem
        for part in ("target", "residual"):
            one, rate = soundfile.read(f"single/{path.stem}-{part}.wav", dtype="float32")
            many, many_rate = soundfile.read(f"many/{name}-{part}.wav", dtype="float32")
            assert rate == many_rate and one.shape == many.shape
            assert np.abs(one - many).max() < 1e-5


def test_many_detections_are_files_and_a_table(clips: Path, weights: str) -> None:
    (clips / "broken.mp3").unlink()
    options = ("--weights", weights, "--top", "3", "--threshold", "0.4")
    said = run("detect", "clips", *options)
    assert "6 done: detections/detections.csv" in said
    assert "6 skipped" in run("detect", "clips", *options)
    one = json.loads(run("detect", "clips/street/long.flac", *options, "--json"))
    assert json.loads(Path("detections/street/long.json").read_text()) == one
    row = rows(Path("detections/detections.csv"))["clips/street/long.flac"]
    assert (row["tag"], int(row["events"])) == (one["tags"][0]["label"], len(one["events"]))


EVERYTHING = {"0", "1", "2", "broken", "street/dog.wav", "street/dog.flac", "street/long"}


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        (["clips"], EVERYTHING),
        (["clips/street", "clips/0.wav"], {"street/dog.wav", "street/dog.flac", "street/long", "0"}),
        (["clips/**/*.flac"], {"street/dog", "street/long"}),
        (["clips/street/*.flac", "clips/street/dog.flac"], {"dog", "long"}),
        (["clips/notes.txt", "clips/0.wav"], {"notes", "0"}),
        (["."], {f"clips/{name}" for name in EVERYTHING}),
    ],
)
def test_arguments_are_files_folders_and_globs(clips: Path, arguments: list[str], places: set[str]) -> None:
    (clips / ".hidden.wav").write_text("")
    (clips / "out").mkdir()
    (clips / "out" / "0-dog.flac").write_text("")
    found = find(arguments, Path("clips/out"))
    assert {(one.folder / one.name).as_posix() for one in found} == places


@pytest.mark.parametrize("name", [*CONTAINERS, *FAULTS])
def test_recordings_of_every_format_are_found_in_folders(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert [each.path.name for each in find([str(tmp_path)], tmp_path / "out")] == [name]


def _leave_stems(clips: Path) -> None:
    """Leave what separations of many recordings, and of one, have written below a folder."""
    (clips / "dogs" / "street").mkdir(parents=True)
    for name in ("0-dog", "street/long-dog"):
        (clips / "dogs" / f"{name}.flac").write_text("")
    (clips / "dogs" / "separations.csv").write_text("recording,stems\n0,0-dog.flac\nlong,street/long-dog.flac\n")
    (clips / "street-stems").mkdir()
    (clips / "street-stems" / "street-dog.flac").write_text("")


def test_stems_of_earlier_separations_are_recordings_only_where_they_are_named(clips: Path) -> None:
    _leave_stems(clips)
    (clips / "dogs" / "new.flac").write_text("")  # not written by it
    (clips / "street-stems" / "other.flac").write_text("")

    def places(*arguments: str) -> set[str]:
        return {(one.folder / one.name).as_posix() for one in find(arguments, Path("out"))}

    assert places("clips") == {*EVERYTHING, "dogs/new", "street-stems/other"}
    assert places("clips/dogs") == {"0-dog", "street/long-dog", "new"}
    assert places("clips/street-stems", "clips/dogs/0-dog.flac") == {
        *("street-stems/street-dog", "street-stems/other", "0-dog"),
    }
    assert places("clips/dogs/*.flac") == {"0-dog", "new"}


def test_what_comes_through_a_pipe_is_refused_with_advice(clips: Path) -> None:
    os.mkfifo("pipe")
    for argument in ("-", "pipe"):
        with pytest.raises(NothingFound, match="write what comes through a pipe into"):
            find([argument], Path("out"))


def test_what_is_not_there_or_would_be_overwritten_is_told(clips: Path) -> None:
    for argument in ("nowhere", "clips/empty", "clips/*.mp4"):
        with pytest.raises(NothingFound, match="there is no such file"):
            find([argument, "clips"], Path("out"))
    (clips / "other").mkdir()
    (clips / "other" / "0.wav").write_text("")
    with pytest.raises(ValueError, match="same outputs"):
        find(["clips/0.wav", "clips/other/0.wav"], Path("out"))


def test_one_child_decodes_many_files_and_survives_one_that_crashes_it(clips: Path, field, tmp_path: Path) -> None:
    with DecodingChild(ANY_LENGTH) as child:
        for path, frames in ((clips / "0.wav", 30000), (clips / "street" / "dog.flac", 22050)):
            assert child.decode(path, tmp_path / "a.wav").frames == frames
            assert soundfile.info(tmp_path / "a.wav").frames == frames
        for damaged in (field.make("crash.aiff"), clips / "broken.mp3"):
            with pytest.raises(AudioUndecodable):
                child.decode(damaged, tmp_path / "b.wav")
        with pytest.raises(OSError, match=r"^the decoder failed: No such file"):
            child.decode(clips / "nowhere.wav", tmp_path / "b.wav")
        assert not (tmp_path / "b.wav").exists()
        assert child.decode(clips / "1.wav", tmp_path / "b.wav").frames == 30005


def test_detected_targets_are_those_of_each_recording(clips: Path, weights: str) -> None:
    command = ("separate", "clips/0.wav", "clips/street/dog.flac", "--auto", "--most", "1", "-o", "out")
    command += ("--weights", weights, "--format", "wav", "--json")
    done = json.loads(run(*command, "--threshold", "0.01"))
    assert [row["status"] for row in done] == ["done"] * 2
    for row in done:
        name, presence = row["targets"].rsplit(" ", 1)
        assert row["stems"] == f"{row['output']}-{name}.wav" and 0 <= float(presence) <= 1
        assert (Path("out") / row["stems"]).is_file()
    assert [row["status"] for row in json.loads(run(*command, "--threshold", "0.01"))] == ["skipped"] * 2
    again = json.loads(run(*command, "--threshold", "1"))
    assert [(row["status"], row["targets"], row["stems"]) for row in again] == [("done", "", "")] * 2
    assert all("No sound is detected" in row["warnings"] for row in again)
