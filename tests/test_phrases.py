"""Words that people type for a sound, and the classes that both sides understand by them.

`phrases.csv` has a phrase a row, with the class that it means (or several that are right), `none`, `several` or
`negated`. The half `tune` was there to choose the rule's numbers and synonyms by, the half `test` to measure them.
"""

import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import NamedTuple

import pytest

from app.labels import matching as front_end
from app.labels.wording import slug
from app.model_registry.registry import ClassDescription
from models import labels
from models.labels import KnownClass
from models.queries import matching as command_line
from tests.conftest import REPOSITORY

LEAST_RIGHT = 0.95
HALVES = ("tune", "test")


class Phrase(NamedTuple):
    text: str
    wanted: tuple[str, ...]
    half: str


@cache
def phrases() -> list[Phrase]:
    with (REPOSITORY / "tests" / "phrases.csv").open(encoding="utf-8", newline="") as file:
        return [Phrase(row["phrase"], tuple(row["wanted"].split("; ")), row["half"]) for row in csv.DictReader(file)]


@cache
def known_classes() -> list[KnownClass]:
    """The classes that the shipped model detects, all of them askable."""
    config = json.loads((REPOSITORY / "models" / "weights" / "base.json").read_text())
    detected = set(config["detector"]["class_indices"])
    return [
        KnownClass(label.name, label.mid, label.slug, label.path, True, "clips", label.synonyms, label.description)
        for label in labels.classes()
        if label.index in detected
    ]


@cache
def front_end_vocabulary() -> front_end.Vocabulary[ClassDescription]:
    """As the front end has it: from the description of a model, as JSON."""
    texts = (json.dumps(asdict(known)) for known in known_classes())
    return front_end.Vocabulary([ClassDescription.model_validate_json(text) for text in texts])


@cache
def command_line_vocabulary() -> command_line.Vocabulary[KnownClass]:
    return command_line.Vocabulary(known_classes())


def understand_in_front_end(text: str) -> list[tuple[str, float]] | str:
    try:
        return [(match.label, weight) for match, weight in front_end_vocabulary().resolve(text)]
    except front_end.TextUnknown:
        return "none"
    except front_end.TextRefused as refused:
        return "several" if "more than one sound" in str(refused) else "negated"


def understand_on_command_line(text: str) -> list[tuple[str, float]] | str:
    try:
        return [(match.label, weight) for match, weight in command_line_vocabulary().resolve(text)]
    except command_line.TextUnknown:
        return "none"
    except command_line.TextRefused as refused:
        return "several" if "more than one sound" in str(refused) else "negated"


SIDES = {"front end": understand_in_front_end, "command line": understand_on_command_line}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("understand", SIDES.values(), ids=list(SIDES))
def test_phrases_mean_what_people_mean(understand: Callable, half: str) -> None:
    wrong = []
    chosen = [phrase for phrase in phrases() if phrase.half == half]
    for phrase in chosen:
        understood = understand(phrase.text)
        heaviest = understood if isinstance(understood, str) else understood[0][0]
        if heaviest not in phrase.wanted:
            wrong.append((phrase.text, understood))
    print(f"{half}: {len(chosen) - len(wrong)} of {len(chosen)} right; wrong: {wrong}")
    assert len(wrong) <= (1 - LEAST_RIGHT) * len(chosen), wrong


def test_both_sides_understand_the_same() -> None:
    for phrase in phrases():
        assert understand_in_front_end(phrase.text) == understand_on_command_line(phrase.text)


def test_the_list_is_as_long_as_it_must_be_and_names_classes() -> None:
    assert len({phrase.text for phrase in phrases()}) == len(phrases()) >= 400
    names = {label.name for label in labels.ontology().values()} | {"none", "several", "negated"}
    assert all(set(phrase.wanted) <= names for phrase in phrases())
    counts = [sum(phrase.half == half for phrase in phrases()) for half in HALVES]
    assert min(counts) >= 200 and sum(counts) == len(phrases())


