"""The MUSDB18 protocol on songs rendered from notes, in the data set's own layouts, with separators whose figures are
known beforehand: one that knows the stems, and one that returns the mixture."""

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from models.audio import Waveform
from models.engine import Engine
from models.errors import SilentQuery
from models.evaluation.musdb18 import musdb, musdb_songs
from models.evaluation.musdb18.musdb_scores import StemScores, mean, median_of_medians, score
from models.evaluation.musdb18.musdb_songs import STEMS, Song
from models.options import SeparationOptions
from tests.models import bands, rendered_songs

TITLES = ("Kestrel - Low Water", "Merle - Long Way Round")


@pytest.fixture(scope="module")
def hq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two songs to learn from and two to separate; in the second of each, the voice rests for a bar of 2 s."""
    root = tmp_path_factory.mktemp("musdb18hq")
    for number, title in enumerate(TITLES):
        rendered_songs.write_hq(root, "train", title, rendered_songs.song(2, seed=number, rests=number))
        rendered_songs.write_hq(root, "test", f"{title} (live)", rendered_songs.song(3, seed=10 + number, rests=number))
    return root


@pytest.fixture(scope="module")
def stem_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One song as MUSDB18 has it: five AAC streams in one file."""
    root = tmp_path_factory.mktemp("musdb18")
    rendered_songs.write_stem_file(root, "test", TITLES[0], rendered_songs.song(2))
    return root


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(bands.bundle(), "cpu", "exact")


# Scores


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_an_error_of_a_known_share_has_a_known_sdr() -> None:
    references = noise(2, 4000, 2)
    (first, second) = score(references, references * [[[1.1]], [[0.5]]], rate=1000, direct=True)
    assert first.windows == pytest.approx([20, 20])
    assert first.sdr == pytest.approx(20)
    assert second.windows == pytest.approx([6.02, 6.02], abs=0.01)
    assert second.si_sdr > 80


@pytest.mark.parametrize("frames", [2 * 2000, 2 * 2000 + 700, 1300], ids=["whole windows", "with a rest", "short"])
def test_museval_and_the_formula_agree_on_every_window(frames: int) -> None:
    references = noise(2, frames, 1)
    references[1, :2000] = 0 if frames > 2000 else references[1, :2000]
    estimates = references + 0.3 * noise(2, frames, 1, seed=1)
    by_museval, by_formula = (score(references, estimates, 1000, direct) for direct in (False, True))
    for one, other in zip(by_museval, by_formula, strict=True):
        assert one.windows == pytest.approx(other.windows, abs=1e-6, nan_ok=True)
        assert (one.sdr, one.si_sdr) == (other.sdr, other.si_sdr)


def test_a_window_in_which_one_stem_is_silent_counts_for_none() -> None:
    references, estimates = noise(2, 6000, 2), noise(2, 6000, 2, seed=1)
    references[0, 2000:4000] = 0
    for stem in score(references, estimates, 1000, direct=True):
        assert np.isnan(stem.windows).tolist() == [False, True, False]
        assert stem.median == pytest.approx(np.mean([stem.windows[0], stem.windows[2]]))


@pytest.mark.parametrize("direct", [False, True])
def test_a_stem_that_never_sounds_has_no_score_and_leaves_the_others_theirs(direct: bool) -> None:
    references = noise(3, 4000, 1)
    references[1] = 0
    first, silent, third = score(references, references + 0.1 * noise(3, 4000, 1, seed=1), 1000, direct)
    assert np.isnan([silent.median, silent.sdr, silent.si_sdr]).all()
    assert first.median == pytest.approx(20, abs=1)
    assert third.median == pytest.approx(20, abs=1)


def test_songs_are_summed_up_by_the_median_of_their_windows_medians() -> None:
    nothing = float("nan")
    songs = [
        StemScores([1.0, 2.0, 90.0, nothing], 0, 0),  # 2
        StemScores([5.0, nothing], 0, 0),  # 5
        StemScores([-4.0, 4.0], 0, 0),  # 0
        StemScores([nothing], 0, 0),  # no song of this stem
    ]
    figure = median_of_medians(songs)
    assert (figure.value, figure.songs) == (2.0, 3)
    assert figure.low == 0
    assert figure.high == 5


