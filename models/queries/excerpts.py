"""Excerpts of examples: the parts of recordings that their query is made of, to make it anew with another model.

An excerpt is one contiguous part of a recording at the query encoder's rate, from the first to the last window that
holds sound (`models.queries.query`). Silent windows inside stay, so that the windows of the excerpt that count are
those of the recording, and the same model makes the same query of both. Recordings that are too long together are cut
further: then each keeps the part of its share in which the most windows hold sound.
"""

from collections.abc import Sequence

from torch import Tensor

from models.queries.query import AllWindows, QueryRules, cut_all


def excerpts(recordings: Sequence[Tensor], rate: int, rules: QueryRules, most_seconds: float) -> list[Tensor]:
    """Return the excerpts of mono recordings (n,) at `rate`, which last at most so many seconds together.

    If not even a window of each fits, the last recordings have none. Raises SilentQuery if one holds no sound.
    """
    size, hop = rules.window_samples(rate)
    most = int(most_seconds * rate)
    chosen = recordings[: max(1, most // size)]
    cuts = [cut_all(recording, rate, rules) for recording in chosen]
    spans = [_sounding_span(windows) for windows in cuts]
    shares = _shares([(last - first) * hop + size for first, last in spans], most)
    found = []
    for recording, windows, (first, last), share in zip(chosen, cuts, spans, shares, strict=True):
        count = max(1, (share - size) // hop + 1)
        if count <= last - first:
            first = _fullest(windows, first, last, count)
            last = first + count - 1
        found.append(recording[first * hop : last * hop + size])
    return found


def _sounding_span(windows: AllWindows) -> tuple[int, int]:
    """Return the indices of the first and the last window that holds sound."""
    indices = windows.sounding.nonzero()[:, 0]
    return int(indices[0]), int(indices[-1])


def _shares(lengths: Sequence[int], total: int) -> list[int]:
    """Return how much each gets of a total: all of it, or as much as every other one that does not get all of it."""
    shares = [0] * len(lengths)
    shortest_first = sorted(range(len(lengths)), key=lambda index: lengths[index])
    for rank, index in enumerate(shortest_first):
        shares[index] = min(lengths[index], total // (len(lengths) - rank))
        total -= shares[index]
    return shares


def _fullest(windows: AllWindows, first: int, last: int, count: int) -> int:
    """Return the first of `count` windows in a row of which the most hold sound, in the loudest of several."""
    sounding = windows.sounding[first : last + 1]
    energies = windows.energies[first : last + 1].double() * sounding
    # Less than one window altogether, so that energy only decides between equal numbers of windows.
    merits = sounding.double() + energies / (2 * energies.sum())
    return first + int(merits.unfold(0, count, 1).sum(1).argmax())
