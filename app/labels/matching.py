"""Which class a text means: equality for asking, likeness for searching and for near names."""

from difflib import SequenceMatcher

from app.registry import ClassDescription

_LIKE = 0.6  # the least likeness worth showing; a typo or two in a word
_NEAR = 5  # names offered when one is unknown


def find(classes: list[ClassDescription], text: str) -> ClassDescription | None:
    """The class of this name, slug or Freebase id, whatever the case."""
    wanted = _folded(text)
    for known in classes:
        if wanted in (_folded(known.label), known.slug.casefold(), known.mid.casefold()):
            return known
    return None


def score(known: ClassDescription, text: str) -> float:
    """How well a text matches a class, 0 to 1: the whole name, its beginning, a word, a part of it, or alike."""
    wanted, label = _folded(text), _folded(known.label)
    if not wanted:
        return 0.0
    if wanted in (label, known.slug.casefold(), known.mid.casefold()):
        return 1.0
    words = label.replace(",", " ").replace("(", " ").replace(")", " ").split()
    share = len(wanted) / len(label)
    if label.startswith(wanted):
        return 0.9 + 0.09 * share
    if wanted in words:
        return 0.85 + 0.04 * share
    if any(word.startswith(wanted) for word in words):
        return 0.8 + 0.04 * share
    if wanted in label:
        return 0.7 + 0.09 * share
    # The branches of the tree that lead to it: `animal` finds every animal, behind what is called so.
    if any(wanted in _folded(step) for step in known.path):
        return 0.65
    likeness = max(_likeness(wanted, other) for other in [label, *words])
    return 0.64 * likeness if likeness >= _LIKE else 0.0


def search(classes: list[ClassDescription], text: str, limit: int) -> list[tuple[ClassDescription, float]]:
    """Classes that a text may mean, the likeliest first; all of them, by name, when it is empty."""
    if not text.strip():
        return [(known, 1.0) for known in sorted(classes, key=lambda known: known.label)[:limit]]
    scored = [(known, score(known, text)) for known in classes]
    found = [(known, value) for known, value in scored if value > 0]
    return sorted(found, key=lambda pair: (-pair[1], pair[0].label))[:limit]


def near(classes: list[ClassDescription], text: str) -> list[str]:
    """Names of classes that can be asked for, in place of a name that cannot: alike, above it or below it."""
    if not text.strip():
        return []
    askable = [known for known in classes if known.askable]
    meant = find(classes, text)
    above = [known.label for known in askable if meant is not None and known.label in meant.path]
    alike = [known.label for known, _ in search(askable, text, _NEAR)]
    return list(dict.fromkeys([*reversed(above), *alike]))[:_NEAR]


def _likeness(wanted: str, other: str) -> float:
    """The share of letters in common; 0 where their numbers alone rule out that it is worth showing."""
    matcher = SequenceMatcher(None, wanted, other)
    possible = matcher.real_quick_ratio() >= _LIKE and matcher.quick_ratio() >= _LIKE
    return matcher.ratio() if possible else 0.0


def _folded(text: str) -> str:
    return " ".join(text.casefold().replace("_", " ").split())