def test_the_mean_leaves_out_songs_without_the_stem() -> None:
    figure = mean([1.0, 3.0, float("nan")])
    assert (figure.value, figure.songs) == (2.0, 2)
    assert (figure.low, figure.high) == (1.0, 3.0)


# Songs


@pytest.mark.parametrize("layout", ["hq", "stem_file"])
def test_both_layouts_are_recognised_and_give_the_same_song(layout: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(layout)
    songs = musdb_songs.songs(root, "test")
    expected = rendered_songs.song(3, seed=10) if layout == "hq" else rendered_songs.song(2)
    assert songs[0].name.startswith(TITLES[0])
    for stem in STEMS:
        found = songs[0].read(stem)
        kept = min(found.frames, len(expected[stem]))
        error = found.samples[:, :kept].T.numpy() - expected[stem][:kept]
        assert found.rate == rendered_songs.RATE
        # AAC loses some of the drums' noise.
        assert np.square(error).sum() < np.square(expected[stem]).sum() * (1e-4 if layout == "hq" else 0.2)


def test_a_folder_without_songs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither MUSDB18-HQ .* nor MUSDB18"):
        musdb_songs.songs(tmp_path, "test")


def test_a_song_without_one_of_its_stems_is_refused_by_name(tmp_path: Path) -> None:
    stems = rendered_songs.song(1)
    del stems["bass"]
    rendered_songs.write_hq(tmp_path, "test", TITLES[0], stems)
    with pytest.raises(FileNotFoundError, match=f"{TITLES[0]} has no bass"):
        musdb_songs.songs(tmp_path, "test")


def test_without_ffmpeg_the_error_names_ffmpeg(hq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] in ("musdb", "stempeg")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="ffmpeg and ffprobe, which are not installed"):
        musdb_songs.songs(hq, "test")


# Queries


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.integers(1, 12))
def test_the_loudest_part_is_no_quieter_than_any_other(samples: list[int], length: int) -> None:
    recording = torch.tensor([samples, samples[::-1]], dtype=torch.float32)
    first = musdb_songs.loudest(recording, length)
    power = recording.square().sum(dim=0)
    starts = range(max(len(samples) - length, 0) + 1)
    assert first in starts
    assert power[first : first + length].sum() == max(power[start : start + length].sum() for start in starts)


def test_the_query_is_the_mean_over_highlights_that_sound(engine: Engine) -> None:
    low, high = (Waveform(bands.tone(band, 44_100, 44_100)[None].repeat(2, 1), 44_100) for band in (0, 1))
    silence = Waveform(torch.zeros(2, 44_100), 44_100)
    query, used, silent = musdb_songs.mean_query(engine, [low, silence, high])
    assert (used, silent) == (2, 1)
    assert query.vector == pytest.approx([0.5, 0.5, 0, 0], abs=0.01)
    assert query.coherence == pytest.approx(0.5**0.5, abs=0.01)


def test_highlights_of_nothing_but_silence_make_no_query(engine: Engine) -> None:
    with pytest.raises(SilentQuery, match="none of the 1 highlights"):
        musdb_songs.mean_query(engine, [Waveform(torch.zeros(1, 32_000), 32_000)])


def test_a_folder_of_highlights_is_read_in_order_and_must_hold_each_stem(tmp_path: Path) -> None:
    rendered_songs.write_hq(tmp_path, "", "vocals", {"b": noise(4410, 2) / 9, "a": np.full((4410, 2), 0.25)})
    (tmp_path / "vocals" / "mixture.wav").unlink()
    first, second = musdb_songs.read_highlights(tmp_path, "vocals")
    assert first.samples == pytest.approx(torch.full((2, 4410), 0.25))
    assert second.channels == 2
    with pytest.raises(FileNotFoundError, match="no highlights of drums"):
        next(musdb_songs.read_highlights(tmp_path, "drums"))


# Separation of all that there is


