"""Clips decoded once: the same in one process or several, and never mistaken for those of another corpus."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from models.corpus import parallel
from models.corpus.clips import Clips, energies_of
from models.corpus.decoded import decode, load
from models.corpus.manifest import write
from models.corpus.sources.formats import open_source
from models.errors import CorpusInvalid
from models.labels import find
from tests.models.small_corpora import encode, noise, pair, tone, write_hdf5, write_shard

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three clips in two shards, and one that is broken."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    fields = {"package": "p", "path": "one.wav", "license": "CC0", "rate": 48_000}
    first = pair("one", tone(500, 0.1), "Dog", mids=[find("Dog").mid, find("Speech").mid], **fields)
    broken = [("broken.opus", b"no sound"), ("broken.json", b'{"labels": ["Dog"]}')]
    write_shard(folder / "train-000.tar", [*first, *broken])
    write_shard(
        folder / "train-001.tar", [*pair("two", tone(500, 0.21), "Piano"), *pair("three", tone(500, 0.3), "Cat")]
    )
    return folder


def test_clips_come_in_order_with_their_labels_and_source(corpus: Path, tmp_path: Path) -> None:
    said: list[str] = []
    clips = load(corpus, "train", tmp_path / "cache", said.append)
    assert [(clip.key, clip.start, clip.frames) for clip in clips.clips] == [
        ("one", 0, 3_200),
        ("two", 3_200, 6_720),
        ("three", 11_200, 9_600),
    ]
    assert clips.samples.dtype == np.int16 and len(clips.samples) == 20_800
    assert clips.clips[0].mids == (find("Dog").mid, find("Speech").mid)
    assert clips.clips[0].source == {"package": "p", "path": "one.wav", "license": "CC0"}
    assert np.abs(clips.waveform(clips.clips[1]) - tone(500, 0.21)).max() < 1e-3
    assert said == ["3 clips, 0.00 h"]


def test_energies_are_stored_with_the_clips(corpus: Path, tmp_path: Path) -> None:
    clips = load(corpus, "train", tmp_path / "cache")
    for several in (clips, clips.without(frozenset({find("Dog").mid})), clips.join(clips)):
        assert several.energies is not None
        for clip in several.clips:
            of_clip = energies_of(several.samples[clip.start : clip.start + clip.frames])
            assert np.array_equal(several.energy(clip), of_clip) and of_clip.all()
    unaligned = Clips(clips.samples[:3_100], [replace(clips.clips[0], frames=3_100)])
    first, second = unaligned.join(unaligned).clips
    assert second.start == 3_200
    assert np.array_equal(unaligned.join(unaligned).energy(second), unaligned.energy(first))


def test_what_cannot_be_decoded_is_logged_and_listed(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(corpus, "train", tmp_path / "cache")
    assert "1 × undecodable" in caplog.text
    (listed,) = (tmp_path / "cache").rglob("faults.csv")
    assert listed.read_text().splitlines()[1].startswith("train-000.tar:broken,undecodable,")


def test_the_second_time_nothing_is_decoded(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(corpus, "train", tmp_path / "cache")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.*")}
    again = load(corpus, "train", tmp_path / "cache")
    assert again.clips == first.clips and np.array_equal(again.samples, first.samples)
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_another_corpus_or_a_changed_one_is_not_mistaken_for_it(corpus: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert len(load(corpus, "train", cache).clips) == 3
    other = tmp_path / "elsewhere" / "corpus"
    other.mkdir(parents=True)
    write_shard(other / "train-000.tar", pair("other", tone(700, 0.1), "Dog"))
    assert [clip.key for clip in load(other, "train", cache).clips] == ["other"]
    write_shard(corpus / "train-002.tar", pair("four", tone(500, 0.1), "Dog"))
    assert [clip.key for clip in load(corpus, "train", cache).clips] == ["one", "two", "three", "four"]


def test_no_corpus_no_split_and_nothing_left_are_errors(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere", "train", tmp_path / "cache")
    with pytest.raises(CorpusInvalid, match="no split 'valid'"):
        load(corpus, "valid", tmp_path / "cache")
    write_shard(corpus / "valid-000.tar", [("broken.flac", b"no sound"), ("broken.json", b'{"labels": ["Dog"]}')])
    for _ in range(2):
        with pytest.raises(CorpusInvalid, match="1 × undecodable"):
            load(corpus, "valid", tmp_path / "cache")


def test_several_processes_give_what_one_gives(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    waveforms = np.random.default_rng(0).integers(-3_000, 3_000, (parallel.FEW + 6, 500), np.int16)
    names, labels = [f"{row}.wav" for row in range(len(waveforms))], [["Dog"]] * len(waveforms)
    write_hdf5(folder / "train.h5", names, waveforms, labels, rate=16_000)
    clips = load(folder, "train", tmp_path / "cache", workers=2)
    here = [decode(row) for row in open_source(folder, "train")]
    assert len(clips.clips) == len(here) == len(waveforms)
    for clip, (row, samples, _) in zip(clips.clips, here, strict=True):
        assert row is not None and (clip.key, clip.mids) == (row.key, row.mids)
        assert np.array_equal(clips.samples[clip.start : clip.start + clip.frames], samples)


def test_work_is_taken_up_no_faster_than_its_answers_are_used() -> None:
    taken = 0

    def things():
        nonlocal taken
        for thing in range(10_000):
            taken += 1
            yield thing

    answers = parallel.in_order(abs, things(), 2)
    assert [next(answers) for _ in range(3)] == [0, 1, 2]
    assert taken <= parallel.FEW + parallel.AHEAD * 2 + 3
    answers.close()


SLOW = """
import sys, time
from pathlib import Path
import models.corpus.decoded as decoded

def main():
    folder, cache = map(Path, sys.argv[1:])
    decoded.REPORT = 10
    decoded.load(folder, "train", cache, lambda text: print(text, flush=True), workers=2)

main()
"""


def test_a_killed_decode_leaves_nothing_that_looks_whole_and_no_workers(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    sound = encode(noise(0, 2.0))
    members = [(f"{at}.flac", sound) for at in range(600)]
    described = [(f"{at}.json", b'{"labels": ["Dog"]}') for at in range(600)]
    write_shard(folder / "train-000.tar", [member for both in zip(members, described, strict=True) for member in both])
    cache = tmp_path / "cache"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, str(folder), str(cache)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("10 clips")
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    assert len(workers) >= 2
    assert [path.suffix for path in (cache / "corpus").iterdir() if path.is_dir()] == [".partial"]
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive, "workers end with the process that began them"
    write_shard(folder / "train-000.tar", pair("one", tone(500, 0.1), "Dog"))
    os.utime(folder / "train-000.tar", ns=(time.time_ns(), time.time_ns()))
    assert len(load(folder, "train", cache).clips) == 1


def test_a_manifest_has_a_row_for_each_class_of_a_clip(corpus: Path, tmp_path: Path) -> None:
    write(load(corpus, "train", tmp_path / "cache"), "train", tmp_path / "manifest.csv")
    assert (tmp_path / "manifest.csv").read_text().splitlines() == [
        "package,path,licence,label,mid,split",
        ",,,Cat,/m/01yrx,train",
        ",,,Piano,/m/05r5c,train",
        "p,one.wav,CC0,Dog,/m/0bt9lr,train",
        "p,one.wav,CC0,Speech,/m/09x0r,train",
    ]
