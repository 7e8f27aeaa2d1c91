"""Draws of classes and of their clips, whose time does not depend on how many clips there are."""

from array import array
from collections.abc import Iterable

import numpy as np


class ClipIndex:
    """The clips of each class, by source group; classes, and groups within a class, in the order of their first clips.

    It is kept in flat arrays: those of AudioSet's two million clips take 200 MB.

    labelled: (place among the corpus's clips, classes, group) of each clip to draw, by rising place.
    """

    def __init__(self, labelled: Iterable[tuple[int, tuple[str, ...], str]]) -> None:
        places: dict[str, int] = {}
        numbers: dict[str, int] = {}
        columns = array("i"), array("i"), array("i")  # class, group and clip of each label
        for index, mids, group in labelled:
            number = numbers.setdefault(group, len(numbers))
            for mid in mids:
                for column, value in zip(columns, (places.setdefault(mid, len(places)), number, index), strict=True):
                    column.append(value)
        self.classes = list(places)
        self.places = places
        of_class, of_group, clips = (np.array(column, np.int32) for column in columns)
        # Runs of the labels of one class and group, ordered by their first clips.
        order = np.lexsort((clips, of_group, of_class))
        of_class, of_group, clips = of_class[order], of_group[order], clips[order]
        changes = (np.diff(of_class, prepend=-1) != 0) | (np.diff(of_group, prepend=-1) != 0)
        starts = np.flatnonzero(changes)
        lengths = np.diff(starts, append=len(clips))
        runs = np.lexsort((clips[starts], of_class[starts]))
        starts, lengths = starts[runs], lengths[runs]
        self._first = np.concatenate([[0], lengths.cumsum()])  # of each group, and the end
        within = np.arange(len(clips)) - np.repeat(self._first[:-1], lengths)
        self._clips = clips[np.repeat(starts, lengths) + within]
        self.group_counts = np.bincount(of_class[starts], minlength=len(places))  # of each class
        self._first_group = np.concatenate([[0], self.group_counts.cumsum()])
        # The group of each label again, ordered by clip and class, to find a clip's own.
        owners = np.repeat(np.arange(len(starts)), lengths)
        classes = np.repeat(np.arange(len(places)), np.add.reduceat(lengths, self._first_group[:-1])) if places else []
        self._labels = self._clips.astype(np.int64) * max(1, len(places)) + np.asarray(classes, np.int64)
        by_label = np.argsort(self._labels)
        self._labels, self._owners = self._labels[by_label], owners[by_label]

    def __contains__(self, mid: str) -> bool:
        return mid in self.places

    def draw(self, mid: str, random: np.random.Generator, apart_from: int | None = None) -> int:
        """Draw a clip of a class: groups evenly, then clips evenly.

        apart_from: a clip of the class whose group is left out, unless the class has no other one.
        """
        place = self.places[mid]
        count = int(self.group_counts[place])
        own = count
        if apart_from is not None and count > 1:
            label = np.searchsorted(self._labels, apart_from * len(self.classes) + place)
            own = int(self._owners[label] - self._first_group[place])
            count -= 1
        drawn = int(random.integers(count))
        group = self._first_group[place] + drawn + (drawn >= own)
        first, end = self._first[group], self._first[group + 1]
        return int(self._clips[first + random.integers(end - first)])

    def has_others(self, mid: str) -> bool:
        """Return whether a class has clips of more than one group."""
        return bool(self.group_counts[self.places[mid]] > 1)


class WeightedDraw:
    """Draws of numbers by weights, each in a microsecond: numpy's `choice` adds all weights up at every draw."""

    def __init__(self, numbers: np.ndarray, weights: np.ndarray) -> None:
        self._numbers = numbers
        shares = (weights / weights.sum()).cumsum()
        self._limits = shares / shares[-1]

    def draw(self, random: np.random.Generator) -> int:
        """Draw one of the numbers."""
        return int(self._numbers[self._limits.searchsorted(random.random(), side="right")])