def test_four_stems_that_are_all_there_is_leave_nothing(engine: Engine) -> None:
    mixture = Waveform(torch.stack([bands.tone(band, 44_100, 44_100, 0.1) for band in range(4)]).sum(0)[None], 44_100)
    queries = {
        name: engine.embed([Waveform(bands.tone(band, 44_100, 44_100)[None], 44_100)])
        for band, name in enumerate(STEMS)
    }
    del queries["other"]
    alone, beside = (
        engine.separate(mixture, queries, SeparationOptions(joint=True, exhaustive=exhaustive))
        for exhaustive in (True, False)
    )
    # The fourth band has nowhere to go but into the residual, unless there is to be none.
    inside = slice(4410, -4410)
    assert alone.residual.samples[:, inside].square().mean() < 0.1 * beside.residual.samples[:, inside].square().mean()


# The whole protocol


def read_once(songs: list[Song]) -> list[Song]:
    """Return songs whose files are decoded once: each reading is a run of ffmpeg."""
    return [replace(song, read=cache(song.read)) for song in songs]


def oracle(songs: list[Song]):
    """Knows a mixture's stems, but for a hundredth of the mixture in each."""
    known = [{name: song.read(name).samples for name in ("mixture", *STEMS)} for song in songs]

    def separate(mixture: Waveform) -> dict[str, Waveform]:
        song = next(song for song in known if song["mixture"].equal(mixture.samples))
        return {stem: Waveform(song[stem] + 0.01 * mixture.samples, mixture.rate) for stem in STEMS}

    return separate


def test_an_oracle_scores_high_and_the_mixture_scores_as_itself(hq: Path) -> None:
    songs = read_once(musdb_songs.songs(hq, "test"))
    known = musdb.summary(list(musdb.measure(songs, oracle(songs), direct=True)))
    mixed = musdb.summary(list(musdb.measure(songs, lambda mixture: dict.fromkeys(STEMS, mixture), direct=True)))
    for stem in STEMS:
        assert known["median_sdr"][stem].value > 25
        assert known["median_sdr"][stem].songs == 2
        assert mixed["median_sdr"][stem] == mixed["mixture_median_sdr"][stem] == known["mixture_median_sdr"][stem]
        assert mixed["median_sdr"][stem].value < 5


def test_songs_are_scored_by_museval_as_by_the_formula_and_by_workers_as_without(tmp_path: Path) -> None:
    # One channel: museval's equations are an eighth of the work.
    for number, title in enumerate(TITLES):
        stems = {
            name: samples[:, :1]
            for name, samples in rendered_songs.song(2, seed=number, rests=number, rate=8000).items()
        }
        rendered_songs.write_hq(tmp_path, "test", title, stems, rate=8000)
    songs = read_once(musdb_songs.songs(tmp_path, "test"))
    by_formula = list(musdb.measure(songs, oracle(songs), direct=True))
    by_museval = list(musdb.measure(songs[1:], oracle(songs)))
    assert list(musdb.measure(songs[:1], oracle(songs), direct=True, jobs=2)) == by_formula[:1]
    for stem in STEMS:
        windows = by_formula[1].stems[stem].windows
        assert np.isnan(windows).tolist() == [True, False]
        assert by_museval[0].stems[stem].windows == pytest.approx(windows, abs=1e-6, nan_ok=True)


def test_the_command_prints_the_papers_table_beside_its_own_and_keeps_every_song(hq: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(musdb.evaluate_musdb)
    report, picture = tmp_path / "musdb.json", tmp_path / "musdb.png"
    arguments = [str(hq), "--direct", "--tracks", "1", "--output", str(report), "--plot", str(picture)]
    ended = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert ended.exit_code == 0
    assert "6.15" in ended.stdout
    found = json.loads(report.read_text())
    assert found["songs"] == 1
    song = found["by_song"][0]
    assert song["name"] == f"{TITLES[0]} (live)"
    for stem in STEMS:
        assert len(song["stems"][stem]["windows"]) == 3
        assert found["figures"]["median_sdr"][stem]["value"] == pytest.approx(
            np.median(song["stems"][stem]["windows"]), abs=1e-3
        )
        # The query fits: all stems together are the mixture, so each is worth more than the mixture in its place.
        assert found["figures"]["sdr"][stem]["value"] > song["mixture"][stem]["sdr"]
    assert picture.read_bytes().startswith(b"\x89PNG")
