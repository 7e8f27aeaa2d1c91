"""FFmpeg's filter graphs: one chain of filters that takes the frames of a recording. Needs PyAV alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any

from av.audio.frame import AudioFrame
from av.error import BlockingIOError, EOFError
from av.filter import Graph


class FilterGraph:
    """A chain of filters for frames of one rate, layout and format; filters: names and arguments."""

    def __init__(self, frame: AudioFrame, filters: Iterable[tuple[str, str]]) -> None:
        self._graph = Graph()
        self._rate = frame.sample_rate
        source = self._graph.add_abuffer(
            sample_rate=self._rate,
            format=frame.format.name,
            layout=frame.layout.name,
            time_base=Fraction(1, self._rate),
        )
        for step, following in pairwise([source, *(self._graph.add(*one) for one in filters)]):
            step.link_to(following)
        self._graph.configure()

    def filter(self, frame: AudioFrame, position: int | None = None) -> Iterator[Any]:
        """Yield the frames that are ready after this one; position: of its first sample, for filters that cut."""
        frame.pts = position
        if position is not None:
            frame.time_base = Fraction(1, self._rate)
        yield from self._push(frame)

    def finish(self) -> Iterator[Any]:
        """Yield the frames that are ready after the end."""
        yield from self._push(None)

    def _push(self, frame: AudioFrame | None) -> Iterator[Any]:
        try:
            self._graph.push(frame)
        except EOFError:  # it has cut what it wants
            return
        while True:
            try:
                yield self._graph.pull()
            except (BlockingIOError, EOFError):
                return
