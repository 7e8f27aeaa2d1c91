"""Band mixtures of small scores: excerpts, targets, and figures of a model with known behaviour."""

import csv
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import mido
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from models.__main__ import main
from models.corpus.clips import RATE
from models.corpus.decoded import load
from models.corpus.rendering import general_midi, scores
from models.evaluation import band_mixtures, bands, midi_scores
from models.evaluation.model_under_test import ModelUnderTest
from models.evaluation.reports import comparison
from models.labels import find
from models.validation.rendering import Sounds, usable
from tests.models.bands import bundle

BEAT = 0.5  # seconds, as long as a score does not say otherwise
# Channel, program, pitch of every half beat: each in another of the model's bands, most of its power in one.
PARTS = {"Bass guitar": (0, 33, 36), "Flute": (1, 73, 88), "Glockenspiel": (2, 9, 108)}
LOUD = {0: 50, 1: 40}  # velocities, so that nobody drowns the others
SHARP = {"Bass guitar": 180.0, "Flute": 1400.0, "Glockenspiel": 4300.0}  # Hz of the clips that ask for them
rendered = pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not midi_scores.BANK.is_file(),
    reason=f"scores are rendered by {midi_scores.PACKAGES.rsplit(maxsplit=2)[0]} (apt), which are not installed",
)


def message(kind: str, beats: float, **fields: int) -> mido.Message:
    return mido.Message.from_dict({"type": kind, "time": round(beats * 480), **fields})


def write_score(path: Path, beats: int = 24) -> Path:
    """Three instruments, a track each, all playing from the first beat to the last."""
    tracks = []
    for channel, program, pitch in PARTS.values():
        track = mido.MidiTrack([message("program_change", 0, channel=channel, program=program)])
        for _ in range(beats):
            track.append(message("note_on", 0, channel=channel, note=pitch, velocity=LOUD.get(channel, 127)))
            track.append(message("note_off", 1, channel=channel, note=pitch))
        tracks.append(track)
    mido.MidiFile(type=1, ticks_per_beat=480, tracks=tracks).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scores, and a file that is none."""
    folder = tmp_path_factory.mktemp("scores")
    write_score(folder / "first.mid")
    write_score(folder / "second.mid", 30)
    (folder / "torn.mid").write_bytes((folder / "first.mid").read_bytes()[:60])
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips to ask with: tones where the instruments play."""
    folder = tmp_path_factory.mktemp("instruments")
    with (folder / "all.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "labels", "group", "split"])
        for label, hertz in SHARP.items():
            for take in range(2):
                path = f"{find(label).index}-{take}.wav"
                sound = 0.3 * np.sin(2 * np.pi * hertz * (1 + take / 50) * np.arange(2 * RATE) / RATE)
                soundfile.write(folder / path, sound, RATE)
                writer.writerow([path, find(label).mid, path, "valid"])
    return folder


# Scores


def test_notes_are_timed_and_named_as_they_are_played(tmp_path: Path) -> None:
    track = mido.MidiTrack(
        [
            message("program_change", 0, channel=3, program=0),
            message("note_on", 1, channel=3, note=60, velocity=90),
            message("note_on", 1, channel=3, note=60, velocity=0),  # ends it
            mido.MetaMessage("set_tempo", tempo=1_000_000, time=0),
            message("program_change", 0, channel=3, program=56),
            message("note_on", 1, channel=3, note=60, velocity=80),
            message("note_on", 1, channel=3, note=60, velocity=70),  # strikes it again
            message("note_on", 0, channel=9, note=36, velocity=100),
            message("note_on", 0, channel=4, note=10, velocity=100),  # without a program: a piano
            message("program_change", 0, channel=5, program=10),
            message("note_on", 0, channel=5, note=90, velocity=100),  # a music box: of no class
            mido.MetaMessage("end_of_track", time=480),
        ]
    )
    mido.MidiFile(ticks_per_beat=480, tracks=[track]).save(tmp_path / "some.mid")
    score = scores.read(tmp_path / "some.mid")
    assert score.seconds == pytest.approx(4)
    assert [(note.label, note.start, note.end) for note in score.notes] == [
        ("Piano", 0.5, 1.0),
        ("Trumpet", 2.0, 3.0),
        ("Trumpet", 3.0, 4.0),
        ("Drum kit", 3.0, 4.0),
        ("Piano", 3.0, 4.0),
        ("other", 3.0, 4.0),
    ]
    assert len(score.controls) == 3


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["Piano", "Flute"]), st.floats(0, 20), st.floats(0.05, 8)), min_size=1, max_size=12
    ),
    st.floats(0, 18),
    st.floats(0.5, 6),
)
def test_an_excerpt_holds_what_sounds_in_it_once(
    played: list[tuple[str, float, float]], start: float, seconds: float
) -> None:
    """Struck and released within the excerpt, in its own part, whatever had begun before or goes on afterwards."""
    notes = [
        scores.Note(label, channel, 60, 100, begins, begins + lasts)
        for channel, (label, begins, lasts) in enumerate(played)
    ]
    first, last = start - scores.LEAD, start + seconds
    expected = {
        (note.label, note.channel): (max(note.start, first) - first, min(note.end, last) - first)
        for note in notes
        if note.start < last and note.end > first
    }
    found: dict[tuple[str, int], list[float]] = {}
    for label, part in scores.Score("", 30.0, notes, []).excerpt(start, seconds).items():
        time = 0.0
        for event in part:
            time += event.time
            if event.type in ("note_on", "note_off"):
                found.setdefault((label, event.channel), []).append(time)
        assert time == pytest.approx(scores.LEAD + seconds, abs=0.002)  # whatever still sounds ends there
    assert found.keys() == expected.keys()
    for place, times in found.items():
        assert times == pytest.approx(expected[place], abs=0.002)