def test_a_search_puts_first_what_a_text_means() -> None:
    """What the page completes is what a target's text asks for."""
    for phrase in phrases():
        understood = understand_in_front_end(phrase.text)
        if isinstance(understood, str):
            continue
        scores = {found.label: score for found, score in front_end_vocabulary().search(phrase.text, 521)}
        assert scores[understood[0][0]] >= max(scores.values()) - 0.005, (phrase.text, understood)


@pytest.mark.parametrize(
    ("text", "matched"),
    [
        ("shower", {"Water tap, faucet": 0.5, "Bathtub (filling or washing)": 0.5}),  # neither is nearer
        ("plane", {"Fixed-wing aircraft, airplane": 1.0}),  # also a synonym of Aircraft, which stands above
        ("Bark", {"Bark": 1.0}),
        ("drum & bass", {"Drum and bass": 1.0}),
        ("/m/05tny_", {"Bark": 1.0}),
    ],
)
def test_weights_add_up_to_one(text: str, matched: dict[str, float]) -> None:
    assert {match.label: weight for match, weight in front_end_vocabulary().resolve(text)} == matched


def test_an_unknown_text_comes_with_near_names() -> None:
    with pytest.raises(front_end.TextUnknown) as raised:
        front_end_vocabulary().resolve("quantum car dog")
    assert "Dog" in raised.value.near and "near it: " in str(raised.value)


def test_a_class_that_cannot_be_asked_for_is_not_replaced_by_another() -> None:
    known = [
        ClassDescription(label="Dog", mid="/m/1", slug="dog", path=["Animal", "Dog"], askable=True),
        ClassDescription(label="Bark", mid="/m/2", slug="bark", path=["Animal", "Dog", "Bark"], synonyms=["woof"]),
    ]
    vocabulary = front_end.Vocabulary(known)
    for text in ("a dog barking", "woof", "bark"):
        with pytest.raises(front_end.TextUnknown) as raised:
            vocabulary.resolve(text)
        assert (raised.value.near == ["Dog"]) == (text != "woof")


def test_classes_of_different_kinds_are_never_averaged() -> None:
    known = [
        ClassDescription(
            label="Tap", mid="/m/1", slug="tap", path=["Home", "Door", "Tap"], askable=True, synonyms=["x"]
        ),
        ClassDescription(
            label="Dance", mid="/m/2", slug="dance", path=["Music", "Dance"], askable=True, synonyms=["x"]
        ),
    ]
    with pytest.raises(front_end.TextUnknown) as raised:
        front_end.Vocabulary(known).resolve("x")
    assert raised.value.near == ["Dance", "Tap"]


def test_a_name_that_holds_an_and_is_not_read_into_two_sounds() -> None:
    for text in ("drums and bass", "bass, drums", "drums/bass"):
        with pytest.raises(front_end.TextRefused, match="more than one sound"):
            front_end_vocabulary().resolve(text)


def test_short_words_are_no_typos() -> None:
    for text in ("best", "the best part of it"):  # not `beast`
        with pytest.raises(front_end.TextUnknown):
            front_end_vocabulary().resolve(text)


def test_refusals_say_how_to_ask() -> None:
    with pytest.raises(front_end.TextRefused, match=r"a target of its own.*: 'a dog'; 'a car'\."):
        front_end_vocabulary().resolve("a dog and a car")
    with pytest.raises(front_end.TextRefused, match=r"Ask for the sound itself.*residual"):
        front_end_vocabulary().resolve("without voice")


@pytest.mark.parametrize(
    "text", ["", " ", "?", "a", "日本語", "\x00", ",", "and", "/", "x" * 200, "dog," * 50, "dog, \ud800"]
)
def test_no_text_is_too_odd(text: str) -> None:
    try:
        front_end_vocabulary().resolve(text)
    except front_end.TextRefused as refused:
        str(refused).encode()  # as an answer is
    else:
        assert text.startswith("dog")


@pytest.mark.parametrize(
    ("text", "name"),
    [("A dog, barking!", "a-dog-barking"), ("Pájaros", "pajaros"), ("Tür", "tur"), ("a" * 99, "a" * 64), ("犬", "")],
)
def test_a_targets_name_is_made_of_its_text(text: str, name: str) -> None:
    assert slug(text) == name
