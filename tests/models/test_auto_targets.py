"""Automatic targets: from a detection to classes and their spans."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from models import labels
from models.detection import Detection, timeline
from models.queries import auto_targets

ROW = 0.5  # seconds
CLASSES = [label.name for label in labels.classes()]


def detection(rows: int, **curves: list[float]) -> Detection:
    """A detection in which classes, by slug, have these curves, and all else is silent."""
    framewise = torch.zeros(rows, labels.CLASSES)
    for slug, curve in curves.items():
        index = labels.find(slug.replace("_", "-")).index
        assert index is not None
        framewise[:, index] = torch.tensor(curve)
    return timeline(framewise, ROW, rows * ROW, top=labels.CLASSES)


def names(heard: list[auto_targets.AutoTarget]) -> list[str]:
    return [one.label.name for one in heard]


def test_one_class_stands_for_its_lineage():
    dog = {"animal": [0.98] * 6, "domestic_animals_pets": [0.97] * 6, "dog": [0.95] * 6, "bark": [0.5] * 6}
    assert names(auto_targets.choose_targets(detection(6, **dog))) == ["Dog"]
    sure_of_the_bark = dog | {"bark": [0.9] * 6}
    assert names(auto_targets.choose_targets(detection(6, **sure_of_the_bark))) == ["Bark"]
    with_a_siren = dog | {"siren": [0.96] * 6}
    assert names(auto_targets.choose_targets(detection(6, **with_a_siren))) == ["Siren", "Dog"]
    assert names(auto_targets.choose_targets(detection(6, **with_a_siren), most=1)) == ["Siren"]
    assert auto_targets.choose_targets(detection(6, **dog), threshold=0.99) == []


def test_spans_are_where_a_class_sounds_alone():
    found = auto_targets.choose_targets(detection(8, dog=[0.9] * 6 + [0, 0], siren=[0, 0, 0, 0.8, 0.8, 0.8, 0.8, 0.8]))
    spans = {one.label.name: (one.spans, one.alone) for one in found}
    assert spans == {"Dog": ([(0.0, 1.5)], True), "Siren": ([(3.0, 4.0)], True)}


def test_a_class_that_never_sounds_alone_is_where_it_is_surest():
    siren = [0.7, 0.7, 0.4, 0.4, 0.6, 0.6, 0.6, 0.4]
    found = {one.label.name: one for one in auto_targets.choose_targets(detection(8, dog=[0.9] * 8, siren=siren))}
    assert not found["Siren"].alone
    assert found["Siren"].spans == [(0.0, 1.0), (2.0, 3.5)]


def test_hours_of_a_sound_give_a_query_of_seconds():
    (one,) = auto_targets.choose_targets(detection(2000, dog=[0.9] * 2000))
    assert sum(end - start for start, end in one.spans) == 10.0


def is_prefix(path: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return other[: len(path)] == path


@given(st.dictionaries(st.sampled_from(CLASSES), st.floats(0.3, 1), max_size=40))
def test_no_class_is_anothers_ancestor_and_every_detected_lineage_has_a_target(probabilities: dict[str, float]):
    known = [labels.find(name) for name in probabilities]
    kept = auto_targets.most_specific(known, {labels.find(name).mid: p for name, p in probabilities.items()})
    paths = {label.path for label in kept}
    for label in kept:
        assert not any(label.path[:depth] in paths for depth in range(1, len(label.path)))
    for label in known:
        related = [other for other in kept if is_prefix(label.path, other.path) or is_prefix(other.path, label.path)]
        assert related, label


def test_silence_and_places_are_no_sounds():
    assert auto_targets.choose_targets(detection(4, silence=[1.0] * 4, inside_small_room=[0.9] * 4)) == []


def test_every_slug_can_name_a_target():
    slugs = {label.slug[:64] for label in labels.classes()}
    assert len(slugs) == labels.CLASSES and "residual" not in slugs


def test_stems_that_hold_one_sound_are_found():
    torch.manual_seed(0)
    bird, music, faint = torch.randn(3, 1, 8000)
    stems = {"bird": bird, "music": music, "cricket": 0.5 * bird + 0.1 * faint, "piano": music, "silence": 0 * bird}
    assert auto_targets.same_sounds(stems) == {"cricket": "bird", "piano": "music"}


def test_a_few_seconds_of_each_class_are_compared():
    dog = [0.9] * 20 + [0] * 60
    siren = [0] * 10 + [0.8] * 20 + [0] * 50
    far = [0] * 60 + [0.7] * 20
    chosen = auto_targets.choose_targets(detection(80, dog=dog, siren=siren, bird=far))
    assert auto_targets.compared_spans(chosen) == [(0.0, 4.0), (10.0, 14.0), (30.0, 34.0)]
    assert auto_targets.compared_spans(chosen * 10) == [(0.0, 20 / 30), (10.0, 10 + 20 / 30), (30.0, 30 + 20 / 30)]
    assert auto_targets.compared_spans([]) == []
