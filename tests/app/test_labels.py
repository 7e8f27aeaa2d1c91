"""What people type, and the classes that they mean: all of AudioSet's, as a worker announces them."""

import time
from functools import cache

import pytest

from app.labels import matching
from app.model_registry import ClassDescription
from models import labels


@cache
def classes() -> list[ClassDescription]:
    return [
        ClassDescription(
            label=label.name,
            mid=label.mid,
            slug=label.slug,
            path=list(label.path),
            askable=True,
            synonyms=list(label.synonyms),
            description=label.description,
        )
        for label in labels.classes()
    ]


SEARCHES = {
    # names, parts of them, and how they are written
    "siren": ["Siren", "Civil defense siren"],
    "RAIN": ["Rain", "Rain on surface"],
    "car horn": ["Vehicle horn, car horn, honking"],
    "male_speech": ["Male speech, man speaking"],
    "gun shot": ["Gunshot, gunfire"],
    "chain-saw": ["Chainsaw"],
    "thunder storm": ["Thunderstorm", "Thunder"],
    "train whistle": ["Train whistle"],
    "/m/0bt9lr": ["Dog"],
    # other words
    "puppy": ["Dog"],
    "kitten": ["Cat"],
    "motorbike": ["Motorcycle"],
    "kick drum": ["Bass drum"],
    "police": ["Police car (siren)"],
    "phone ringing": ["Telephone bell ringing"],
    "people talking": ["Conversation"],
    "running water": ["Stream", "Water"],
    "glass breaking": ["Shatter", "Glass"],
    "kaboom": ["Explosion", "Boom"],
    # forms of words
    "barking dog": ["Bark"],
    "dogs": ["Dog"],
    "sneezing": ["Sneeze"],
    "gunshots": ["Gunshot, gunfire"],
    "a baby crying": ["Baby cry, infant cry"],
    "churches bells": ["Church bell"],
    # wrong letters
    "sirn": ["Siren"],
    "saxaphone": ["Saxophone"],
    "helicoptor": ["Helicopter"],
    "violn": ["Violin, fiddle"],
    "snooring": ["Snoring"],
    # what is above, and what is said of it
    "animal": ["Animal", "Wild animals"],
    "vehicle": ["Vehicle", "Emergency vehicle"],
    "crowd cheering": ["Cheering", "Crowd"],
    "campanology": ["Change ringing (campanology)"],
    "vocal folds": ["Speech"],
}


@pytest.mark.parametrize("text", SEARCHES)
def test_what_people_type_finds_what_they_mean(text: str) -> None:
    """The first is the first; the others are among the first ten."""
    found = [known.label for known, _ in matching.search(classes(), text, 10)]
    first, *others = SEARCHES[text]
    if text == "vocal folds":  # only descriptions hold it
        assert found
    else:
        assert found[0] == first, found
    assert set(others) <= set(found)


def test_every_class_is_found_first_by_its_own_name_slug_and_id() -> None:
    for known in classes():
        for text in (known.label, known.label.upper(), known.slug, known.mid):
            assert matching.find(classes(), text) == known
            assert matching.score(known, text) == 1.0


def test_every_synonym_finds_its_class() -> None:
    for known in classes():
        for text in known.synonyms:
            found = {one.label: value for one, value in matching.search(classes(), text, 8)}
            assert found.get(known.label, 0) >= 0.9, (text, known.label, found)


def test_scores_fall_and_stay_between_none_and_all() -> None:
    for text in SEARCHES:
        values = [value for _, value in matching.search(classes(), text, 527)]
        assert values == sorted(values, reverse=True)
        assert all(0 < value <= 1 for value in values)


@pytest.mark.parametrize("text", ["zzzzqqq", "---", "of the", "'s", "\x00", "日本語", "x", "%", "a" * 200])
def test_nonsense_finds_nothing(text: str) -> None:
    assert matching.search(classes(), text, 10) == []


def test_of_equals_the_first_is_one_that_can_be_asked_for() -> None:
    one = ClassDescription(label="Aa", mid="/m/1", slug="aa", path=["Top", "Aa"])
    other = ClassDescription(label="Bb", mid="/m/2", slug="bb", path=["Top", "Bb"], askable=True)
    assert [known.label for known, _ in matching.search([one, other], "top", 2)] == ["Bb", "Aa"]


def test_a_search_takes_moments() -> None:
    matching.search(classes(), "warm", 10)
    began = time.process_time()
    for text in list(SEARCHES)[:10]:
        matching.search(classes(), text, 10)
    assert (time.process_time() - began) / 10 < 0.2