@pytest.mark.parametrize(
    "content", [b"", b"MThd", b"RIFF1234WAVE", b"MThd\0\0\0\6\0\1\0\1\1\xe0MTrk\0\0\0\4\0\xff\x59\2"]
)
def test_what_is_no_score_is_said(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.mid").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.mid is not a readable score"):
        scores.read(tmp_path / "bad.mid")


def test_all_instruments_are_classes() -> None:
    programs = [program for of in general_midi.PROGRAMS.values() for program in of]
    assert len(set(programs)) == len(programs)
    assert set(programs) <= set(range(128))
    for label in (*general_midi.PROGRAMS, general_midi.DRUM_KIT):
        assert find(label).name == label


def test_what_is_missing_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["evaluate", "bands", "--corpus", str(corpus), "--cache", str(tmp_path)]) == 1
    said = capfd.readouterr().err
    assert "fluidsynth is missing" in said and "apt-get install fluidsynth timgm6mb-soundfont" in said


# What may be asked for


def tone(hertz: float, level: float = 0.3, share: float = 1.0) -> np.ndarray:
    times = np.arange(round(band_mixtures.SECONDS * RATE)) / RATE
    return (level * np.sin(2 * np.pi * hertz * times) * (times < share * band_mixtures.SECONDS)).astype(np.float32)


@pytest.mark.parametrize(
    ("parts", "fair"),
    [
        ({"Piano": tone(300), "Flute": tone(900), "Drum kit": tone(90)}, ["Piano", "Flute", "Drum kit"]),
        ({"Piano": tone(300), "Flute": tone(900)}, []),  # two are no band
        ({"Piano": tone(300), "Flute": tone(900), "Drum kit": tone(90, 0.003)}, []),  # nor is one that nobody hears
        ({"Piano": tone(300, 0.02), "Flute": tone(900), "Drum kit": tone(90)}, ["Flute", "Drum kit"]),  # too faint
        ({"Piano": tone(300, share=0.4), "Flute": tone(900), "Drum kit": tone(90)}, ["Flute", "Drum kit"]),  # too short
        # An electric piano is a piano.
        ({"Piano": tone(300), "Electric piano": tone(900), "Drum kit": tone(90)}, ["Drum kit"]),
        ({"Piano": tone(300), "other": tone(900), "Drum kit": tone(90)}, ["Piano", "Drum kit"]),
    ],
)
def test_targets_are_distinguishable_from_the_rest_of_the_band(parts: dict[str, np.ndarray], fair: list[str]) -> None:
    assert band_mixtures.askable(parts) == fair


def test_classes_then_scores_are_listed_evenly() -> None:
    labels = ("Piano", "Piano", "Piano", "Flute", "Cello", "Harp", "Organ")
    candidates = [
        band_mixtures.Row(f"{score}.mid", "", float(at), label, "")
        for score in range(5)
        for at, label in enumerate(labels if score else labels[:4])
    ]
    rows = band_mixtures.choose(candidates, 15)
    assert rows == band_mixtures.choose(candidates, 15) == sorted(rows, key=lambda row: (row.score, row.start))
    assert set(Counter(row.label for row in rows).values()) == {3}
    assert max(Counter(row.score for row in rows).values()) <= band_mixtures.MOST_OF_SCORE
    assert len({(row.score, row.label) for row in rows}) == 15
    with pytest.raises(ValueError, match=r"have 1\d instruments that qualify as targets, not 25"):
        band_mixtures.choose(candidates, 25)


