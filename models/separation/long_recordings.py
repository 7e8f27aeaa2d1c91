"""Separation of long recordings into stems, window by window, in memory that does not grow with the recording.

A mixture arrives in blocks at its own rate and channels. It is resampled to the separator's rate, cut into windows of
one shape, masked for each query, cross-faded, and resampled back to the mixture's rate and exact length. Each window
has context on both sides that is computed and discarded, since estimates are wrong near a window's edges.

Letters: Q queries, C channels, n samples of a block, N windows, W samples of a window, T frames, F bins.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor

from models import spectrum
from models.audio import Resampler
from models.errors import Cancelled
from models.networks import Separator
from models.options import DEFAULT_OPTIONS, SPEEDS, SeparationOptions
from models.separation import wiener
from models.separation.speeds import mean_estimate, play

logger = logging.getLogger(__name__)

# The last window is padded to a multiple of this, so that a short rest does not cost a full window.
_SHORTEST_WINDOW_SECONDS = 1.0
# Of a window, by which the last may be longer: a recording of 10 s is one window of 10.5 s, not two of 10 and 2 s.
_LONGER = 0.1
# A longer window is padded to a multiple of this: nothing of 10 s, the clips that most people have, after half a second
# of context. Not every window, since the library of convolutions keeps 10 MB for each shape.
_LONGER_BY_SECONDS = 0.5
# Stems are resampled in pieces of this length: at 192 kHz, with 8 channels, a window would be 61 MB.
_PIECE_SECONDS = 1.0


@dataclass(frozen=True)
class Source:
    """A recording that can be read repeatedly: `blocks()` yields (C, n) float32 at `rate` Hz from its beginning.

    `frames` is its length in samples at `rate`, if that is known before reading; `mask`: the channels' speakers, as
    WAVE_FORMAT_EXTENSIBLE has them, 0 if unknown.
    """

    rate: int
    channels: int
    frames: int | None
    blocks: Callable[[], Iterable[Tensor]]
    mask: int = 0


@dataclass(frozen=True)
class Windows:
    """Layout of the windows, in samples at the separator's rate.

    The core of window k is [k * stride, k * stride + core) of the recording; `context` samples on each side of it are
    computed and discarded, and `overlap` samples are cross-faded with the next window. The last window has no context
    after it, and may be `longer` than the others.
    """

    size: int
    context: int
    overlap: int
    longer: int

    def __post_init__(self) -> None:
        if self.stride < max(self.overlap, 1):
            raise ValueError(f"{self} has no room for its context and overlap")

    @property
    def core(self) -> int:
        return self.size - 2 * self.context

    @property
    def stride(self) -> int:
        return self.core - self.overlap

    @property
    def longest_end(self) -> int:
        """Most samples, context before them included, that are the last window."""
        return self.size + self.longer

    def count(self, samples: int) -> int:
        """Return the number of windows for a recording of `samples`."""
        return max(1, math.ceil((self.context + samples - self.longest_end) / self.stride) + 1)

    @classmethod
    def of(cls, separator: Separator, options: SeparationOptions) -> "Windows":
        """Windows of the options' seconds, rounded up to whole hops so that all of them see the same frames.

        Raises ValueError where the window has no room for its context and overlap.
        """
        hop, window, context, overlap = separator.hop, options.window, options.context, options.overlap
        size, side, fade = (
            math.ceil(round(seconds * separator.rate / hop, 6)) * hop for seconds in (window, context, overlap)
        )
        shortest = hop * math.ceil(separator.fft_size / hop)
        size = max(size, shortest)
        if size - 2 * side - fade < max(fade, 1):
            raise ValueError(
                f"a window of {window:g} s is too short for {context:g} s of context on each side and {overlap:g} s of"
                " overlap: make it longer, or them shorter"
            )
        return cls(size, side, fade, math.floor(_LONGER * size / hop) * hop)


@dataclass(frozen=True)
class Window:
    """`samples` (C, W), zeros outside the recording; `core` counts the samples kept, the rest in the last window."""

    samples: Tensor
    first: bool
    last: bool
    core: int


def cut(blocks: Iterable[Tensor], channels: int, windows: Windows, rate: int) -> Iterator[Window]:
    """Cut a stream of (C, n) blocks into windows of one size; the last may be shorter, a whole number of seconds, or a
    little longer, a multiple of half a second."""
    held = torch.zeros(channels, windows.context)  # begins where the next window begins, context included
    first = True
    for block in blocks:
        held = torch.cat([held, block], dim=1)
        while held.shape[1] > windows.longest_end:
            yield Window(held[:, : windows.size], first, False, windows.core)
            held = held[:, windows.stride :]
            first = False
    quantum = windows.size if windows.size < rate else round(_SHORTEST_WINDOW_SECONDS * rate)
    if held.shape[1] > windows.size >= rate:
        quantum = round(_LONGER_BY_SECONDS * rate)
    size = min(windows.longest_end, quantum * math.ceil(max(held.shape[1], 1) / quantum))
    samples = torch.nn.functional.pad(held, (0, size - held.shape[1]))
    yield Window(samples, first, True, held.shape[1] - windows.context)


class CrossFade:
    """Joins the cores (C, core) of one query's windows, in order, with cross-fades."""

    def __init__(self, windows: Windows, channels: int) -> None:
        self._windows = windows
        position = (torch.arange(windows.overlap, dtype=torch.float64) + 0.5) / max(windows.overlap, 1)
        # Both windows estimate the same sound, so amplitudes, not powers, must add up to one.
        self._rise = torch.sin(position * math.pi / 2).square().float()
        # One tensor for all windows: small ones allocated between large ones would keep the heap from shrinking.
        self._tail = torch.empty(channels, windows.overlap)
        self._has_tail = False

    def add(self, kept: Tensor, last: bool) -> Tensor:
        """Add the next core, and return the samples that no later window changes."""
        overlap, stride = self._windows.overlap, self._windows.stride
        if self._has_tail and overlap:
            faded = kept[..., :overlap] * self._rise + self._tail
            kept = torch.cat([faded, kept[..., overlap:]], dim=-1)
        if last:
            return kept
        torch.mul(kept[..., stride:], 1 - self._rise, out=self._tail)
        self._has_tail = True
        return kept[..., :stride]


