"""Songs by rule, their rendering part by part, and their shards."""

import csv
import shutil
from pathlib import Path

import mido
import numpy as np
import pytest

from models.__main__ import main
from models.corpus import decoded
from models.corpus.clips import RATE
from models.corpus.decoded import decode
from models.corpus.packing import Settings, pack
from models.corpus.relations import are_related
from models.corpus.rendering import sources, studio
from models.corpus.rendering.drum_patterns import FOUR_FOUR, THREE_FOUR
from models.corpus.rendering.general_midi import DRUM_KIT, PROGRAMS
from models.corpus.rendering.scores import Note, Score
from models.corpus.rendering.singing import Voice, voices
from models.corpus.rendering.song_writer import (
    BASSES,
    COLOURS,
    COMPING,
    LOOSEST,
    MELODIES,
    PADS,
    draw_players,
    write_song,
)
from models.corpus.rendering.songs import SHARE_OF_SCORES, Songs
from models.corpus.rendering.synthesizer import Synthesizer, synthesizer
from models.corpus.sources.formats import open_source
from models.corpus.sources.recordings import Recording
from models.errors import CorpusInvalid
from models.labels import find
from tests.models.small_corpora import pair, tone, write_shard
from tests.models.test_evaluation_bands import write_score

BANKS = [path for path in (Path("/usr/share/sounds/sf2") / name for name in sources.KNOWN_BANKS) if path.is_file()]
rendered = pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not BANKS, reason=f"{sources.PACKAGES} (apt) are not installed"
)
LOSSLESS = Settings("flac", max_seconds=3.0)


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def made_folder(path: Path) -> Path:
    path.mkdir()
    return path