def test_the_committed_list_is_sound() -> None:
    rows = band_mixtures.read_rows()
    assert len(rows) == band_mixtures.ROWS == len(set(rows))
    assert len({row.score for row in rows}) >= 10
    assert {row.label for row in rows} <= {*general_midi.PROGRAMS, general_midi.DRUM_KIT}
    assert all(len(row.digest) == 16 and row.start >= 0 and row.query for row in rows)


# Figures


@rendered
def test_parts_add_up_to_the_band(folder: Path) -> None:
    """The synthesizer is linear, and an excerpt plays what the score plays there."""
    synthesizer = midi_scores.synthesizer(midi_scores.BANK)
    score = scores.read(folder / "first.mid")
    parts = {label: synthesizer.render(part, 2.0) for label, part in score.excerpt(3.0, 2.0).items()}
    assert parts.keys() == PARTS.keys()
    together = [
        scores.Note("all", note.channel, note.pitch, note.velocity, note.start, note.end) for note in score.notes
    ]
    band = scores.Score("", score.seconds, together, score.controls).excerpt(3.0, 2.0)
    whole = synthesizer.render(band["all"], 2.0)
    summed = np.sum(list(parts.values()), axis=0)
    assert len(whole) == 2 * RATE
    assert np.square(summed - whole).sum() < 1e-3 * np.square(whole).sum()
    for label, sound in parts.items():
        spectrum = np.abs(np.fft.rfft(sound))
        assert 0.4 < spectrum.argmax() / 2 / SHARP[label] < 2.2, label


@rendered
def test_a_model_of_frequency_bands_separates_a_band(folder: Path, corpus: Path, tmp_path: Path) -> None:
    said: list[str] = []
    playing = band_mixtures.Bands((folder,), midi_scores.synthesizer(midi_scores.BANK), said.append)
    clips = load(corpus, "valid", tmp_path)
    rows = band_mixtures.draw(playing, usable(clips), 6, seed=1)
    assert said and all("torn.mid" in line for line in said)
    assert {row.label for row in rows} == PARTS.keys()
    band_mixtures.write_rows(rows, tmp_path / "rows.csv")
    assert band_mixtures.read_rows(tmp_path / "rows.csv") == rows

    mix = playing.render(rows[0])
    assert np.allclose(mix.mixture, mix.target + mix.interference)
    report = bands.Report(bands.measure(ModelUnderTest(bundle(), "cpu"), rows, playing, Sounds(clips)), draws=100)
    assert report.queries == ["own", "example"]  # it has no embeddings of instruments
    own, asked = (report.means[f"band/{name}/si_sdri"] for name in report.queries)
    assert own.value > 6 and asked.value > 6
    assert report.means["oracle/si_sdri"].value > asked.value
    assert report.means["band/example/wrong"].value == 0
    path = tmp_path / "bands.json"
    path.write_text(json.dumps({"model": "bands@1", "list": "d"} | report.as_json(), allow_nan=False))
    assert comparison.read(path).numbers == list(range(6))
    console = Console(width=80, record=True, file=io.StringIO())
    for table in report.tables("bands@1"):
        console.print(table)
    assert "Glockenspiel" in (shown := console.export_text()) and "…" not in shown

    write_score(folder / "first.mid", 25)
    with pytest.raises(ValueError, match=r"first\.mid differs from the listed score"):
        band_mixtures.Bands((folder,), midi_scores.synthesizer(midi_scores.BANK), said.append).render(rows[0])


@rendered
def test_the_commands_draw_and_measure(
    folder: Path, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    common = ["--corpus", str(corpus), "--cache", str(tmp_path), "--scores", str(folder)]
    assert main(["evaluate", "draw-bands", *common, "--output", str(tmp_path / "rows.csv"), "--rows", "4"]) == 0
    options = ["--list", str(tmp_path / "rows.csv"), "--rows", "2", "--output", str(tmp_path / "out.json")]
    assert main(["evaluate", "bands", *common, *options, "--device", "cpu"]) == 0
    assert ", 2 instruments of bands" in capfd.readouterr().out
    whole = json.loads((tmp_path / "out.json").read_text())
    assert whole["means"]["band/example/si_sdri"]["rows"] == len(whole["rows"]["number"]) == 2
    assert main(["evaluate", "bands", *common[:4], "--scores", str(tmp_path)]) == 1
    assert "no MIDI files" in capfd.readouterr().err