class Masking:
    """Estimates of windows by the separator: each window is transformed and encoded once, with one mask for each query.

    conditions: (Q, K), from the separator's `condition`. batch: most masks computed at once. speeds: at which a
    window is seen, the first 1; the mean of the estimates is returned. joint: refine all estimates together, with a
    residual; exhaustive: without one. observe: called with each batch's number of masks.
    """

    def __init__(
        self,
        separator: Separator,
        conditions: Tensor,
        *,
        batch: int = 1,
        speeds: Sequence[Fraction] = SPEEDS[DEFAULT_OPTIONS.quality],
        joint: bool = False,
        exhaustive: bool = False,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        observe: Callable[[int], object] | None = None,
    ) -> None:
        self._separator = separator
        self._observe = observe
        self._conditions = conditions
        self.batch = batch
        self.speeds = speeds
        self._joint = joint
        self._exhaustive = exhaustive
        self._autocast = autocast
        self.queries = conditions.shape[0]

    @property
    def windows(self) -> int:
        """Number of windows to pass at once."""
        return max(1, self.batch // self.queries)

    @torch.inference_mode()
    def __call__(self, mixtures: Tensor) -> Iterator[Tensor]:
        """(N, C, W) -> an estimate (C, W), on the CPU, of each pair of window and query, windows first."""
        passes = [self._estimates(play(mixtures, speed)) for speed in self.speeds]
        for estimates in zip(*passes, strict=True):
            yield mean_estimate(estimates, self.speeds)

    @torch.inference_mode()
    def _estimates(self, mixtures: Tensor) -> Iterator[Tensor]:
        """Yield the estimates of mixtures at one speed."""
        count, channels, samples = mixtures.shape
        spectra = self._separator.spectrum(mixtures.to(self._conditions.device).flatten(0, 1))
        spectra = spectra.unflatten(0, (count, channels))
        # The channels' mean power: the mean of samples is silent for channels in anti-phase.
        magnitude = spectrum.power(spectra).mean(dim=1).sqrt()
        if self._joint:
            masks = torch.cat(list(self._masks(magnitude))).unflatten(0, (count, self.queries))
            for mixture, mask in zip(spectra, masks, strict=True):
                magnitudes = wiener.magnitudes(mixture, mask, self._exhaustive)
                for share in wiener.shares(mixture, magnitudes)[: self.queries]:
                    yield self._separator.waveform(mixture * share, samples).cpu()
            return
        done = 0
        for masks in self._masks(magnitude):
            for mask in masks:
                yield self._separator.waveform(spectra[done // self.queries] * mask, samples).cpu()
                done += 1

    def _masks(self, magnitude: Tensor) -> Iterator[Tensor]:
        """Yield the masks of magnitudes (N, T, F) for all pairs of window and query, windows first, in batches.

        Batches for which the device has no memory are halved, also for the windows that follow.
        """
        count, frames, _ = magnitude.shape
        with self._autocast():
            encoded = self._separator.encode_mixture(magnitude)
        pairs = torch.cartesian_prod(torch.arange(count), torch.arange(self.queries)).to(magnitude.device)
        while len(pairs):
            window, query = pairs[: self.batch].T
            inputs = encoded if count == 1 else tuple(part[window] for part in encoded)
            mask = self._predict(inputs, self._conditions[query])
            if mask is None:
                self.batch = max(1, len(query) // 2)
                logger.warning("out of memory: computing %d masks at once from here on", self.batch)
                torch.accelerator.memory.empty_cache()  # its free blocks have the sizes of the larger batch
                continue
            if self._observe is not None:
                self._observe(len(query))
            yield mask[:, :frames].float()
            pairs = pairs[len(query) :]

    def _predict(self, inputs: tuple[Tensor, ...], conditions: Tensor) -> Tensor | None:
        """Return the masks of a batch; None if there is no memory for it, but may be for a smaller one."""
        try:
            with self._autocast():
                return self._separator.predict(*inputs, conditions)
        except torch.OutOfMemoryError:
            if len(conditions) == 1:
                raise
            return None


def never() -> bool:
    """Return False: the `cancelled` of callers that never cancel."""
    return False


def at_rate(source: Source, rate: int) -> Iterator[Tensor]:
    """Yield the source's blocks, resampled to `rate`."""
    resampler = Resampler(source.rate, rate, source.channels)
    for block in source.blocks():
        yield resampler.feed(block)
    yield resampler.feed(torch.zeros(source.channels, 0), last=True)


class Estimate(NamedTuple):
    """Samples (C, n) of one query's estimate; `last`: they are its end."""

    query: int
    samples: Tensor
    last: bool


def estimates(
    masking: Masking,
    blocks: Iterable[Tensor],
    channels: int,
    windows: Windows,
    rate: int,
    *,
    windowed: Callable[[int], None] = lambda count: None,
    cancelled: Callable[[], bool] = never,
) -> Iterator[Estimate]:
    """Mixture blocks (C, n) at the separator's rate -> estimates at the same rate, window by window and in a window
    query by query, so that no more than one is in memory.

    The lengths of one query's add up to the mixture's. `windowed(count)` is called after each batch with the windows
    done so far, `cancelled()` before each. Raises Cancelled.
    """
    fades = [CrossFade(windows, channels) for _ in range(masking.queries)]
    done = 0
    for group in _group(cut(blocks, channels, windows, rate), masking.windows):
        if cancelled():
            raise Cancelled("the separation was cancelled")
        separated = masking(torch.stack([window.samples for window in group]))
        for (window, query), estimate in zip(product(group, range(masking.queries)), separated, strict=True):
            kept = estimate[:, windows.context : windows.context + window.core]
            yield Estimate(query, fades[query].add(kept, window.last), window.last)
        done += len(group)
        windowed(done)


def stems(
    source: Source,
    masking: Masking,
    windows: Windows,
    rate: int,
    *,
    hear: Callable[[Tensor], None] = lambda mixture: None,
    observe: Callable[[int, Tensor], None] = lambda query, estimate: None,
    windowed: Callable[[int], None] = lambda count: None,
    cancelled: Callable[[], bool] = never,
) -> Iterator[tuple[int, Tensor]]:
    """A source -> blocks (query, (C, n)) of its stems at the source's own rate, each stem aligned with it and exactly
    as long.

    Blocks come window by window, in a window query by query. `hear(mixture (C, n))` is called with every block of the
    mixture at the separator's `rate`, before the estimates of it, and `observe(query, estimate (C, n))` with every
    estimate. Raises Cancelled.
    """
    read = 0

    def count_blocks() -> Iterator[Tensor]:
        nonlocal read
        for block in source.blocks():
            read += block.shape[1]
            yield block

    def heard_blocks() -> Iterator[Tensor]:
        for block in at_rate(replace(source, blocks=count_blocks), rate):
            hear(block)
            yield block

    resamplers = [Resampler(rate, source.rate, source.channels) for _ in range(masking.queries)]
    given = [0] * masking.queries
    for query, estimate, last in estimates(
        masking, heard_blocks(), source.channels, windows, rate, windowed=windowed, cancelled=cancelled
    ):
        observe(query, estimate)
        edges = [*range(0, estimate.shape[1], round(_PIECE_SECONDS * rate)), estimate.shape[1]]
        for start, end in pairwise(edges):
            stem = resamplers[query].feed(estimate[:, start:end], last=last and end == edges[-1])
            if last:
                stem = stem[:, : read - given[query]]
            given[query] += stem.shape[1]
            yield query, stem
    for query, count in enumerate(given):
        if count < read:  # resampling twice rounds the length by up to a few samples
            yield query, torch.zeros(source.channels, read - count)


def _group(items: Iterable[Window], count: int) -> Iterator[list[Window]]:
    """Yield groups of up to `count` windows of one shape."""
    group: list[Window] = []
    for item in items:
        if group and (len(group) == count or item.samples.shape != group[0].samples.shape):
            yield group
            group = []
        group.append(item)
    if group:
        yield group
