"""Training on several corpora: a corpus beside rendered songs."""

from pathlib import Path

import numpy as np
import pytest

from models.corpus.clips import Clip
from models.errors import CorpusInvalid
from models.networks.yamnet import Yamnet
from models.runs import run_folder
from tests.models.small_corpora import noise, pair, write_shard

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def corpora(tmp_path: Path) -> tuple[Path, Path]:
    """Dogs; a song of two parts; both with a validation split."""
    made = tmp_path / "clips", tmp_path / "songs"
    for folder in made:
        folder.mkdir()
    write_shard(made[0] / "train-000.tar", [*pair("one", noise(1, 1.0), "Dog"), *pair("two", noise(2, 1.2), "Dog")])
    write_shard(made[0] / "valid-000.tar", pair("three", noise(3, 1.0), "Dog"))
    parts = [pair(f"song-{at}", noise(4 + at, 2.0), label, song="1-0") for at, label in enumerate(("Piano", "Flute"))]
    write_shard(made[1] / "train-000.tar", [member for part in parts for member in part])
    write_shard(made[1] / "valid-000.tar", pair("four", noise(6, 1.0), "Cat"))
    return made


def test_clips_of_all_corpora_are_trained_on_and_those_of_the_first_validate(
    corpora: tuple[Path, Path], tmp_path: Path
) -> None:
    place = run_folder.Place(corpora[0], tmp_path / "cache", more=corpora[1:])
    trained = place.clips("train")
    assert [(clip.key, clip.song) for clip in trained.clips] == [
        *(("one", ""), ("two", "")),
        *(("song-0", "1-0"), ("song-1", "1-0")),
    ]
    assert [clip.key for clip in place.clips("valid").clips] == ["three"]
    alone = run_folder.Place(corpora[1], tmp_path / "cache").clips("train")
    for joined, own in zip(trained.clips[2:], alone.clips, strict=True):
        assert np.array_equal(trained.waveform(joined), alone.waveform(own))
        assert np.array_equal(trained.energy(joined), alone.energy(own))
    read = run_folder.Place.of({"place": {"corpus": "a", "cache": "b", "more": ["c"]}})
    assert read == run_folder.Place(Path("a"), Path("b"), more=(Path("c"),))


def test_a_corpus_without_clips_to_train_on_is_refused(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    (corpora[1] / "train-000.tar").unlink()
    with pytest.raises(CorpusInvalid, match="train"):
        run_folder.Place(corpora[0], tmp_path / "cache", more=corpora[1:]).clips("train")


def test_a_corpus_keeps_its_cached_queries_when_another_is_added(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    detector = Yamnet(list(range(521))).eval()
    one = run_folder.Place(corpora[0], tmp_path / "cache")
    first = one.embeddings(detector, one.clips("train"))
    (before,) = (tmp_path / "cache" / "embeddings").iterdir()
    stamp = before.stat().st_mtime_ns
    both = run_folder.Place(corpora[0], tmp_path / "cache", more=corpora[1:])
    vectors = both.embeddings(detector, both.clips("train"))
    assert vectors.shape[0] == 4 and np.array_equal(vectors[:2], first) and vectors[2:].any(axis=2).all()
    assert before.stat().st_mtime_ns == stamp
    assert len(list((tmp_path / "cache" / "embeddings").iterdir())) == 2


def test_clips_that_older_caches_hold_are_of_no_song() -> None:
    assert (
        Clip(**{"key": "a", "start": 0, "frames": 1, "mids": (), "group": "g", "kind": "effect", "source": {}}).song
        == ""
    )
