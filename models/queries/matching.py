"""Matching of a text to classes: what people type, such as `a dog barking`, to the classes of AudioSet that it means.

One rule for the front end and for the command line. Neither package may import the other, so this file and `wording`
beside it stand in both, `app/labels/` and `models/queries/`; they import nothing else of either, and a test keeps them
the same. The data, names and synonyms, are in `models/audioset/` and reach the front end with the descriptions of
models.

A class has several terms: its name, the parts of its name (`Male speech, man speaking` has two), and its synonyms. A
text is compared with them by the stems of its words: how much of the text a term, with the names above its class,
explains, and how much of the term the text holds. Words that tell sounds less well weigh less: `a man`, `loud`, what
follows `in the`. `resolve` accepts only what a text surely means; `search` also lists what it may mean.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

from models.queries import wording

SURE = 0.7  # least score of a class that a text resolves to, chosen on the `tune` half of tests/phrases.csv
_TIE = 0.005  # of scores: a text that names classes equally well asks for their mean
_MOST_TIED = 3  # a text that names more classes equally well names none,
_CLOSE = 2  # nor does one that names classes of different branches of the tree, which part below this depth
_MIN_SCORE, _MIN_NEAR = 0.45, 0.3  # of a search result, and of a suggestion in place of an unknown text
_MAX_SUGGESTIONS = 5  # in place of an unknown name
_MAX_WORDS = 24  # of a text; the others are ignored

_NAME, _NAME_PART, _SYNONYM = 0.99, 0.97, 0.95  # a text that is a term, but for stop words and plurals
_INFLECTED = 0.97  # times that, of a text that has its words in another form or order
_INHERITED = 0.95  # a word that is not in the term, but in one of a class above
_MISSING = 0.55  # of its score a term loses in proportion to the words that the text does not have
_PATH, _DESCRIPTION = 0.6, 0.5  # a text that names a class above, or has words of the description
_TYPO, _PREFIX = 0.9, 0.7  # a word that resembles one of a term, or that one of them begins with the other
_LONG = 5  # letters: a word with fewer resembles too many others, as `best` does `beast`, to be surely a typo
_LIGHT_WEIGHT, _AFTER_PREPOSITION, _UNKNOWN = 0.05, 0.1, 0.5  # weights of words in a text; of the others 1

SEVERAL = (
    "{text!r} names more than one sound. Ask for each as a target of its own, so that each gets a stem of its own: "
    "{parts}."
)
NEGATED = (
    "{text!r} says what is not wanted. Ask for the sound itself, in words without a negation: its stem is that sound "
    "alone, and the residual is the recording without it."
)
UNKNOWN = "No sound that can be asked for by name is surely meant by {text!r}{near}."


class Named(Protocol):
    """A class, as models describe it."""

    @property
    def label(self) -> str: ...
    @property
    def mid(self) -> str: ...
    @property
    def slug(self) -> str: ...
    @property
    def path(self) -> Sequence[str]: ...
    @property
    def askable(self) -> bool: ...
    @property
    def synonyms(self) -> Sequence[str]: ...
    @property
    def description(self) -> str: ...


Class = TypeVar("Class", bound=Named)


class TextRefused(Exception):
    """The text names several sounds, or what is not wanted; the message says how to ask."""


class TextUnknown(TextRefused):
    """No askable class is surely meant; `near` lists names of similar ones."""

    def __init__(self, message: str, near: list[str]) -> None:
        super().__init__(message)
        self.near = near


def near_names(near: Sequence[str]) -> str:
    """Return the end of a sentence about an unknown name: names in its place, quoted, since some have commas."""
    return f"; near it: {', '.join(map(repr, near))}" if near else ""


@dataclass(frozen=True)
class _Term:
    """A name, a part of a name or a synonym; `exact` is the score of a text that is the same."""

    entry: int  # index of its class
    singular: str  # the text without stop words and plurals
    stems: tuple[str, ...]
    exact: float


@dataclass(frozen=True)
class _Word:
    """A word of a text: its weight, and the stems of the vocabulary that it matches, each by how well, 0 to 1."""

    weight: float
    matches: Mapping[str, float]


class Vocabulary(Generic[Class]):
    """The classes of one model, prepared for comparison with texts."""

    def __init__(self, classes: Iterable[Class]) -> None:
        self._classes = list(classes)
        self._by_identifier: dict[str, Class] = {}
        self._whole: dict[frozenset[str], list[_Term]] = defaultdict(list)  # by their stems, in any order
        self._joined: dict[str, list[_Term]] = defaultdict(list)  # without spaces: `gun shot` is `gunshot`
        self._by_stem: dict[str, list[_Term]] = defaultdict(list)
        terms = [_terms(index, one) for index, one in enumerate(self._classes)]
        self._forms = {
            token: wording.stem(token)
            for one in self._classes
            for text in _texts(one)
            for token in wording.tokens(text)
        }
        for term in (term for of_class in terms for term in of_class):
            self._whole[frozenset(term.stems)].append(term)
            self._joined["".join(term.stems)].append(term)
            for stem in term.stems:
                self._by_stem[stem].append(term)
        self._names = [term for of_class in terms for term in of_class if term.exact > _SYNONYM]
        own = {
            one.label: frozenset(stem for term in of_class for stem in term.stems) - wording.LIGHT_STEMS
            for one, of_class in zip(self._classes, terms, strict=True)
        }
        self._above = [frozenset().union(*(own.get(name, ()) for name in one.path[:-1])) for one in self._classes]
        self._paths = [
            frozenset(part for name in one.path[:-1] for part in (wording.fold(name), *_parts(name)))
            for one in self._classes
        ]
        self._descriptions = [frozenset(wording.stems(one.description)) for one in self._classes]
        for one in reversed(self._classes):  # the first of two classes with the same text is found
            self._by_identifier |= dict.fromkeys(
                (wording.fold(one.mid), wording.fold(one.slug), wording.fold(one.label)), one
            )
        self._matches = lru_cache(maxsize=4096)(self._compare)

    def find(self, text: str) -> Class | None:
        """Return the class with this name, slug or Freebase id, ignoring case."""
        return self._by_identifier.get(wording.fold(text))

    def search(self, text: str, limit: int) -> list[tuple[Class, float]]:
        """Return matching classes with their scores, 0 to 1, the best first, askable ones first among equals.

        An empty text matches all classes, sorted by name.
        """
        if not text.strip():
            return [(one, 1.0) for one in sorted(self._classes, key=lambda one: one.label)[:limit]]
        return self._ranked(text, _MIN_SCORE)[:limit]

    def near(self, text: str) -> list[str]:
        """Return names of askable classes to suggest in place of one that is not: ancestors of it and similar names.

        A name that differs from the text by a typo counts even if it has few letters: a suggestion need not be sure.
        """
        if not text.strip():
            return []
        match = self.find(text)
        above = [one.label for one in self._classes if one.askable and match is not None and one.label in match.path]
        scores, spellings = self._scores(text), self._spellings(text)
        similarity = {
            index: (max(scores.get(index, 0.0), spellings.get(index, 0.0)), scores.get(index, 0.0))
            for index in scores | spellings
            if self._classes[index].askable
        }
        similar = [index for index, (best, _) in similarity.items() if best >= _MIN_NEAR]
        similar.sort(key=lambda index: (*(-score for score in similarity[index]), self._classes[index].label))
        names = [*reversed(above), *(self._classes[index].label for index in similar)]
        return list(dict.fromkeys(names))[:_MAX_SUGGESTIONS]

    def refusal(self, text: str) -> tuple[str | None, list[str]]:
        """Return why `resolve` refuses a text, if it does, and names to suggest instead. No text is not refused."""
        try:
            if text.strip():
                self.resolve(text)
        except TextUnknown as error:
            return str(error), error.near
        except TextRefused as error:
            return str(error), []
        return None, []

    def resolve(self, text: str) -> list[tuple[Class, float]]:
        """Return the askable classes that a text means, one or a few that it names equally well, with weights that add
        up to 1, the heaviest first.

        Raises TextUnknown, and TextRefused for a text that names several sounds or what is not wanted.
        """
        whole = self._whole_match(text)
        if not whole:
            if wording.NEGATION.search(wording.plain(text)):
                raise TextRefused(NEGATED.format(text=text))
            self._require_one_sound(text)
        matches = whole or self._sure(text)
        if not matches or not all(one.askable for one, _ in matches):
            near = self.near(text)
            raise TextUnknown(UNKNOWN.format(text=text, near=near_names(near)), near)
        total = sum(score for _, score in matches)
        return [(one, round(score / total, 3)) for one, score in matches]

    # Scores

    def _ranked(self, text: str, least: float) -> list[tuple[Class, float]]:
        scores = self._scores(text)
        matches = [(self._classes[index], score) for index, score in scores.items() if score >= least]
        return sorted(matches, key=lambda match: (-match[1], not match[0].askable, match[0].label))

    def _scores(self, text: str) -> dict[int, float]:
        """Return the scores of all classes that have anything to do with a text, by their index."""
        scores: dict[int, float] = defaultdict(float)
        identified = self.find(text)
        folded, words = wording.fold(text), self._words(text)
        for term in {term for word in words for stem in word.matches for term in self._by_stem[stem]}:
            scores[term.entry] = max(scores[term.entry], self._score(term, words))
        for index, score in self._whole_scores(text).items():
            scores[index] = max(scores[index], score)
        described = set(wording.stems(text))
        for index, one in enumerate(self._classes):
            if one is identified:
                scores[index] = 1.0
            elif folded in self._paths[index]:
                scores[index] = max(scores[index], _PATH)
            elif described and described <= self._descriptions[index]:
                scores[index] = max(scores[index], _DESCRIPTION)
        return scores

    def _score(self, term: _Term, words: Sequence[_Word]) -> float:
        """Return how much of the text a term and the names above it explain and, with less weight, how much of the
        term the text holds."""
        above = self._above[term.entry]
        explained = held = total = whole = 0.0
        for word in words:
            own = max((word.matches.get(stem, 0.0) for stem in term.stems), default=0.0)
            inherited = max((value for stem, value in word.matches.items() if stem in above), default=0.0)
            explained += word.weight * max(own, _INHERITED * inherited if inherited >= _TYPO else 0.0)
            total += word.weight
        for stem in term.stems:
            match, weight = max((word.matches.get(stem, 0.0), word.weight) for word in words)
            weight = max(weight if match else 0.0, _LIGHT_WEIGHT) if stem in wording.LIGHT_STEMS else 1.0
            held += weight * match
            whole += weight
        return _INFLECTED * term.exact * (explained / total) * (1 - _MISSING * (1 - held / whole)) if held else 0.0

    def _spellings(self, text: str) -> dict[int, float]:
        """Return how much the text resembles names of classes, or parts of them, that it is but for a typo."""
        spellings: dict[int, float] = {}
        written = wording.singular(text)
        for term in self._names:
            edits = wording.edits(written, term.singular)
            if edits is not None:
                score = _TYPO * term.exact * (1 - edits / (2 * max(len(written), len(term.singular))))
                spellings[term.entry] = max(spellings.get(term.entry, 0.0), score)
        return spellings

    def _words(self, text: str) -> list[_Word]:
        """Return the words of a text that are not stop words, with what they match; if all are light, none is."""
        words: list[tuple[str, float]] = []
        after_preposition = False
        for token in wording.tokens(text)[:_MAX_WORDS]:
            if token in wording.PREPOSITIONS and any(weight > _LIGHT_WEIGHT for _, weight in words):
                after_preposition = True
            elif token not in wording.STOP and token not in wording.PREPOSITIONS:
                weight = _LIGHT_WEIGHT if token in wording.LIGHT else _AFTER_PREPOSITION if after_preposition else 1.0
                words.append((token, weight))
        if all(weight == _LIGHT_WEIGHT for _, weight in words):
            words = [(token, 1.0) for token, _ in words]
        matched = [(weight, self._matches(token)) for token, weight in words]
        return [_Word(min(weight, 1.0 if _is_known(found) else _UNKNOWN), found) for weight, found in matched]

    def _compare(self, token: str) -> Mapping[str, float]:
        """Return the stems of the vocabulary that a word matches: its own, those that it begins or that begin it, and,
        if the vocabulary does not have it, those of words that differ by a typo."""
        stem = wording.stem(token)
        found = {
            other: _PREFIX
            for other in self._by_stem
            if min(len(stem), len(other)) >= 3 and (other.startswith(stem) or stem.startswith(other))
        }
        if stem in self._by_stem:
            return found | {stem: 1.0}
        similar = {
            other: min(len(token), len(form)) for form, other in self._forms.items() if wording.is_typo(token, form)
        }
        return found | {other: _TYPO if length >= _LONG else _PREFIX for other, length in similar.items()}

    # Sure matches

    def _whole_match(self, text: str) -> list[tuple[Class, float]]:
        """Return the class that a text identifies, or the classes of the terms that have its very words."""
        identified = self.find(text)
        if identified is not None:
            return [(identified, 1.0)]
        scores = self._whole_scores(text)
        if wording.SURELY_SEVERAL.search(wording.plain(text)):
            # `drums and bass` are two sounds, `drum and bass` is one.
            tokens = wording.tokens(text)
            scores = {
                index: score
                for index, score in scores.items()
                if tokens in map(wording.tokens, _texts(self._classes[index]))
            }
        return self._best(scores)

    def _whole_scores(self, text: str) -> dict[int, float]:
        """Return the scores of the classes with a term that has the words of a text and no others."""
        scores: dict[int, float] = {}
        singular, found = wording.singular(text), wording.stems(text)
        for term in [*self._whole.get(frozenset(found), []), *self._joined.get("".join(found), [])]:
            score = term.exact if term.singular == singular else _INFLECTED * term.exact
            scores[term.entry] = max(scores.get(term.entry, 0.0), score)
        return scores

    def _sure(self, text: str) -> list[tuple[Class, float]]:
        return self._best({index: score for index, score in self._scores(text).items() if score >= SURE})

    def _best(self, scores: Mapping[int, float]) -> list[tuple[Class, float]]:
        """Return the classes with the best score: none above another of them; none at all if they are many, or of
        different kinds."""
        best = max(scores.values(), default=0.0)
        tied = [(self._classes[index], score) for index, score in scores.items() if score >= best - _TIE]
        tied = [
            (one, score)
            for one, score in tied
            if not any(one.label in other.path[:-1] and score <= above for other, above in tied)
        ]
        tied.sort(key=lambda match: -match[1])
        are_close = len(tied) <= _MOST_TIED and len({tuple(one.path[:_CLOSE]) for one, _ in tied}) <= 1
        return tied if are_close else []

    def _require_one_sound(self, text: str) -> None:
        """Raise TextRefused if what stands around an `and` or a comma are sounds of their own."""
        plain = wording.plain(text)
        found = {
            part.strip(): self._whole_match(part) or self._sure(part) for part in wording.BETWEEN_SOUNDS.split(plain)
        }
        sounds = {
            part: matches
            for part, matches in found.items()
            if matches or not wording.LIGHT.issuperset(wording.content(part))
        }
        if len(sounds) < 2 or not (all if not wording.SURELY_SEVERAL.search(plain) else any)(sounds.values()):
            return
        first, *others = [matches[0][0] if matches else None for matches in sounds.values()]
        if not all(first and other and _related(first, other) for other in others):
            raise TextRefused(SEVERAL.format(text=text, parts="; ".join(map(repr, sounds))))


def _related(one: Named, other: Named) -> bool:
    """Return whether one class is the other, or stands above it."""
    return one.label in other.path or other.label in one.path


def _terms(index: int, one: Named) -> list[_Term]:
    terms = [_Term(index, wording.singular(text), wording.stems(text), exact) for text, exact in _texts(one).items()]
    return [term for term in terms if term.stems]


def _texts(one: Named) -> dict[str, float]:
    """Return the texts that name a class, the best first, with the scores of texts that have their words."""
    names = {one.label: _NAME} | dict.fromkeys(_parts(one.label), _NAME_PART)
    return names | {synonym: _SYNONYM for synonym in one.synonyms if synonym not in names}


def _parts(label: str) -> list[str]:
    """`Gunshot, gunfire` -> gunshot, gunfire; `Police car (siren)` -> police car."""
    return [wording.fold(part) for part in re.sub(r"\(.*?\)", "", label).split(",") if part.strip()]


def _is_known(matches: Mapping[str, float]) -> bool:
    return any(value >= _TYPO for value in matches.values())
