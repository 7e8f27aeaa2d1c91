"""Evaluation of events: soundscapes with exact references, tables of strong labels, and counts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from models.corpus.clips import RATE, Clip, Clips
from models.corpus.relations import are_related
from models.evaluation.detectors import events, soundscapes, strong_labels
from models.evaluation.detectors.detector_under_test import DetectorUnderTest
from models.evaluation.detectors.event_counts import MEASURES, count
from models.evaluation.detectors.events import THRESHOLDS, DetectedScene
from models.evaluation.detectors.soundscapes import KnownEvent, sounding_spans
from models.labels import CLASSES, classes, find
from models.networks import DetectorOutput
from tests.models.bands import BANDS, BandDetector, tone

EVERYTHING = frozenset(label.mid for label in classes())
BAND_CLASSES = ("Speech", "Siren", "Dog", "Rain")
DOG, BARK, SIREN, RAIN = (find(name).mid for name in ("Dog", "Bark", "Siren", "Rain"))


def column(name: str) -> int:
    index = find(name).index
    assert index is not None
    return index


class FourClasses(BandDetector):
    """Detects a tone in each of the four bands as a class that is unrelated to the others."""

    def forward(self, waveforms: torch.Tensor) -> DetectorOutput:
        detected_scene = super().forward(waveforms)
        framewise = torch.zeros_like(detected_scene.framewise)
        framewise[..., [column(name) for name in BAND_CLASSES]] = detected_scene.framewise[..., :BANDS]
        return DetectorOutput(framewise.amax(1), framewise, detected_scene.embedding)


@pytest.fixture(scope="module")
def clips() -> Clips:
    """Tones of 0.5 to 6 s in each class's band, two source groups a class, with silence before and after."""
    samples, listed, start = [], [], 0
    for band, name in enumerate(BAND_CLASSES):
        for group, seconds in enumerate((0.5, 1.5, 6.0)):
            sound = tone(band, round(seconds * RATE), RATE).numpy()
            sound = np.concatenate([np.zeros(RATE // 5), sound, np.zeros(RATE // 10)])
            key = f"{name} {seconds}"
            listed.append(Clip(key, start, len(sound), (find(name).mid,), f"{name} {group % 2}", "effect", {}))
            samples.append((sound * 32767).astype(np.int16))
            start += len(sound)
    return Clips(np.concatenate(samples), listed)


# Soundscapes


def test_scenes_are_the_same_for_the_same_seed_and_others_for_another(clips: Clips) -> None:
    first, again, other = (list(soundscapes.compose(clips, 3, seed)) for seed in (1, 1, 2))
    assert [scene.events for scene in first] == [scene.events for scene in again]
    assert all(np.array_equal(one.samples, two.samples) for one, two in zip(first, again, strict=True))
    assert [scene.events for scene in first] != [scene.events for scene in other]


def test_scenes_hold_two_to_four_unrelated_classes_where_their_references_say_so(clips: Clips) -> None:
    centres = dict(zip((find(name).mid for name in BAND_CLASSES), range(BANDS), strict=True))
    for scene in soundscapes.compose(clips, 12, seed=3):
        mids = [event.mid for event in scene.events]
        assert 2 <= len(set(mids)) <= 4
        assert not any(are_related(one, other) for one in mids for other in mids if one != other)
        assert scene.samples.dtype == np.float32
        assert np.abs(scene.samples).max() < 1
        power = BandDetector().powers(torch.from_numpy(scene.samples)[None])[0].numpy()  # every 10 ms
        for event in scene.events:
            curve = power[:, centres[event.mid]]
            loud = np.flatnonzero(curve > 0.25 * curve.max()) / 100  # others spill over where they begin
            assert [event.start, event.end] == pytest.approx([loud[0], loud[-1] + 0.01], abs=0.03)
            assert event.end - event.start <= soundscapes.LONGEST_SECONDS + 1e-9


def test_related_classes_alone_make_no_scene(clips: Clips) -> None:
    dogs = [replace(clip, mids=(DOG, BARK)) for clip in clips.clips[:3]]
    with pytest.raises(ValueError, match="two unrelated classes"):
        next(soundscapes.compose(Clips(clips.samples, dogs), 1))


def test_a_clip_of_several_classes_is_an_event_of_each(clips: Clips) -> None:
    both = [replace(clip, mids=(DOG, SIREN)) if clip.mid == DOG else clip for clip in clips.clips]
    scenes = [scene.events for scene in soundscapes.compose(Clips(clips.samples, both), 10)]
    barking = [events for events in scenes if any(event.mid == DOG for event in events)]
    assert barking
    for found in barking:
        times = {mid: [(event.start, event.end) for event in found if event.mid == mid] for mid in (DOG, SIREN)}
        assert set(times[DOG]) <= set(times[SIREN])


BURSTS = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 60)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(BURSTS)
def test_a_sound_is_cut_at_long_pauses_and_nowhere_else(bursts: list[tuple[int, int]]) -> None:
    rate = 1000
    sound, expected, at = [], [], 0
    for pause, length in bursts:
        sound += [np.zeros(pause * 10), np.full(length * 10, 0.1)]
        start, at = at + pause, at + pause + length
        if expected and pause * 0.01 <= soundscapes.PAUSE_SECONDS:
            expected[-1][1] = at
        else:
            expected.append([start, at])
    assert [list(span) for span in sounding_spans(np.concatenate(sound), rate)] == pytest.approx(
        np.array(expected) / 100
    )


@pytest.mark.parametrize(("level", "end"), [(-30, 2.0), (-50, 1.0)])
def test_what_is_forty_decibels_below_the_loudest_is_no_part_of_the_sound(level: float, end: float) -> None:
    loud = tone(1, RATE, RATE).numpy()
    assert sounding_spans(np.concatenate([loud, loud * 10 ** (level / 20)]), RATE) == [
        (0.0, pytest.approx(end, abs=0.01))
    ]


def test_silence_holds_no_sound() -> None:
    assert sounding_spans(np.zeros(1000), 1000) == []


# Tables


DESED = "filename\tonset\toffset\tevent_label\na.wav\t0.5\t1.25\tDog\na.wav\t2\t3\tVacuum_cleaner\nb.wav\t\t\t\n"
AUDIOSET = "segment_id,start_time_seconds,end_time_seconds,label\nxyz_30000,0.5,1.25,/m/0bt9lr\n"


def test_both_kinds_of_table_are_read(tmp_path: Path) -> None:
    (tmp_path / "desed.tsv").write_text(DESED)
    (tmp_path / "audioset.csv").write_text(AUDIOSET)
    desed = strong_labels.read(tmp_path / "desed.tsv")
    assert desed.events == {
        "a.wav": [KnownEvent(DOG, 0.5, 1.25), KnownEvent(find("Vacuum cleaner").mid, 2, 3)],
        "b.wav": [],
    }
    assert strong_labels.read(tmp_path / "audioset.csv").events == {"xyz_30000": [KnownEvent(DOG, 0.5, 1.25)]}


def test_names_that_are_no_class_are_counted(tmp_path: Path) -> None:
    rows = "a.wav,0,1,Dog\na.wav,1,2,Blorp\nb.wav,1,2,Blorp\nb.wav,0,1,Human sounds\n"
    (tmp_path / "table.csv").write_text("filename,onset,offset,event_label\n" + rows)
    table = strong_labels.read(tmp_path / "table.csv")
    assert table.unknown == {"Blorp": 2, "Human sounds": 1}  # the second has no column of the 527
    assert table.events == {"a.wav": [KnownEvent(DOG, 0, 1)], "b.wav": []}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("file,from,to,what\na,0,1,Dog\n", "first line must name the columns"),
        ("filename,onset,offset,event_label\na,0,1,Dog\na,1,x,Dog\n", "line 3: '1' and 'x' are not times"),
        ("filename,onset,offset,event_label\na,2,1,Dog\n", "line 2: an event cannot last from 2 to 1 s"),
        ("filename,onset,offset,event_label\na,nan,1,Dog\n", "cannot last from nan"),
        ("filename,onset,offset,event_label\na,0,1,Blorp\n", "no event of a known class"),
        ("filename,onset,offset,event_label\na,0\n", "line 2: '0' and '' are not times"),
    ],
)
def test_a_bad_table_is_refused_by_its_line(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(content)
    with pytest.raises(ValueError, match=said):
        strong_labels.read(tmp_path / "table.csv")


def test_recordings_are_found_by_name_under_the_folder_and_missing_ones_are_listed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    stereo = np.stack([0.2 * np.ones(4800), 0.4 * np.ones(4800)], axis=1)
    soundfile.write(tmp_path / "deep" / "a.flac", stereo, 48_000)
    table = strong_labels.Table(tmp_path / "none.csv", {"a.wav": [KnownEvent(DOG, 0, 1)], "gone.wav": []})
    (scene,) = strong_labels.scenes(table, tmp_path)
    assert (scene.name, scene.rate, scene.events) == ("a.wav", 48_000, [KnownEvent(DOG, 0, 1)])
    assert scene.samples == pytest.approx(np.full(4800, 0.3), abs=1e-3)
    assert table.missing == ["gone.wav"]
    with pytest.raises(FileNotFoundError, match="none of the 1 files"):
        list(strong_labels.scenes(strong_labels.Table(tmp_path / "none.csv", {"gone.wav": []}), tmp_path))


# Counting


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (KnownEvent(DOG, 2.0, 3.0), (1, 1, 1)),
        (KnownEvent(DOG, 2.15, 3.15), (1, 1, 2 / 3)),  # one second more
        (KnownEvent(DOG, 2.3, 3.0), (0, 1, 1)),  # begins too late for the narrow collar
        (KnownEvent(DOG, 2.0, 3.3), (0, 1, 2 / 3)),
        (KnownEvent(DOG, 2.0, 3.8), (0, 0, 2 / 3)),
        (KnownEvent(SIREN, 2.0, 3.0), (0, 0, 0)),
        (KnownEvent(DOG, 6.0, 7.0), (0, 0, 0)),
    ],
)
def test_an_answer_counts_by_its_class_its_collar_and_its_seconds(answer: KnownEvent, expected: tuple) -> None:
    counts = count([[KnownEvent(DOG, 2.0, 3.0)]], [[answer]], [10.0], sorted([DOG, SIREN]))
    assert [float(counts[name].f1()) for name in MEASURES] == pytest.approx(list(expected))


