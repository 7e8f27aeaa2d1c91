"""Rendering of planned training mixtures: spectra of mixtures and targets, from the samples of clips.

All audio is computed with tensors on the corpus's device: on a GPU no sample leaves it.
"""

import warnings
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor

from models import spectrum
from models.corpus.augmentation import filter_curves, in_rooms, play, rooms
from models.corpus.clips import RATE, Clip, Clips

UNLABELLED = ""  # the class of unlabelled clips; unrelated to every class but itself
ROOMS = 64


@dataclass
class Batch:
    """mixture: complex (M, frames, bins); targets: complex (R, frames, bins), zero where absent; queries: (R, D);
    R rows are the M mixtures x the recipe's queries, mixture by mixture. classes: of each mixture, the mids of its
    clips."""

    mixture: Tensor
    targets: Tensor
    queries: Tensor
    classes: list[frozenset[str]]
    samples: int  # of each mixture

    @property
    def seconds(self) -> float:
        """Seconds of audio trained on: a mixture counts once for each of its queries."""
        return max(len(self.queries), len(self.mixture)) * self.samples / RATE


@dataclass
class Plan:
    """A batch before rendering. Plays are in order; a source has one or two plays, a mixture one or more sources."""

    clips: list[int] = field(default_factory=list)  # of each play, place among the corpus's clips
    offsets: list[float] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    source_of_play: list[int] = field(default_factory=list)
    mixture_of_source: list[int] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)  # dB, of each source
    # Of each source, the first of those whose common energy is that of one: itself, or a song's first part.
    level_of: list[int] = field(default_factory=list)
    filters: list[np.ndarray] = field(default_factory=list)
    rooms: list[int] = field(default_factory=list)  # -1: none
    target_sources: list[tuple[int, int]] = field(default_factory=list)  # mixture, and source or -1 where it is absent
    queries: list[np.ndarray] = field(default_factory=list)


class Renderer:
    """Renders plans from decoded clips, in mixtures of `frames` samples.

    stft: FFT size, hop and window size. device: of the samples and the mixtures.
    """

    def __init__(self, clips: Clips, frames: int, stft: tuple[int, int, int], device: torch.device | str) -> None:
        self._clips, self._frames, self._stft = clips.clips, frames, stft
        self._samples = _tensor(clips.samples).to(device)
        self._begins = torch.tensor([clip.start for clip in clips.clips], device=device)
        self._lengths = torch.tensor([clip.frames for clip in clips.clips], device=device)
        self._responses = _responses().to(device)

    def render(self, plan: Plan) -> Batch:
        """Render a plan: spectra of mixtures and targets, on the corpus's device."""
        device = self._samples.device
        sources = self.sources(plan)
        spectra = spectrum.stft(sources, *self._stft)
        points = torch.from_numpy(np.stack(plan.filters)).to(device)
        spectra = spectra * filter_curves(points, spectra.shape[2], RATE)[:, None]
        energy = spectra.abs().square().sum((1, 2))
        together = torch.tensor(plan.level_of, device=device)
        energy = torch.zeros_like(energy).index_add_(0, together, energy)[together].clamp(min=1e-8)
        scale = 10 ** (torch.tensor(plan.gains, device=device, dtype=torch.float32) / 20) / energy.sqrt()
        spectra = spectra * scale[:, None, None]
        owners = torch.tensor(plan.mixture_of_source, device=device)
        count = plan.mixture_of_source[-1] + 1
        mixtures = spectra.new_zeros(count, *spectra.shape[1:]).index_add_(0, owners, spectra)
        silence = torch.zeros_like(spectra[:1])
        wanted = torch.tensor([source for _, source in plan.target_sources], device=device, dtype=torch.long)
        targets = torch.cat([spectra, silence])[wanted]  # -1 is the silence at the end
        queries = torch.from_numpy(np.array(plan.queries, np.float32)).to(device)
        return Batch(mixtures, targets, queries, self.classes_of(plan), self._frames)

    def sources(self, plan: Plan) -> Tensor:
        """Return waveforms (S, T) of a plan's sources, each in its room, before filters and levels."""
        device = self._samples.device
        chosen = torch.tensor(plan.clips, device=device)
        played = play(
            self._samples,
            self._begins[chosen],
            self._lengths[chosen],
            torch.tensor(plan.offsets, device=device, dtype=torch.float64),
            torch.tensor(plan.speeds, device=device, dtype=torch.float64),
            self._frames,
        )
        sources = played.new_zeros(len(plan.mixture_of_source), self._frames)
        sources.index_add_(0, torch.tensor(plan.source_of_play, device=device), played)
        inside = [source for source, room in enumerate(plan.rooms) if room >= 0]
        if inside:
            responses = self._responses[[plan.rooms[source] for source in inside]]
            sources[inside] = in_rooms(sources[inside], responses)
        return sources

    def classes_of(self, plan: Plan) -> list[frozenset[str]]:
        """Return the labels of each mixture's clips, with UNLABELLED for unlabelled ones."""
        found: list[set[str]] = [set() for _ in range(plan.mixture_of_source[-1] + 1)]
        for clip, source in zip(plan.clips, plan.source_of_play, strict=True):
            found[plan.mixture_of_source[source]].update(labels_of(self._clips[clip]))
        return [frozenset(mids) for mids in found]


def labels_of(clip: Clip) -> tuple[str, ...]:
    """Return the classes of a clip, or UNLABELLED."""
    return clip.mids or (UNLABELLED,)


@cache
def _responses() -> Tensor:
    """Return the rooms' responses, the same in every run."""
    return rooms(ROOMS, RATE, np.random.default_rng(0))


def _tensor(samples: np.ndarray) -> Tensor:
    """Return samples as a tensor that shares their memory. It is never written, so a read-only file map is allowed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(samples)
