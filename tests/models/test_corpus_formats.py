"""Formats of corpora: what is read from each, and how invalid rows are reported."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from models.corpus.decoded import decode
from models.corpus.reading import FileAudio, Segment, pieces
from models.corpus.sources.csv_tables import labels_of
from models.corpus.sources.formats import fingerprint, open_source, splits_of
from models.corpus.sources.recordings import Fault, Recording, Unusable, key_of, kind_of
from models.errors import CorpusInvalid
from models.labels import find, ontology
from tests.models.small_corpora import (
    RATE,
    encode,
    noise,
    pair,
    pitch,
    tone,
    write_hdf5,
    write_musdb_hq,
    write_shard,
)

DOG, BARK, SPEECH, BIRDS = (
    find(name).mid for name in ("Dog", "Bark", "Speech", "Bird vocalization, bird call, bird song")
)


def read(path: Path, split: str) -> tuple[list[Recording], list[Fault]]:
    """All of a split, recordings and faults apart."""
    rows = list(open_source(path, split))
    assert rows == list(open_source(path, split)), "the order is fixed, and reading again gives the same"
    return [row for row in rows if isinstance(row, Recording)], [row for row in rows if isinstance(row, Fault)]


def samples_of(recording: Recording) -> np.ndarray:
    found, samples, faults = decode(recording)
    assert found is not None, faults
    assert samples.dtype == np.int16
    return samples


# WebDataset shards


def test_shards_give_their_clips_with_several_labels_and_their_source(tmp_path: Path) -> None:
    fields = {"mids": [DOG, SPEECH], "package": "p", "license": "CC0", "kind": "effect", "rate": 44100}
    write_shard(tmp_path / "train-000.tar", pair("one", tone(1_000), "Dog", **fields))
    write_shard(tmp_path / "train-001.tar", pair("two", tone(2_000, 0.25), "Piano"))
    write_shard(tmp_path / "valid-000.tar", pair("three", tone(1_000), "Dog"))
    recordings, faults = read(tmp_path, "train")
    assert splits_of(tmp_path) == ("train", "valid") and not faults
    assert [recording.key for recording in recordings] == ["one", "two"]
    assert recordings[0].mids == (DOG, SPEECH)
    assert recordings[0].source == {"package": "p", "license": "CC0", "rate": 44100}
    assert [recording.kind for recording in recordings] == ["effect", "instrument"]
    assert [len(samples_of(recording)) for recording in recordings] == [16_000, 8_000]
    assert pitch(samples_of(recordings[1])) == pytest.approx(2_000, abs=5)


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (999, 1000, 2):
        write_shard(tmp_path / f"train-{number:03d}.tar", pair(f"clip{number}", tone(500, 0.1), "Dog"))
    assert [recording.key for recording in read(tmp_path, "train")[0]] == ["clip2", "clip999", "clip1000"]


def test_faults_of_a_shard_are_reported_and_the_rest_is_read(tmp_path: Path) -> None:
    good, sound = pair("good", tone(500, 0.1), "Dog"), encode(tone(500, 0.1))
    write_shard(
        tmp_path / "train-000.tar",
        [
            *(("no-json.flac", sound), ("no-audio.json", b"{}")),
            *(("bad-json.flac", sound), ("bad-json.json", b"{")),
            *(("list.flac", sound), ("list.json", b"[1]")),
            *(("unlabelled.flac", sound), ("unlabelled.json", b'{"mids": []}')),
            *(("unknown.flac", sound), ("unknown.json", b'{"labels": ["Gizmo"]}')),
            *good,
            *good,
            ("notes.txt", b"hello"),
            *(("broken.flac", b"not audio"), ("broken.json", json.dumps({"mids": [DOG]}).encode())),
        ],
    )
    recordings, faults = read(tmp_path, "train")
    assert [recording.key for recording in recordings] == ["good", "broken"]
    assert {(fault.place, fault.reason) for fault in faults} == {
        ("train-000.tar:no-json", "audio without JSON"),
        ("train-000.tar:no-audio", "JSON without audio"),
        ("train-000.tar:bad-json", "malformed JSON"),
        ("train-000.tar:list", "malformed JSON"),
        ("train-000.tar:unlabelled", "no label"),
        ("train-000.tar:unknown", "unknown label"),
        ("train-000.tar:good", "duplicate key"),
        ("train-000.tar:notes.txt", "neither audio nor JSON"),
    }
    nothing, _, wrong = decode(recordings[1])
    assert nothing is None and [(fault.place, fault.reason) for fault in wrong] == [
        ("train-000.tar:broken", "undecodable")
    ]


def test_a_truncated_shard_gives_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "train-000.tar"
    write_shard(path, [member for at in range(3) for member in pair(f"clip{at}", noise(at), "Dog")])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    recordings, faults = read(tmp_path, "train")
    assert recordings[0].key == "clip0" and "truncated shard" in {fault.reason for fault in faults}


def test_shards_of_the_shared_corpus_are_read_without_faults(shared: Path) -> None:
    recordings, faults = read(shared / "corpus", "valid")
    assert len(recordings) == 642 and not faults
    described = recordings[100]
    assert 0.1 <= len(samples_of(described)) / RATE <= 10.01
    assert {"package", "path", "license", "rate"} <= set(described.source)


# CSV: AudioSet's segments

SEGMENTS = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=22160, num_segs=22160, num_unique_labels=527, num_positive_labels=52882
# YTID, start_seconds, end_seconds, positive_labels
"""


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    """AudioSet's table over four downloads: a whole recording, two that are cut, and one that is shorter."""
    (tmp_path / "audio").mkdir()
    ramp = np.concatenate([tone(200 * (second + 1), 1.0, level=0.2) for second in range(12)])
    soundfile.write(tmp_path / "audio" / "-0whole_vid.flac", ramp, RATE)
    soundfile.write(tmp_path / "audio" / "YcutByName01.wav", tone(700, 2.0), RATE)
    soundfile.write(tmp_path / "audio" / "withStart_2_30.000.wav", ramp, RATE)
    soundfile.write(tmp_path / "audio" / "millisecond_5000_7000.wav", tone(900, 2.0), RATE)
    (tmp_path / "balanced_train_segments.csv").write_text(
        SEGMENTS
        + '-0whole_vid, 4.000, 6.000, "/m/09x0r,/t/dd00088"\n'
        + 'cutByName01, 30.000, 32.000, "/m/0bt9lr"\n'
        + 'withStart_2, 30.000, 32.000, "/m/0bt9lr"\n'
        + 'millisecond, 5.000, 7.000, "/m/0bt9lr"\n'
    )
    return tmp_path


