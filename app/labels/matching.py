"""Which class a text means: equality for asking; for searching and for near names, likeness to what a class is called.

A class is called by its name, by the parts of its name (`Male speech, man speaking` is two), and by its synonyms. Words
are compared by their stems, and by rapidfuzz where letters are wrong. Behind them come classes on whose path the text
is, and last those whose description holds its words.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from rapidfuzz import fuzz

from app.model_registry import ClassDescription

_LEAST = 0.45  # of a score worth showing
_NEAR = 5  # names offered when one is unknown
_TYPO = 0.75  # the least likeness of two words that may be one with wrong letters
_WRONG = 0.9  # times the likeness, so that a wrong letter counts less than a missing word
_SHORTEST_TYPO = 4  # letters: in shorter words one wrong letter is another word
_BEGINNING = 0.8  # of a word that only begins like the one that was meant
_STEMS = 0.98  # the text is the whole name, in another form
_PART = 0.97  # the text is one part of the name
_SYNONYM = 0.95
_NAME_WORDS, _SYNONYM_WORDS = 0.92, 0.86  # times how well words match
_PATH = 0.6
_DESCRIPTION = 0.5
_STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "for",
        "from",
        "in",
        "into",
        "is",
        "it",
        "its",
        "of",
        "on",
        "or",
        "sound",
        "sounds",
        "that",
        "the",
        "to",
        "with",
    ]
)


@dataclass(frozen=True)
class _Called:
    """One thing that a class is called, ready to be compared."""

    text: str
    words: tuple[str, ...]  # stems
    exact: float
    weight: float


@dataclass(frozen=True)
class _Prepared:
    called: tuple[_Called, ...]
    path: frozenset[str]  # what the steps above it are called
    description: frozenset[str]  # stems


def find(classes: list[ClassDescription], text: str) -> ClassDescription | None:
    """The class of this name, slug or Freebase id, whatever the case."""
    wanted = _folded(text)
    return next((known for known in classes if wanted in _names(known.label, known.slug, known.mid)), None)


def score(known: ClassDescription, text: str) -> float:
    """How well a text matches a class, 0 to 1: what it is called, what it is a kind of, what it is said to be."""
    wanted = _folded(text)
    if wanted in _names(known.label, known.slug, known.mid):
        return 1.0
    words = _stems(wanted)
    if not words:
        return 0.0
    prepared = _prepared(known.label, tuple(known.path), tuple(known.synonyms), known.description)
    best = max(_score_called(called, wanted, words) for called in prepared.called)
    if words == prepared.called[0].words:
        best = max(best, _STEMS)
    if wanted in prepared.path:
        best = max(best, _PATH)
    if all(word in prepared.description for word in words):
        best = max(best, _DESCRIPTION)
    return best if best >= _LEAST else 0.0


def search(classes: list[ClassDescription], text: str, limit: int) -> list[tuple[ClassDescription, float]]:
    """Classes that a text may mean, the likeliest first, of equals those that can be asked for; all of them, by name,
    when it is empty."""
    if not text.strip():
        return [(known, 1.0) for known in sorted(classes, key=lambda known: known.label)[:limit]]
    scored = [(known, score(known, text)) for known in classes]
    found = [(known, value) for known, value in scored if value > 0]
    return sorted(found, key=lambda pair: (-pair[1], not pair[0].askable, pair[0].label))[:limit]


def near(classes: list[ClassDescription], text: str) -> list[str]:
    """Names of classes that can be asked for, in place of a name that cannot: alike, above it or below it."""
    if not text.strip():
        return []
    askable = [known for known in classes if known.askable]
    meant = find(classes, text)
    above = [known.label for known in askable if meant is not None and known.label in meant.path]
    alike = [known.label for known, _ in search(askable, text, _NEAR)]
    return list(dict.fromkeys([*reversed(above), *alike]))[:_NEAR]


@lru_cache(maxsize=4096)
def _names(label: str, slug: str, mid: str) -> tuple[str, str, str]:
    return _folded(label), _folded(slug), _folded(mid)


@lru_cache(maxsize=4096)
def _prepared(label: str, path: tuple[str, ...], synonyms: tuple[str, ...], description: str) -> _Prepared:
    parts = [_folded(label), *_parts(label)]
    called = [_Called(part, _stems(part), _PART, _NAME_WORDS) for part in parts]
    called += [_Called(_folded(word), _stems(word), _SYNONYM, _SYNONYM_WORDS) for word in synonyms]
    steps = frozenset(part for step in path[:-1] for part in [_folded(step), *_parts(step)])
    return _Prepared(tuple(called), steps, frozenset(_stems(description)))


def _parts(label: str) -> list[str]:
    """`Gunshot, gunfire` -> gunshot, gunfire; `Police car (siren)` -> police car."""
    return [_folded(part) for part in re.sub(r"\(.*?\)", "", label).split(",") if part.strip()]


def _score_called(called: _Called, wanted: str, words: tuple[str, ...]) -> float:
    if wanted == called.text:
        return called.exact
    # `gun shot` is `gunshot`, and so nearly is `gnushot`.
    by_letters = _likeness(wanted.replace(" ", ""), called.text.replace(" ", ""))
    return called.weight * max(by_letters, _words_alike(words, called.words))


def _words_alike(wanted: tuple[str, ...], words: tuple[str, ...]) -> float:
    """How much of the text is there and, counted less, how much of what is there is the text; long words count more."""
    if not words:
        return 0.0
    there = _covered(wanted, words)
    return there * (0.75 + 0.25 * _covered(words, wanted)) if there >= 0.5 else 0.0


def _covered(words: tuple[str, ...], others: tuple[str, ...]) -> float:
    return sum(len(word) * max(_alike(word, other) for other in others) for word in words) / sum(map(len, words))


@lru_cache(maxsize=65536)
def _alike(word: str, other: str) -> float:
    if word == other:
        return 1.0
    shorter = min(len(word), len(other))
    if shorter < 3:
        return 0.0
    if word.startswith(other) or other.startswith(word):
        return _BEGINNING
    return _likeness(word, other)


def _likeness(one: str, other: str) -> float:
    """1 for the same letters, less for wrong ones, 0 where they are too many or the words too short for any."""
    if min(len(one), len(other)) < _SHORTEST_TYPO:
        return 0.0
    likeness = fuzz.ratio(one, other, score_cutoff=100 * _TYPO) / 100
    return likeness if likeness == 1 else _WRONG * likeness


def _folded(text: str) -> str:
    return " ".join(text.casefold().replace("_", " ").split())


def _stems(text: str) -> tuple[str, ...]:
    """Its words without what English hangs on them: `barking dogs` -> bark, dog."""
    words = re.findall(r"[^\W_]+", text.casefold().replace("'s", ""))
    return tuple(dict.fromkeys(_stem(word) for word in words if word not in _STOP_WORDS))


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word.removesuffix(ending)
            if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    return word[:-1] if word.endswith("e") and len(word) > 3 else word
