"""Lookup of classes: the vocabulary of each model, prepared once."""

from app.labels.matching import Vocabulary
from app.model_registry.registry import ClassDescription, ModelDescription

_MOST_VOCABULARIES = 16

# By the description's identity, which it keeps while the cache holds it: descriptions are large, and parsed once.
_vocabularies: dict[int, tuple[ModelDescription, Vocabulary[ClassDescription]]] = {}


def vocabulary(model: ModelDescription) -> Vocabulary[ClassDescription]:
    """Return the classes of a model, prepared for comparison with texts."""
    found = _vocabularies.get(id(model))
    if found is None:
        if len(_vocabularies) >= _MOST_VOCABULARIES:
            _vocabularies.clear()
        found = model, Vocabulary(model.classes)
        _vocabularies[id(model)] = found
    return found[1]
