"""Matching of a text to classes: equality for targets; similarity for searches and for suggestions.

A class has several terms: its name, the parts of its name (`Male speech, man speaking` has two), and its synonyms.
Words are compared by their stems, and by rapidfuzz to allow typos. Classes with the text on their path rank below
matching terms, and last are those whose description contains its words.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from rapidfuzz import fuzz

from app.model_registry import ClassDescription

_MIN_SCORE = 0.45  # of a search result
_MAX_SUGGESTIONS = 5  # in place of an unknown name
_MIN_SIMILARITY = 0.75  # of two words that may differ by a typo
_TYPO = 0.9  # times the similarity, so that a typo scores less than a missing word
_MIN_TYPO_LENGTH = 4  # letters: in shorter words one other letter makes another word
_PREFIX = 0.8  # a word that is a prefix of the other
_SAME_STEMS = 0.98  # the text is the whole name in another form
_NAME_PART = 0.97  # the text is a part of the name
_SYNONYM = 0.95
_NAME_WORDS, _SYNONYM_WORDS = 0.92, 0.86  # times how well the words match
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
class _Term:
    """A name, a part of a name or a synonym, prepared for comparison; `exact` is the score of equality."""

    text: str
    words: tuple[str, ...]  # stems
    exact: float
    weight: float


@dataclass(frozen=True)
class _Entry:
    """A class, prepared for comparison."""

    terms: tuple[_Term, ...]  # the first is the whole name
    ancestors: frozenset[str]  # names on the path above the class, and their parts
    description: frozenset[str]  # stems


def find(classes: list[ClassDescription], text: str) -> ClassDescription | None:
    """Return the class with this name, slug or Freebase id, ignoring case."""
    folded = _fold(text)
    return next((entry for entry in classes if folded in _identifiers(entry.label, entry.slug, entry.mid)), None)


def score(description: ClassDescription, text: str) -> float:
    """Return how well a text matches a class, from 0 to 1."""
    folded = _fold(text)
    if folded in _identifiers(description.label, description.slug, description.mid):
        return 1.0
    words = _stems(folded)
    if not words:
        return 0.0
    entry = _prepare(description.label, tuple(description.path), tuple(description.synonyms), description.description)
    best = max(_score_term(term, folded, words) for term in entry.terms)
    if words == entry.terms[0].words:
        best = max(best, _SAME_STEMS)
    if folded in entry.ancestors:
        best = max(best, _PATH)
    if all(word in entry.description for word in words):
        best = max(best, _DESCRIPTION)
    return best if best >= _MIN_SCORE else 0.0


def search(classes: list[ClassDescription], text: str, limit: int) -> list[tuple[ClassDescription, float]]:
    """Return matching classes with their scores, the best first, askable ones first among equals.

    An empty text matches all classes, sorted by name.
    """
    if not text.strip():
        return [(description, 1.0) for description in sorted(classes, key=lambda entry: entry.label)[:limit]]
    scores = [(description, score(description, text)) for description in classes]
    matches = [(description, value) for description, value in scores if value > 0]
    return sorted(matches, key=lambda match: (-match[1], not match[0].askable, match[0].label))[:limit]


def near(classes: list[ClassDescription], text: str) -> list[str]:
    """Return names of askable classes to suggest in place of one that is not: ancestors of it and similar names."""
    if not text.strip():
        return []
    askable = [description for description in classes if description.askable]
    match = find(classes, text)
    ancestors = [description.label for description in askable if match is not None and description.label in match.path]
    similar = [description.label for description, _ in search(askable, text, _MAX_SUGGESTIONS)]
    return list(dict.fromkeys([*reversed(ancestors), *similar]))[:_MAX_SUGGESTIONS]


@lru_cache(maxsize=4096)
def _identifiers(label: str, slug: str, mid: str) -> tuple[str, str, str]:
    return _fold(label), _fold(slug), _fold(mid)


@lru_cache(maxsize=4096)
def _prepare(label: str, path: tuple[str, ...], synonyms: tuple[str, ...], description: str) -> _Entry:
    names = [_fold(label), *_parts(label)]
    terms = [_Term(name, _stems(name), _NAME_PART, _NAME_WORDS) for name in names]
    terms += [_Term(_fold(synonym), _stems(synonym), _SYNONYM, _SYNONYM_WORDS) for synonym in synonyms]
    ancestors = frozenset(name for ancestor in path[:-1] for name in [_fold(ancestor), *_parts(ancestor)])
    return _Entry(tuple(terms), ancestors, frozenset(_stems(description)))


def _parts(label: str) -> list[str]:
    """`Gunshot, gunfire` -> gunshot, gunfire; `Police car (siren)` -> police car."""
    return [_fold(part) for part in re.sub(r"\(.*?\)", "", label).split(",") if part.strip()]


def _score_term(term: _Term, folded: str, words: tuple[str, ...]) -> float:
    if folded == term.text:
        return term.exact
    # `gun shot` equals `gunshot` without spaces, and `gnushot` is similar to it.
    by_letters = _similarity(folded.replace(" ", ""), term.text.replace(" ", ""))
    return term.weight * max(by_letters, _score_words(words, term.words))


def _score_words(words: tuple[str, ...], term_words: tuple[str, ...]) -> float:
    """Return how much of the text the term covers and, with less weight, how much of the term the text covers."""
    if not term_words:
        return 0.0
    coverage = _coverage(words, term_words)
    return coverage * (0.75 + 0.25 * _coverage(term_words, words)) if coverage >= 0.5 else 0.0


def _coverage(words: tuple[str, ...], others: tuple[str, ...]) -> float:
    """Return the share of `words` that has a match in `others`, from 0 to 1, weighted by length."""
    return sum(len(word) * max(_compare(word, other) for other in others) for word in words) / sum(map(len, words))


@lru_cache(maxsize=65536)
def _compare(word: str, other: str) -> float:
    if word == other:
        return 1.0
    shorter = min(len(word), len(other))
    if shorter < 3:
        return 0.0
    if word.startswith(other) or other.startswith(word):
        return _PREFIX
    return _similarity(word, other)


def _similarity(one: str, other: str) -> float:
    """Return 1 for equal letters, less for typos, and 0 for too many typos or words too short to have any."""
    if min(len(one), len(other)) < _MIN_TYPO_LENGTH:
        return 0.0
    similarity = fuzz.ratio(one, other, score_cutoff=100 * _MIN_SIMILARITY) / 100
    return similarity if similarity == 1 else _TYPO * similarity


def _fold(text: str) -> str:
    return " ".join(text.casefold().replace("_", " ").split())


def _stems(text: str) -> tuple[str, ...]:
    """Return the distinct stems of a text's words, without stop words: `barking dogs` -> bark, dog."""
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
