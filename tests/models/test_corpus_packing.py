"""Packing: any corpus as shards that hold the same, in several processes, and gone on with after an interruption."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from models.corpus.decoded import decode
from models.corpus.packing import Settings, Tally, pack
from models.corpus.parallel import exclusive_lock
from models.corpus.sources.formats import open_source
from models.corpus.sources.recordings import Recording
from models.errors import CorpusInvalid
from tests.models.small_corpora import RATE, encode, noise, pitch, tone, write_hdf5, write_musdb_hq, write_shard

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = Settings("flac", shard_mb=0.4)


def clips(corpus: Path, split: str = "train") -> dict[str, tuple[Recording, np.ndarray]]:
    """Recordings and samples by key; no faults allowed."""
    found = {}
    for row in open_source(corpus, split):
        assert isinstance(row, Recording), row
        found[row.key] = row, decode(row)[1]
    return found


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A CSV corpus: clips with several labels, one that is long, one that is missing, one that is broken."""
    folder = tmp_path / "table"
    folder.mkdir()
    soundfile.write(folder / "a.wav", tone(500, 0.5), RATE)
    soundfile.write(folder / "b.wav", noise(1, 0.7), RATE)
    silence = np.zeros(2 * RATE)
    parts = [tone(1_000, 2.0), silence, tone(2_000, 2.0), tone(3_000, 0.5)]
    soundfile.write(folder / "long.wav", np.concatenate(parts), RATE)
    (folder / "broken.wav").write_bytes(b"no sound")
    (folder / "train.csv").write_text(
        "path,labels,group,license\na.wav,Dog;Speech,g,CC0\nnone.wav,Dog,,\nb.wav,Rain,,\nbroken.wav,Dog,,\n"
        "long.wav,Siren,,\n"
    )
    return folder


def test_flac_shards_hold_the_same_samples_and_labels(table: Path, tmp_path: Path) -> None:
    tally = pack(open_source(table, "train"), tmp_path / "packed", Settings("flac", max_seconds=60))
    assert (tally.rows, tally.clips, tally.shards) == (5, 3, 1)
    assert [(fault.place, fault.reason) for fault in tally.faults] == [
        ("train.csv:3", "missing file"),
        ("train.csv:5", "undecodable"),
    ]
    packed = clips(tmp_path / "packed")
    for row in open_source(table, "train"):
        if isinstance(row, Recording) and row.key in packed:
            again, samples = packed[row.key]
            assert (again.mids, again.group, again.kind, again.source) == (row.mids, row.group, row.kind, row.source)
            assert np.array_equal(samples, decode(row)[1])
    assert tally.seconds == pytest.approx(sum(len(samples) for _, samples in packed.values()) / RATE)


def test_opus_shards_are_nearly_the_same(table: Path, tmp_path: Path) -> None:
    pack(open_source(table, "train"), tmp_path / "packed", Settings("opus"))
    sound = clips(tmp_path / "packed")["b"][1] / 32768
    original = noise(1, 0.7)
    assert len(sound) == len(original)
    assert np.square(sound - original).sum() < 0.05 * np.square(original).sum()


def test_long_recordings_become_pieces_of_one_group_without_silence_and_short_rests(
    table: Path, tmp_path: Path
) -> None:
    tally = pack(open_source(table, "train"), tmp_path / "packed", Settings("flac", max_seconds=2))
    packed = clips(tmp_path / "packed")
    pieces = {key: row for key, (row, _) in packed.items() if key.startswith("long")}
    assert list(pieces) == ["long-000", "long-001"] and {row.group for row in pieces.values()} == {"long.wav"}
    assert [row.source["offset"] for row in pieces.values()] == [0.0, 4.0]
    assert [round(pitch(packed[key][1])) for key in pieces] == [1_000, 2_000]
    assert tally.left_over == pytest.approx(2.5), "2 s of silence, and a rest of half a second"


def test_packing_shards_again_gives_the_same_keys_and_fields(table: Path, tmp_path: Path) -> None:
    pack(open_source(table, "train"), tmp_path / "once", Settings("flac", max_seconds=2))
    pack(open_source(tmp_path / "once", "train"), tmp_path / "twice", Settings("flac", max_seconds=2))
    assert (tmp_path / "once/train-000.tar").read_bytes() == (tmp_path / "twice/train-000.tar").read_bytes()


