import csv
import re

import pytest

from models import labels
from models.errors import LabelUnknown


def test_the_columns_of_a_detector_are_the_527_classes_in_order():
    classes = labels.classes()
    assert len(classes) == labels.CLASSES == 527
    assert [label.index for label in classes] == list(range(527))
    assert classes[0].name == "Speech"
    assert classes[0].path == ("Human sounds", "Human voice", "Speech")


def test_every_class_has_a_path_that_ends_with_itself():
    known = labels.ontology()
    assert len(known) == 632
    names = {label.name for label in known.values()}
    for label in known.values():
        assert label.path[-1] == label.name
        assert set(label.path) <= names
        assert len(set(label.path)) == len(label.path), "a class cannot be its own ancestor"
    assert {label.path[0] for label in known.values()} == {
        "Human sounds",
        "Animal",
        "Music",
        "Natural sounds",
        "Sounds of things",
        "Source-ambiguous sounds",
        "Channel, environment and background",
    }


def test_slugs_are_unique_and_plain():
    slugs = [label.slug for label in labels.ontology().values()]
    assert len(set(slugs)) == len(slugs)
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", slug) for slug in slugs)


@pytest.mark.parametrize(
    "text", ["Male speech, man speaking", "male-speech-man-speaking", "/m/05zppz", "MALE speech, man speaking "]
)
def test_a_class_is_found_by_name_slug_or_mid(text):
    assert labels.find(text).mid == "/m/05zppz"


def test_each_class_is_found_by_each_of_its_names():
    for label in labels.ontology().values():
        assert labels.find(label.name) is labels.find(label.slug) is labels.find(label.mid) is label


@pytest.mark.parametrize(
    ("text", "expected"),
    [("sirene", "Siren"), ("dogs", "Dog"), ("man speeking", "Male speech, man speaking"), ("guitar", "Guitar")],
)
def test_an_unknown_name_lists_near_ones(text, expected):
    assert expected in labels.near(text)


def test_an_unknown_name_is_an_error_that_names_the_near_ones():
    with pytest.raises(LabelUnknown, match="Did you mean 'Siren'") as raised:
        labels.find("sirene")
    assert raised.value.code == "label_unknown"
    assert raised.value.near[0] == "Siren"
    with pytest.raises(LabelUnknown) as raised:
        labels.find("xqzw")
    assert raised.value.near == []


def test_synonyms_belong_to_classes_and_are_written_once():
    known = labels.ontology().values()
    with (labels.FOLDER / "synonyms.csv").open(encoding="utf-8", newline="") as file:
        rows = [row["name"] for row in csv.DictReader(file)]
    assert len(set(rows)) == len(rows) and set(rows) <= {label.name for label in known}
    for label in known:
        assert len(set(label.synonyms)) == len(label.synonyms)
        assert all(word == word.strip().lower() != label.name.lower() for word in label.synonyms)
        assert label.description