def test_a_long_events_offset_may_be_wrong_by_a_fifth_of_its_length() -> None:
    known = [[KnownEvent(DOG, 0.0, 5.0)]]
    late, later = (count(known, [[KnownEvent(DOG, 0.0, end)]], [10.0], [DOG])[MEASURES[0]].f1() for end in (5.9, 6.1))
    assert (late, later) == (1, 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_counts_by_scene_add_up_to_what_sed_eval_says_of_all(seed: int) -> None:
    from sed_eval.sound_event import EventBasedMetrics

    random = np.random.default_rng(seed)
    mids = sorted([DOG, SIREN, RAIN])

    def some() -> list[KnownEvent]:
        starts = random.integers(0, 16, random.integers(0, 5)) / 4
        return [KnownEvent(mids[random.integers(3)], start, start + random.integers(1, 8) / 4) for start in starts]

    known, answered = [some() for _ in range(4)], [some() for _ in range(4)]
    whole = EventBasedMetrics(mids, t_collar=0.5, percentage_of_length=0.2)
    for one, other in zip(known, answered, strict=True):
        listed = [
            [{"event_label": e.mid, "event_onset": e.start, "event_offset": e.end} for e in some]
            for some in (one, other)
        ]
        whole.evaluate(*listed)
    counts = count(known, answered, [10.0] * 4, mids)[MEASURES[1]]
    expected = whole.overall_f_measure()["f_measure"]
    assert float(counts.f1()) == pytest.approx(0 if np.isnan(expected) else expected)


# The whole


def detected_scene(known: list[KnownEvent], curves: dict[str, tuple[float, float, float]]) -> DetectedScene:
    """A scene of 10 s with rows of 0.1 s, in which each class has one probability from one time to another."""
    curve = torch.zeros(100, CLASSES)
    for name, (start, end, probability) in curves.items():
        curve[round(start * 10) : round(end * 10), column(name)] = probability
    return DetectedScene("scene", 10.0, known, curve, 0.1)


def test_relatives_of_what_is_there_are_ignored_and_other_classes_are_wrong() -> None:
    scene = detected_scene(
        [KnownEvent(DOG, 1, 3)], {"Dog": (1, 3, 0.9), "Bark": (1, 3, 0.9), "Siren": (5, 6, 0.9), "Rain": (1, 9, 0.9)}
    )
    scored = [DOG, BARK, SIREN]
    assert {event.mid for event in events.answers(scene, scored, 0.5)} == {DOG, SIREN}
    barking = replace(scene, events=[KnownEvent(DOG, 1, 3), KnownEvent(BARK, 1, 2)])
    assert {event.mid for event in events.answers(barking, scored, 0.5)} == {DOG, BARK, SIREN}


def test_the_best_threshold_is_chosen_on_one_half_and_measured_on_the_other() -> None:
    # In the first half sure answers are right and unsure ones wrong; in the second both are right.
    first = detected_scene([KnownEvent(DOG, 1, 3)], {"Dog": (1, 3, 0.65), "Siren": (5, 7, 0.25)})
    second = detected_scene(
        [KnownEvent(DOG, 1, 3), KnownEvent(SIREN, 5, 7)], {"Dog": (1, 3, 0.65), "Siren": (5, 7, 0.25)}
    )
    found = events.measure([first, second] * 3, EVERYTHING, threshold=0.2)
    for name in MEASURES:
        assert found.measures[name].best_threshold == 0.3
        assert found.measures[name].best_f1 == pytest.approx(2 / 3)
        assert found.measures[name].curve[THRESHOLDS.index(0.8)] == 0
    assert found.measures[MEASURES[0]].f1 == pytest.approx(2 * 9 / (9 + 12))
    assert found.events == 9


def test_the_threshold_in_use_need_not_be_on_the_list() -> None:
    scenes = [detected_scene([KnownEvent(DOG, 1, 3)], {"Dog": (1, 3, 0.33)})] * 2
    assert events.measure(scenes, EVERYTHING, threshold=0.32).measures[MEASURES[0]].f1 == 1
    assert events.measure(scenes, EVERYTHING, threshold=0.34).measures[MEASURES[0]].f1 == 0


def test_classes_that_the_detector_lacks_are_named_and_not_counted() -> None:
    scenes = [detected_scene([KnownEvent(DOG, 1, 3), KnownEvent(SIREN, 5, 7)], {"Dog": (1, 3, 0.9)})] * 2
    found = events.measure(scenes, frozenset([DOG]))
    assert found.unheard == ["Siren"]
    assert found.measures[MEASURES[0]].f1 == 1
    with pytest.raises(ValueError, match="0 of 2 scenes"):
        events.measure(scenes, frozenset([RAIN]))


def test_a_detector_of_tones_finds_nearly_all_of_their_events(clips: Clips) -> None:
    detector = DetectorUnderTest("bands", FourClasses().eval(), "cpu")
    scenes = events.detect_scenes(detector, soundscapes.compose(clips, 12))
    found = events.measure(scenes, detector.class_mids, threshold=0.2)
    assert found.measures["events, collar 0.5 s"].f1 > 0.9
    assert found.measures["segments of 1 s"].f1 > 0.9
    late = [
        DetectedScene(
            one.name,
            one.seconds,
            [KnownEvent(e.mid, e.start + 2, e.end + 2) for e in one.events],
            one.curve,
            one.row_seconds,
        )
        for one in scenes
    ]
    assert events.measure(late, detector.class_mids, threshold=0.2).measures["events, collar 0.5 s"].f1 < 0.3


# The command


def test_the_command_evaluates_the_shipped_detector_on_a_table(clips: Clips, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(events.evaluate_events)
    rows = ["filename,onset,offset,event_label", "gone.wav,0,1,Sine wave", "0.wav,0,1,Blorp"]
    for number in range(3):
        scene = np.concatenate([np.zeros(2 * RATE), tone(0, 2 * RATE, RATE).numpy(), np.zeros(2 * RATE)])
        soundfile.write(tmp_path / f"{number}.wav", scene, RATE)
        rows.append(f"{number}.wav,2,4,Sine wave")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    report, picture = tmp_path / "events.json", tmp_path / "events.png"
    arguments = ["--strong", str(tmp_path / "table.csv"), "--output", str(report), "--plot", str(picture)]
    ended = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert ended.exit_code == 0
    assert "1 rows of 1 names" in ended.stdout
    assert "1 files" in ended.stdout
    found = json.loads(report.read_text())
    assert (found["scenes"], found["events"]) == (3, 3)
    assert found["measures"]["segments of 1 s"]["f1"] > 0.5
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", [[], ["--corpus", ".", "--strong", __file__]])
def test_the_command_wants_one_kind_of_reference(arguments: list[str]) -> None:
    app = typer.Typer()
    app.command()(events.evaluate_events)
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 2