def test_segments_are_found_by_name_and_cut_where_the_file_is_longer(segments: Path) -> None:
    recordings, faults = read(segments, "train")
    assert not faults
    assert recordings[0].mids == ("/m/09x0r", "/t/dd00088")
    assert [recording.key for recording in recordings][:2] == ["-0whole_vid_4000", "cutByName01_30000"]
    assert recordings[0].group == "-0whole_vid"
    heard = [samples_of(recording) for recording in recordings]
    assert [len(samples) / RATE for samples in heard] == [2.0] * 4
    assert pitch(heard[0][:RATE]) == pytest.approx(1_000, abs=2), "second 4 of the whole recording"
    assert pitch(heard[1]) == pytest.approx(700, abs=2), "a file as long as its segment is the segment"
    assert pitch(heard[2][:RATE]) == pytest.approx(200, abs=2), "a file named with its start begins with the segment"
    assert pitch(heard[3]) == pytest.approx(900, abs=2)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('nothing_is_there, 0.000, 10.000, "/m/09x0r"', "missing file"),
        ('cutByName01, 0.0, 10.0, "/m/nothing"', "unknown label"),
        ('cutByName01, 0.0, 10.0, ""', "no label"),
        ('cutByName01, 10.0, 10.0, "/m/09x0r"', "end before start"),
        ('cutByName01, zero, 10.0, "/m/09x0r"', "malformed number"),
        ('cutByName01, nan, 10.0, "/m/09x0r"', "malformed number"),
        ('cutByName01, -1, 10.0, "/m/09x0r"', "malformed number"),
        ("cutByName01, 0.0, 10.0", "malformed row"),
        ('cutByName01, 30.000, 31.000, "/m/09x0r"', "duplicate key"),
    ],
)
def test_invalid_rows_of_segments_are_reported_with_their_line(segments: Path, row: str, reason: str) -> None:
    table = segments / "balanced_train_segments.csv"
    table.write_text(table.read_text() + row + "\n" + 'withStart_2, 1, 2, "/m/09x0r"\n')
    recordings, faults = read(segments, "train")
    assert [(fault.place, fault.reason) for fault in faults if "withStart" not in fault.detail] == [
        ("balanced_train_segments.csv:8", reason)
    ]
    assert len(recordings) == 4 and len(faults) == 2, "the rows before and after it are read"


