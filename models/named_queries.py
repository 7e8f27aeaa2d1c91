"""The classes that a model detects, and the queries of those that can be asked for by name or by a text."""

from collections.abc import Mapping
from functools import cached_property

import torch

from models import labels
from models.checkpoints import Bundle
from models.errors import LabelUnknown, TextRefused, TextUnknown
from models.labels import KnownClass
from models.queries import matching
from models.queries.query import Query


class NamedQueries:
    """The classes of one model, with their queries."""

    def __init__(self, bundle: Bundle) -> None:
        self._model_id, self._embeddings, self._predicted = bundle.model_id, bundle.class_embeddings, bundle.predicted
        # Indices of the classes that the detector knows.
        self.detected: set[int] = set(getattr(bundle.detector, "class_indices", torch.arange(labels.CLASSES)).tolist())

    def classes(self) -> list[KnownClass]:
        """Return the classes that the model detects or separates, in the ontology's order."""
        return [
            KnownClass(
                label=label.name,
                mid=label.mid,
                slug=label.slug,
                path=label.path,
                askable=label.mid in self._embeddings,
                source=self._source(label.mid),
                synonyms=label.synonyms,
                description=label.description,
            )
            for label in labels.ontology().values()
            if label.index in self.detected or label.mid in self._embeddings
        ]

    def query(self, name: str) -> Query:
        """Return a class's query by its name, slug or mid. Raises LabelUnknown, whose `near` lists similar names."""
        if not self._embeddings:
            raise LabelUnknown(
                f"{self._model_id} has no embeddings of classes: give it an example of the sound instead"
            )
        label = labels.lookup(name)
        if label is None:
            near = self._vocabulary.near(name)
            hint = f" Did you mean {' or '.join(map(repr, near[:3]))}?" if near else ""
            raise LabelUnknown(f"AudioSet has no class named {name!r}.{hint}", near)
        if label.mid not in self._embeddings:
            near = self._vocabulary.near(name)
            hint = f" Near it: {', '.join(map(repr, near))}." if near else ""
            raise LabelUnknown(f"{self._model_id} has no embedding of {label.name!r}: give it an example.{hint}", near)
        return Query(self._embeddings[label.mid].clone(), self._model_id)

    def mean(self, weights: Mapping[str, float]) -> Query:
        """Return the weighted mean of classes' queries, by their names. Raises LabelUnknown."""
        queries = [(self.query(name), weight) for name, weight in weights.items()]
        return queries[0][0] if len(queries) == 1 else Query.mean(queries)

    def match(self, text: str) -> dict[str, float]:
        """Return the classes that a text such as "a dog barking" means: names with weights that add up to 1, the
        heaviest first. Raises TextRefused, TextUnknown."""
        try:
            return {match.label: weight for match, weight in self._vocabulary.resolve(text)}
        except matching.TextUnknown as error:
            raise TextUnknown(str(error).rstrip(".")) from error
        except matching.TextRefused as error:
            raise TextRefused(str(error).rstrip(".")) from error

    @cached_property
    def _vocabulary(self) -> matching.Vocabulary[KnownClass]:
        return matching.Vocabulary(self.classes())

    def _source(self, mid: str) -> str | None:
        """Return where a class's embedding comes from, "clips" or "predicted", or None if there is none."""
        if mid not in self._embeddings:
            return None
        return "predicted" if mid in self._predicted else "clips"