def songs(seed: int, count: int, voices: tuple[Voice, ...] = (), **more: object) -> Songs:
    return Songs(seed, count, sources.banks([str(BANKS[0])]), voices=voices, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_a_song_is_in_time_and_in_key(seed: int) -> None:
    song = write_song(random(seed))
    beat = 60 / song.tempo
    grid = beat / 12  # sixteenths, and eighths that swing
    melodic = [note for note in song.score.notes if note.label != DRUM_KIT]
    starts = np.array([note.start for note in song.score.notes])
    assert np.abs(starts - np.round(starts / grid) * grid).max() <= LOOSEST + 1e-6
    on_beat = np.abs(starts - np.round(starts / beat) * beat) <= LOOSEST + 1e-6
    assert on_beat.mean() > 0.25
    classes = {note.pitch % 12 for note in melodic if note.channel != 0}  # basses approach chords by semitones
    assert len(classes) <= 7, "more pitch classes than a key has"


def test_players_are_of_unrelated_classes_and_may_be_forbidden() -> None:
    met: set[str] = set()
    for seed in range(150):
        players = draw_players(random(seed), lambda channel, program: program != 33)
        mids = [find(player.label).mid for player in players]
        assert not any(are_related(one, other) for at, one in enumerate(mids) for other in mids[:at])
        assert all(player.program in PROGRAMS[player.label] for player in players if player.label != DRUM_KIT)
        assert not any(player.program == 33 for player in players)
        met.update(player.label for player in players)
    assert len(met) > 25


def test_roles_have_the_classes_of_all_programs() -> None:
    assert {*BASSES, *COMPING, *MELODIES, *PADS, *COLOURS} == set(PROGRAMS)


def test_drum_patterns_fill_a_bar() -> None:
    for patterns, steps in ((FOUR_FOUR, 16), (THREE_FOUR, 12)):
        assert all(len(voice) == steps and set(voice) <= set("xoO.") for pattern in patterns for voice in pattern)


def test_a_seed_writes_one_song() -> None:
    assert write_song(random(3)) == write_song(random(3))
    assert write_song(random(3)) != write_song(random(4))


@pytest.mark.parametrize("seed", range(10))
def test_what_is_produced_neither_clips_nor_hardly_sounds(seed: int) -> None:
    noise = random(seed)
    loud, soft, quiet = (
        (level * noise.standard_normal(2 * RATE)).astype(np.float32) for level in (3.0, 0.3, 0.3 * 10**-2.5)
    )
    brief = soft.copy()
    brief[RATE // 2 :] = 0
    made, _ = studio.produce({"loud": loud, "soft": soft, "quiet": quiet, "brief": brief}, noise)
    assert set(made) == {"loud", "soft"}
    assert np.abs(np.sum(list(made.values()), axis=0)).max() <= 0.95 + 1e-5
    assert all(np.abs(part).max() <= studio.MOST + 1e-5 for part in made.values())
    assert studio.produce({}, noise)[0] == {}


def test_compression_lowers_what_is_loud_alone() -> None:
    mix = np.concatenate([0.05 * np.ones(RATE), np.ones(RATE), 0.05 * np.ones(RATE)]).astype(np.float32)
    gain = studio.compression(mix, -3.0, 4.0)
    assert gain.shape == mix.shape and gain[: RATE // 2] == pytest.approx(1.0)
    loud = 20 * np.log10(gain[int(1.5 * RATE)])
    level = 20 * np.log10(1 / np.sqrt(np.square(mix).mean())) + 3
    assert loud == pytest.approx(-level * 3 / 4, abs=0.2)
    assert gain[-1] == pytest.approx(1.0, abs=0.01)


def test_a_voice_sings_on_bars() -> None:
    phrase = np.full(RATE, 10_000, np.int16)
    for seed in range(5):
        sung = Voice("g", {}, (phrase,)).sing(8 * RATE, 1.5, random(seed))
        begins = np.flatnonzero(np.diff(sung, prepend=0) > 0) / RATE
        assert len(begins) and np.allclose(begins / 1.5, np.round(begins / 1.5), atol=1e-4)


def test_sources_of_evaluations_and_of_no_licence_are_refused(tmp_path: Path) -> None:
    for name in ("TimGM6mb.sf2", "mine.sf2"):
        (tmp_path / name).write_bytes(b"RIFF")
    (tmp_path / "songs").mkdir()
    with pytest.raises(ValueError, match="belongs to the evaluations"):
        sources.banks([f"{tmp_path / 'TimGM6mb.sf2'}=GPL-2"])
    (tmp_path / "renamed.sf2").symlink_to(tmp_path / "TimGM6mb.sf2")
    with pytest.raises(ValueError, match="belongs to the evaluations"):
        sources.banks([f"{tmp_path / 'renamed.sf2'}=GPL-2"])
    with pytest.raises(ValueError, match="give FILE=LICENCE"):
        sources.banks([str(tmp_path / "mine.sf2")])
    assert sources.banks([f"{tmp_path / 'mine.sf2'}=CC0"])[0].licence == "CC0"
    with pytest.raises(FileNotFoundError, match="no MIDI files"):
        sources.score_folders([str(tmp_path / "songs")])
    write_score(tmp_path / "songs" / "one.mid", 2)
    with pytest.raises(ValueError, match="give FOLDER=LICENCE"):
        sources.score_folders([str(tmp_path / "songs")])
    assert sources.score_folders([f"{tmp_path / 'songs'}=CC0"])[0].package == "songs"
    write_score(made_folder(tmp_path / "freedink-data_1.0") / "one.mid", 2)
    with pytest.raises(ValueError, match="belongs to the evaluations"):
        sources.score_folders([f"{tmp_path / 'freedink-data_1.0'}=CC0"])
    mine = made_folder(tmp_path / "mmartin") / "mine.sf2"  # begins like mma, but is another word
    mine.write_bytes(b"RIFF")
    assert sources.banks([f"{mine}=CC0"])[0].path == mine


def test_without_fluidsynth_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = tmp_path / "some.sf2"
    bank.write_bytes(b"RIFF")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["corpus", "render", "--output", str(tmp_path), "--hours", "0.1", "--bank", f"{bank}=CC0"]) == 1
    assert "apt-get install fluidsynth" in " ".join(capsys.readouterr().err.split())


@rendered
def test_the_same_seed_makes_the_same_parts_which_add_up_to_a_mix_without_clipping() -> None:
    first, second = songs(5, 1).render(0, 3.0), songs(5, 1).render(0, 3.0)
    assert len(first) >= 2
    for one, other in zip(first, second, strict=True):
        assert (one.label, one.group, one.source) == (other.label, other.group, other.source)
        assert np.array_equal(one.sound, other.sound) and one.sound.shape == (3 * RATE,)
    assert 0.25 < np.abs(np.sum([part.sound for part in first], axis=0)).max() <= 0.96
    assert not np.array_equal(first[0].sound, songs(6, 1).render(0, 3.0)[0].sound)


@rendered
def test_a_bank_that_cannot_be_read_is_not_replaced_by_the_systems(tmp_path: Path) -> None:
    (tmp_path / "damaged.sf2").write_bytes(BANKS[0].read_bytes()[:100_000])
    damaged = Songs(1, 1, sources.banks([f"{tmp_path / 'damaged.sf2'}=CC0"]))
    with pytest.raises(ChildProcessError, match=r"fluidsynth cannot render with damaged\.sf2"):
        damaged.encode(0, LOSSLESS)


@rendered
def test_what_fluidsynth_fails_at_is_no_silence(tmp_path: Path) -> None:
    """As on a full disk: it leaves a shorter file, and ends with 0."""
    program = tmp_path / "fluidsynth"
    real = shutil.which("fluidsynth")
    program.write_text(f"#!/bin/sh\n'{real}' \"$@\"\necho 'fluidsynth: error: No space left on device.' >&2\n")
    program.chmod(0o755)
    part = Score("", 1.0, [Note("Piano", 0, 60, 100, 0.0, 1.0)], []).excerpt(0.0, 1.0)["Piano"]
    with pytest.raises(ChildProcessError, match="No space left on device"):
        Synthesizer(str(program), BANKS[0]).render(part, 1.0)


@rendered
def test_the_parts_of_an_excerpt_begin_where_the_score_says() -> None:
    """Silence, then a note of each: all are heard within two hundredths of a second of it."""
    programs = {"Piano": (0, 0, 60), "Bass guitar": (1, 33, 36), DRUM_KIT: (9, 0, 38)}
    notes = [Note(label, channel, pitch, 110, 1.5, 2.0) for label, (channel, _, pitch) in programs.items()]
    controls = [
        (0.0, mido.Message("program_change", channel=channel, program=program))
        for channel, program, _ in programs.values()
    ]
    parts = Score("", 4.0, notes, controls).excerpt(0.5, 2.0)
    assert set(parts) == set(programs)
    for label, part in parts.items():
        sound = synthesizer(BANKS[0], sources.PACKAGES, ambience=False).render(part, 2.0)
        assert studio.sounding_frames(sound).argmax() / 100 == pytest.approx(1.0, abs=0.02), label


@rendered
def test_excerpts_of_scores_name_them_and_their_licence(tmp_path: Path) -> None:
    write_score(tmp_path / "one.mid", 24)
    made = songs(0, 8, scores=sources.score_folders([f"{tmp_path}=CC0"]))
    number = next(at for at in range(8) if np.random.default_rng([0, at]).random() < SHARE_OF_SCORES)
    parts = made.render(number, 2.0)
    assert {part.label for part in parts} == {"Bass guitar", "Flute", "Glockenspiel"}
    for part in parts:
        assert part.source["license"] == f"MIT; score {tmp_path.name} CC0"
        assert part.source["phrase"] == f"score:{tmp_path.name}/one.mid"


@rendered
def test_groups_of_the_validation_split_are_not_rendered() -> None:
    plain = {part.group for part in songs(1, 1).render(0, 2.0)}
    left_out = frozenset(group for group in plain if "program" in group)
    assert left_out and not left_out & {part.group for part in songs(1, 1, apart_from=left_out).render(0, 2.0)}


@rendered
def test_packed_songs_are_clips_in_their_mix(tmp_path: Path) -> None:
    corpus = tmp_path / "voices"
    corpus.mkdir()
    sung_clips = [
        pair(f"v{number}", tone(300 + number, 1.0), "Singing", group="choir", license="CC0") for number in (0, 1)
    ]
    sung_clips.append(pair("choir", tone(500, 1.0), "Choir", kind="instrument"))
    write_shard(corpus / "train-000.tar", [member for members in sung_clips for member in members])
    sung = voices(corpus)
    assert [(voice.group, len(voice.phrases)) for voice in sung] == [("choir", 2)]
    made = songs(2, 2, voices=sung)
    tally = pack(made, tmp_path / "packed", LOSSLESS, 1, lambda _: None, made.encode, made.about())
    assert tally.rows == 2 and tally.clips >= 4
    rows = [row for row in open_source(tmp_path / "packed", "train") if isinstance(row, Recording)]
    by_song: dict[str, list[np.ndarray]] = {}
    for row in rows:
        by_song.setdefault(row.source["song"], []).append(decode(row)[1].astype(np.float32) / 32768)
        assert row.kind == "instrument" and row.source["license"] in ("MIT", "CC0")
        assert (row.mids == (find("Singing").mid,)) == (row.group == "choir")
    number = int(next(iter(by_song)).rpartition("-")[2])
    mix = np.sum([part.sound for part in made.render(number, LOSSLESS.max_seconds)], axis=0)
    assert np.sum(by_song[f"2-{number:06d}"], axis=0) == pytest.approx(mix, abs=5e-4)
    clips = decoded.load(tmp_path / "packed", "train", tmp_path / "cache", workers=1)
    assert {clip.song for clip in clips.clips} == set(by_song) and all(clip.frames == 3 * RATE for clip in clips.clips)
    again = pack(made, tmp_path / "packed", LOSSLESS, 1, lambda _: None, made.encode, made.about())
    assert again.clips == tally.clips
    others = {
        "seed": songs(3, 2, voices=sung),
        "apart_from": songs(2, 2, voices=sung, apart_from=frozenset({"gm-program-000/fluid+musescore"})),
    }
    for name, other in others.items():
        with pytest.raises(CorpusInvalid, match=f"another {name}"):
            pack(other, tmp_path / "packed", LOSSLESS, 1, lambda _: None, other.encode, other.about())


@rendered
def test_the_command_writes_shards_and_a_manifest(tmp_path: Path) -> None:
    options = ["--hours", "0.002", "--seed", "4", "--seconds", "3", "--bank", str(BANKS[0]), "--workers", "1"]
    assert main(["corpus", "render", "--output", str(tmp_path), *options]) == 0
    with (tmp_path / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows and {row["licence"] for row in rows} == {"MIT"}
    assert (tmp_path / "train-000.tar").exists()