def test_a_segment_beyond_its_file_is_a_fault_of_reading(segments: Path) -> None:
    audio = FileAudio(segments / "audio" / "-0whole_vid.flac", Segment(30, 32))
    with pytest.raises(Unusable, match="segment outside the file"):
        list(audio.blocks(pytest.fail))


# CSV: path, labels


def test_a_table_of_paths_reads_its_columns(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, hertz in (("in/a.wav", 500), ("b.flac", 1_000), ("c.ogg", 2_000)):
        soundfile.write(tmp_path / name, tone(hertz), RATE)
    (tmp_path / "train.csv").write_text(
        "path,labels,group,kind,license,split\n"
        "in/a.wav,Dog; Speech,g,effect,CC0,\n"
        'b.flac,"/m/0bt9lr,/m/09x0r",,,,val\n'
        'c.ogg,"Bird vocalization, bird call, bird song",,,,\n'
    )
    (train, faults), (valid, _) = read(tmp_path, "train"), read(tmp_path, "valid")
    assert splits_of(tmp_path) == splits_of(tmp_path / "train.csv") == ("train", "valid") and not faults
    assert [recording.mids for recording in train] == [(DOG, SPEECH), (BIRDS,)]
    assert (train[0].group, train[0].kind, train[0].source["license"]) == ("g", "effect", "CC0")
    assert valid[0].mids == (DOG, SPEECH) and valid[0].group == "b.flac"
    assert pitch(samples_of(train[1])) == pytest.approx(2_000, abs=5)


def test_invalid_rows_of_a_table_are_reported_with_their_line(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(500), RATE)
    (tmp_path / "train.csv").write_text(
        "path,labels\na.wav,Dog\nnone.wav,Dog\na.wav,Gizmo\na.wav,\n,Dog\na.wav,Bark\na.wav,Bird, call\n"
    )
    recordings, faults = read(tmp_path, "train")
    assert [recording.mids for recording in recordings] == [(DOG,)]
    reasons = ["missing file", "unknown label", "no label", "malformed row", "duplicate key", "malformed row"]
    assert [(fault.place, fault.reason) for fault in faults] == [
        (f"train.csv:{line}", reason) for line, reason in enumerate(reasons, 3)
    ]


@pytest.mark.parametrize("table", ["balanced_train_segments.csv", "train.csv"])
def test_a_quote_that_is_never_closed_loses_what_follows_and_says_so(segments: Path, table: str) -> None:
    path = segments / table
    if table == "train.csv":
        (segments / "balanced_train_segments.csv").unlink()
        path.write_text("path,labels\naudio/YcutByName01.wav,Dog\n")
    good = len(read(segments, "train")[0])
    path.write_text(path.read_text() + '"' + "never, closed\n" * 20_000)
    recordings, faults = read(segments, "train")
    assert len(recordings) == good > 0
    assert [fault.reason for fault in faults] == ["malformed row"] and faults[0].place.startswith(table)


@given(st.lists(st.sampled_from([label.mid for label in ontology().values()]), min_size=1, max_size=5, unique=True))
def test_labels_are_read_in_every_form(mids: list[str]) -> None:
    assert labels_of("; ".join(ontology()[mid].name for mid in mids)) == tuple(mids)
    assert labels_of(";".join(mids)) == labels_of(", ".join(mids)) == tuple(mids)


# Packed HDF5


def test_packed_files_are_read_row_by_row(tmp_path: Path) -> None:
    waveforms = np.stack([(tone(hertz) * 32767).astype(np.int16) for hertz in (500, 1_000, 2_000)])
    (tmp_path / "waveforms").mkdir()
    write_hdf5(
        tmp_path / "waveforms" / "balanced_train.h5", ["Ya.wav", "Yb.wav"], waveforms[:2], [["Dog"], ["Bark", "Dog"]]
    )
    write_hdf5(tmp_path / "waveforms" / "unbalanced_train_part01.h5", ["Yc.wav"], waveforms[2:], [["Speech"]], 16_000)
    write_hdf5(tmp_path / "waveforms" / "eval.h5", ["Yd.wav", "Ye.wav"], waveforms[:2], [["Dog"], []])
    recordings, faults = read(tmp_path, "train")
    assert splits_of(tmp_path) == ("test", "train") and not faults
    assert [recording.key for recording in recordings] == ["Ya", "Yb", "Yc"]
    assert set(recordings[1].mids) == {DOG, BARK}
    assert np.array_equal(samples_of(recordings[1]), waveforms[1])
    resampled = samples_of(recordings[2])
    assert len(resampled) == 32_000 and pitch(resampled) == pytest.approx(1_000, abs=2), "16 kHz as the file says"
    assert [fault.reason for fault in read(tmp_path, "test")[1]] == ["no label"]


def test_malformed_packed_files_are_reported(tmp_path: Path) -> None:
    import h5py

    (tmp_path / "train-1.h5").write_bytes(b"nothing of the kind")
    with h5py.File(tmp_path / "train-2.h5", "w") as file:
        file["audio_name"] = [b"a.wav"]
    write_hdf5(tmp_path / "train-3.h5", ["a.wav"], np.zeros((1, 100), np.int16), [["Dog"]])
    with h5py.File(tmp_path / "train-4.h5", "w") as file:
        file["audio_name"], file["waveform"] = [b"b.wav"], np.zeros((1, 100), np.float32)
        file["target"] = np.ones((1, 527), bool)
    recordings, faults = read(tmp_path, "train")
    assert [recording.key for recording in recordings] == ["a"]
    assert [(fault.place, fault.reason) for fault in faults] == [
        ("train-1.h5", "not an HDF5 file"),
        ("train-2.h5", "missing dataset"),
        ("train-4.h5", "malformed dataset"),
    ]


# MUSDB18


def test_musdb_hq_gives_each_stem_with_its_class(tmp_path: Path) -> None:
    validation = "Actions - One Minute Smile"
    write_musdb_hq(tmp_path, {"train": ["A - Song", validation], "test": ["B - Song"]})
    assert splits_of(tmp_path) == ("train", "valid", "test")
    assert {recording.group for recording in read(tmp_path, "valid")[0]} == {validation}
    recordings, faults = read(tmp_path, "train")
    assert not faults
    expected = {"Singing": 500, "Drum kit": 1_000, "Bass guitar": 2_000, "Music": 4_000}
    assert {ontology()[recording.mids[0]].name for recording in recordings} == set(expected)
    for recording in recordings:
        assert recording.group == "A - Song"
        assert pitch(samples_of(recording)) == pytest.approx(expected[ontology()[recording.mids[0]].name], abs=5)


def test_a_missing_stem_is_reported(tmp_path: Path) -> None:
    write_musdb_hq(tmp_path, {"test": ["B - Song"]})
    (tmp_path / "test" / "B - Song" / "bass.wav").unlink()
    recordings, faults = read(tmp_path, "test")
    assert len(recordings) == 3
    assert faults == [Fault("test/B - Song/bass.wav", "missing file")]


def test_stem_files_give_what_musdb_reads(tmp_path: Path) -> None:
    import musdb

    (tmp_path / "test").mkdir()
    path = tmp_path / "test" / "B - Song.stem.mp4"
    inputs = []
    for stem, hertz in enumerate((440, 1_000, 2_000, 4_000, 500)):
        sound = tone(hertz, 1.0, 44_100)
        soundfile.write(tmp_path / f"{stem}.wav", np.stack([sound, 0.5 * sound], 1), 44_100)
        inputs += ["-i", str(tmp_path / f"{stem}.wav")]
    maps = [word for stem in range(5) for word in ("-map", f"{stem}:a")]
    subprocess.run(["ffmpeg", "-v", "error", *inputs, *maps, "-c:a", "aac", str(path)], check=True)
    recordings, faults = read(tmp_path, "test")
    track = musdb.DB(root=str(tmp_path), subsets=["test"])[0]
    assert not faults and len(recordings) == 4
    for recording, stem in zip(recordings, ("vocals", "drums", "bass", "other"), strict=True):
        reference = track.sources[stem].audio.mean(1)
        samples = samples_of(recording) / 32768
        assert len(samples) / RATE == pytest.approx(len(reference) / 44_100, abs=0.05)
        assert pitch(samples_of(recording)) == pytest.approx(pitch(reference) * 44_100 / RATE, abs=5)
        assert np.square(samples).mean() == pytest.approx(np.square(reference).mean(), rel=0.05)


def test_musdb_without_ffmpeg_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.corpus.sources import musdb18

    write_musdb_hq(tmp_path, {"train": ["A - Song"]})
    monkeypatch.setenv("PATH", str(tmp_path))
    musdb18._setup.cache_clear()
    with pytest.raises(CorpusInvalid, match="no ffmpeg and no ffprobe"):
        open_source(tmp_path, "train")


# What all have in common


def test_what_holds_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / "nowhere", "train")
    with pytest.raises(CorpusInvalid, match="holds no corpus"):
        open_source(tmp_path, "train")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CorpusInvalid, match="columns named path and labels"):
        open_source(tmp_path / "table.csv", "train")
    write_shard(tmp_path / "train-000.tar", pair("one", tone(500, 0.1), "Dog"))
    with pytest.raises(CorpusInvalid, match=r"no split 'test'; it has train: a file's name is its split \(test\.csv"):
        open_source(tmp_path, "test")