def test_every_kind_of_corpus_can_be_packed(tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    waveforms = np.stack([(tone(hertz) * 32767).astype(np.int16) for hertz in (500, 1_000)])
    write_hdf5(tmp_path / "packed" / "valid.h5", ["a.wav", "b.wav"], waveforms, [["Dog", "Bark"], ["Siren"]])
    write_musdb_hq(tmp_path / "musdb", {"test": ["A - Song"]})
    for name, split, count in (("packed", "valid", 2), ("musdb", "test", 4)):
        assert pack(open_source(tmp_path / name, split), tmp_path / f"{name}-out", Settings("flac")).clips == count
        again = clips(tmp_path / f"{name}-out", split)
        original = clips(tmp_path / name, split)
        assert list(again) == list(original)
        for key, (row, samples) in original.items():
            assert again[key][0].mids == row.mids and np.array_equal(again[key][1], samples)


def test_shards_are_closed_at_their_size(tmp_path: Path) -> None:
    corpus = many(tmp_path, 12)
    tally = pack(open_source(corpus, "train"), tmp_path / "packed", Settings("flac", shard_mb=0.05))
    sizes = [path.stat().st_size / 2**20 for path in sorted((tmp_path / "packed").glob("*.tar"))]
    assert tally.shards == len(sizes) > 2
    assert all(0.05 <= size < 0.1 for size in sizes[:-1])
    assert len(clips(tmp_path / "packed")) == 12


def test_what_is_packed_already_is_not_packed_again(table: Path, tmp_path: Path) -> None:
    output = tmp_path / "packed"
    first = pack(open_source(table, "train"), output, Settings("flac"))
    before = {path: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    assert pack(open_source(table, "train"), output, Settings("flac")) == first
    assert {path: path.stat().st_mtime_ns for path in output.glob("*.tar")} == before


def test_a_folder_with_something_else_in_it_is_refused(table: Path, tmp_path: Path) -> None:
    output = tmp_path / "packed"
    pack(open_source(table, "train"), output, Settings("flac"))
    with pytest.raises(CorpusInvalid, match="another format"):
        pack(open_source(table, "train"), output, Settings("opus"))
    soundfile.write(table / "none.wav", tone(300, 0.5), RATE)
    with pytest.raises(CorpusInvalid, match="another source"):
        pack(open_source(table, "train"), output, Settings("flac"))
    with pytest.raises(CorpusInvalid, match="exists"):
        other = tmp_path / "other"
        other.mkdir()
        write_shard(other / "train-000.tar", [])
        pack(open_source(table, "train"), other)
    with (
        exclusive_lock(output / ".pack-train.lock", waits=False),
        pytest.raises(CorpusInvalid, match="another process"),
    ):
        pack(open_source(table, "train"), output, Settings("flac"))


def test_nothing_to_pack_is_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("path,labels\nnone.wav,Dog\n")
    with pytest.raises(CorpusInvalid, match="1 × missing file"):
        pack(open_source(tmp_path, "train"), tmp_path / "packed")


def many(folder: Path, count: int) -> Path:
    """A CSV corpus of clips of noise, and two faults."""
    corpus = folder / "many"
    corpus.mkdir()
    for seed in range(16):
        (corpus / f"{seed}.flac").write_bytes(encode(noise(seed, 1.0)))
    rows = [f"{at}.flac,Rain\n" for at in range(count)]
    for at in range(16, count):
        (corpus / f"{at}.flac").hardlink_to(corpus / f"{at % 16}.flac")
    rows.insert(3, "none.flac,Rain\n") if count > 12 else None
    (corpus / "train.csv").write_text("path,labels\n" + "".join(rows))
    return corpus


@pytest.fixture(scope="module")
def complete_pack(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Tally]:
    """A corpus, its shards, and what packing them counted."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    corpus = many(folder, 250)
    return corpus, folder / "packed", pack(open_source(corpus, "train"), folder / "packed", SMALL)


def _stand_back() -> None:
    """Let a test stop this process in time, and SIGINT arrive: a shell starts what runs in the background without."""
    os.nice(5)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("how", "workers"), [(signal.SIGKILL, 2), (signal.SIGINT, 1)])
def test_an_interrupted_pack_goes_on_and_ends_the_same(
    how: signal.Signals, workers: int, complete_pack: tuple[Path, Path, Tally], tmp_path: Path
) -> None:
    corpus, expected, whole = complete_pack
    output = tmp_path / "packed"
    command = [sys.executable, "-c", "from models.corpus.commands import app; app()", "pack", str(corpus), str(output)]
    command += ["--format", "flac", "--shard-mb", str(SMALL.shard_mb), "--workers", str(workers)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        preexec_fn=_stand_back,
    ) as process:
        while not (output / "train-001.tar").exists() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGSTOP)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)
    assert process.returncode == (-signal.SIGKILL if how is signal.SIGKILL else 130)
    assert not psutil.wait_procs(children, timeout=60)[1]
    finished = {path: path.stat().st_ino for path in output.glob("train-*.tar")}
    assert 2 <= len(finished) < whole.shards, "interrupted under way"

    tally = pack(open_source(corpus, "train"), output, SMALL)
    assert (tally.rows, tally.clips, tally.faults) == (whole.rows, whole.clips, whole.faults)
    assert tally.seconds == pytest.approx(whole.seconds)
    names = sorted(path.name for path in expected.glob("*.tar"))
    assert sorted(path.name for path in output.glob("*.tar")) == names
    assert all((output / name).read_bytes() == (expected / name).read_bytes() for name in names)
    redone = [path for path, inode in finished.items() if path.stat().st_ino != inode]
    assert len(redone) <= 1, "at most the shard that was renamed and not yet recorded"
    assert not list(output.glob(".*.partial"))


def test_members_are_pairs_with_no_owner_and_no_time(table: Path, tmp_path: Path) -> None:
    pack(open_source(table, "train"), tmp_path / "packed", Settings("opus"))
    with tarfile.open(tmp_path / "packed" / "train-000.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members][:4] == ["a.opus", "a.json", "b.opus", "b.json"]
    assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}