def test_the_fingerprint_follows_the_files_and_not_their_place(tmp_path: Path) -> None:
    first, moved = tmp_path / "first", tmp_path / "moved"
    first.mkdir()
    write_shard(first / "train-000.tar", pair("one", tone(500, 0.1), "Dog"))
    before = fingerprint(open_source(first, "train"))
    shutil.copytree(first, moved)
    assert fingerprint(open_source(moved, "train")) == before
    write_shard(first / "train-001.tar", pair("two", tone(500, 0.1), "Dog"))
    assert fingerprint(open_source(first, "train")) != before


@pytest.mark.parametrize(
    ("label", "kind"),
    [("Male speech, man speaking", "speech"), ("Piano", "instrument"), ("Jazz", "music"), ("Dog", "effect")],
)
def test_kinds_follow_the_ontology(label: str, kind: str) -> None:
    assert kind_of((find(label).mid,)) == kind


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_keys_are_safe_and_tell_texts_apart(one: str, other: str) -> None:
    first, second = key_of(one), key_of(other)
    assert first.isascii() and not set(first) & set("./ \\")
    assert (first == second) == (one == other)


def test_stereo_is_mixed_as_in_models_audio_also_with_cancelling_channels(tmp_path: Path) -> None:
    import torch

    from models.audio import mono, resample

    sound = noise(3, 3.0)
    for name, other in (("mean", 0.3 * noise(4, 3.0)), ("cancelling", -0.9 * sound)):
        stereo = np.stack([sound, other]).astype(np.float32)
        soundfile.write(tmp_path / f"{name}.wav", stereo.T, 44_100, subtype="FLOAT")
        heard = np.concatenate(list(FileAudio(tmp_path / f"{name}.wav").blocks(pytest.fail)))
        expected = resample(mono(torch.from_numpy(stereo))[None], 44_100, RATE)[0].numpy()
        assert np.abs(heard / 32768 - expected).max() < 2 / 32768


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 25))
def test_pieces_are_the_same_samples_cut_anew(lengths: list[int], frames: int) -> None:
    whole = np.arange(sum(lengths), dtype=np.int16)
    blocks = np.split(whole, np.cumsum(lengths)[:-1]) if lengths else []
    cut = list(pieces(iter(blocks), frames))
    assert all(len(piece) == frames for piece in cut[:-1]) and all(0 < len(piece) <= frames for piece in cut)
    assert np.array_equal(np.concatenate([*cut, np.zeros(0, np.int16)]), whole)
