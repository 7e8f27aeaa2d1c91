"""Separator runner: the separator on its device, which makes stems of recordings in memory and of files.

Around the windows of a recording (`long_recordings`, `short_recordings`) it chooses how many masks are computed at
once, decides each target's presence in the whole recording, and attenuates or writes the stems.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from models import audio
from models.audio import Waveform, require_finite
from models.compute.batches import Failure, run_in_batches
from models.compute.precision import Arithmetic
from models.errors import Cancelled
from models.media import Limits, check_format
from models.networks import Separator
from models.options import SPEEDS, SeparationOptions
from models.separation import long_recordings, stems
from models.separation.detector_runner import Decision, PresenceTracker
from models.separation.long_recordings import Masking, Source, Windows, never
from models.separation.separated_files import Progress, Separated, SeparatedFiles, output_folder, reporter
from models.separation.short_recordings import RecordingFile, ShortRecording, read_short, separate_short
from models.separation.sources import in_file, in_memory
from models.separation.stems import HeldStems, Spool, SpooledStems, apply_gates

# Memory for the masks of one batch: more is no faster on a CPU, and on a GPU this fills the device.
_MASKING_BYTES = {"cpu": 1 << 25, "cuda": 1 << 32}
_MOST_OF_FREE = 0.5  # of a GPU's free memory: other processes may share it, and networks need more than masks
_MOST_MASKS = 16


@dataclass(frozen=True)
class Separation:
    """Stems by their queries' names, the residual of the mixture, and each target's presence, 0 to 1."""

    stems: dict[str, Waveform]
    residual: Waveform
    presence: dict[str, float]


class SeparatorRunner:
    """A separator on its device. Queries are vectors (D,) of its query encoder, by the names of their stems.

    track: queries (Q, D) -> what decides their presence in one recording. gates: whether stems of absent targets may be
    attenuated.
    """

    def __init__(
        self,
        separator: Separator,
        arithmetic: Arithmetic,
        track: Callable[[Tensor], PresenceTracker],
        gates: bool,
    ) -> None:
        self._separator = separator
        self._arithmetic = arithmetic
        self._track = track
        self._gates = gates
        self.rate: int = separator.rate
        self.observe_batch: Callable[[int], object] | None = None  # called with the number of masks of each batch

    def separate(
        self,
        recording: Waveform,
        queries: Mapping[str, Tensor],
        options: SeparationOptions,
        progress: Progress | None,
        cancelled: Callable[[], bool],
    ) -> Separation:
        """Separate a recording in memory: `Engine.separate`."""
        if not recording.frames:
            raise ValueError("the recording is empty")
        require_finite(recording)
        source = in_memory(recording)
        report = reporter(progress)
        plan = self._plan(queries, options)
        blocks: list[list[Tensor]] = [[] for _ in queries]
        decisions = self._separate(
            source, plan, lambda target, block: blocks[target].append(block), report, cancelled
        ).decisions
        joined = [torch.cat(of_query, dim=1) for of_query in blocks]
        found = torch.stack(joined) if joined else torch.zeros(0, *recording.samples.shape)
        found = apply_gates(found, [decision.gate for decision in decisions], 0, recording.rate)
        report(1.0, "encoding")
        return Separation(
            {name: Waveform(stem, recording.rate) for name, stem in zip(queries, found, strict=True)},
            Waveform(recording.samples - found.sum(dim=0), recording.rate),
            {name: decision.presence for name, decision in zip(queries, decisions, strict=True)},
        )

    def separate_file(
        self,
        path: Path,
        queries: Mapping[str, Tensor],
        folder: Path,
        options: SeparationOptions,
        progress: Progress | None,
        cancelled: Callable[[], bool],
        limits: Limits | None,
        source_name: str,
    ) -> SeparatedFiles:
        """Separate a file block by block: `Engine.separate_file`."""
        with in_file(path, limits) as source:
            check_format(options.format, source.rate, source.channels, options.bit_depth)
            if not queries and not options.residual:
                raise ValueError("no queries and no residual: there is nothing to write")
            report = reporter(progress)
            plan = self._plan(queries, options)
            with output_folder(folder) as place, Spool(place, len(queries), source.channels) as spool:
                done = self._separate(source, plan, spool.append, report, cancelled)
                gates = [decision.gate for decision in done.decisions]
                written = stems.write(
                    SpooledStems(source, spool, gates, cancelled, done.peak),
                    list(queries),
                    folder,
                    options,
                    lambda count: report(count / done.frames, "encoding"),
                    source_name,
                )
        return SeparatedFiles.of(source, done, list(queries), written)

    def separate_files(
        self,
        recordings: Iterable[RecordingFile],
        queries: Mapping[str, Tensor],
        options: SeparationOptions,
        limits: Limits | None,
    ) -> Iterator[tuple[RecordingFile, SeparatedFiles | Failure]]:
        """Separate many files, of which short ones share batches: `Engine.separate_files`."""
        self._plan(queries, options)  # raises what concerns all of them

        def separate(short: Sequence[ShortRecording]) -> list[tuple[Tensor, Sequence[Decision]]]:
            plan = self._plan(queries, options, short[0].window.samples.shape[1])
            track = partial(self._track, plan.queries)
            return separate_short(short, plan.masking, windows, self.rate, track, plan.gates)

        def read(one: RecordingFile) -> ShortRecording | None:
            with in_file(one.path, limits) as source:
                check_format(options.format, source.rate, source.channels, options.bit_depth)
                return read_short(one, source, windows, self.rate) if queries else None

        def write(short: ShortRecording, found: Tensor, decisions: Sequence[Decision]) -> SeparatedFiles:
            gates = [decision.gate for decision in decisions]
            spooled = SpooledStems(in_memory(short.recording, short.mask), HeldStems(found), gates, peak=short.peak)
            short.file.folder.mkdir(parents=True, exist_ok=True)
            place, name = short.file.folder, short.file.source_name
            written = stems.write(spooled, list(queries), place, options, lambda count: None, name)
            batch = options.batch or self._masks_at_once(short.window.samples.shape[1])
            computation = self._computation(batch, len(SPEEDS[options.quality]))
            done = Separated(decisions, short.recording.frames, short.peak, computation)
            return SeparatedFiles.of(spooled.source, done, list(queries), written)

        def separate_long(one: RecordingFile) -> SeparatedFiles:
            return self.separate_file(
                one.path, queries, one.folder, options, None, never, limits, source_name=one.source_name
            )

        windows = Windows.of(self._separator, options)
        yield from run_in_batches(
            recordings,
            read,
            shape=lambda short: short.window.samples.shape,
            room=lambda shape: self._plan(queries, options, shape[1]).at_once,
            compute=separate,
            finish=lambda short, found: write(short, *found),
            run_long=separate_long,
        )

    def _plan(self, queries: Mapping[str, Tensor], options: SeparationOptions, window: int | None = None) -> "_Plan":
        """Return what a separation needs before its recording is read. window: samples of the windows that are to be
        masked, by default the options'. Raises ValueError for impossible windows or names."""
        stems.check_names(list(queries))
        windows = Windows.of(self._separator, options)
        gates = options.gate and self._gates
        if not queries:
            return _Plan(torch.zeros(0, self._separator.query_size), windows, None, gates)
        vectors = torch.stack([vector.float() for vector in queries.values()])
        with torch.inference_mode(), self._arithmetic.float32():
            conditions = self._separator.condition(vectors.to(self._arithmetic.device))
        masking = Masking(
            self._separator,
            conditions,
            batch=options.batch or self._masks_at_once(window or windows.size),
            speeds=SPEEDS[options.quality],
            joint=options.joint,
            exhaustive=options.exhaustive,
            autocast=self._arithmetic.masks,
            observe=self.observe_batch,
        )
        return _Plan(vectors, windows, masking, gates)

    def _masks_at_once(self, window: int) -> int:
        """Return how many masks of windows of so many samples fit the device's memory."""
        needed = self._separator.mask_bytes * window / self.rate
        memory: float = _MASKING_BYTES.get(self._arithmetic.device.type, 0)
        if self._arithmetic.device.type == "cuda":
            memory = min(memory, _MOST_OF_FREE * torch.cuda.mem_get_info(self._arithmetic.device)[0])
        return min(max(int(memory / needed), 1), _MOST_MASKS)

    def _separate(
        self,
        source: Source,
        plan: "_Plan",
        keep: Callable[[int, Tensor], None],
        report: Progress,
        cancelled: Callable[[], bool],
    ) -> Separated:
        """Separate, and pass the query and samples (C, n) of stems' blocks to `keep`."""
        read, peak = 0, 0.0

        def count_blocks() -> Iterator[Tensor]:
            nonlocal read, peak
            for block in source.blocks():
                if cancelled():
                    raise Cancelled("the separation was cancelled")
                read += block.shape[1]
                peak = max(peak, audio.peak(block))
                yield block

        report(0.0, "detecting")
        counted = replace(source, blocks=count_blocks)
        if plan.masking is None:
            for _ in counted.blocks():
                pass
            return Separated([], read, peak, self._computation(0, 0))
        total = plan.windows.count(round(source.frames * self.rate / source.rate)) if source.frames else None
        tracker = self._track(plan.queries)
        for target, block in long_recordings.stems(
            counted,
            plan.masking,
            plan.windows,
            self.rate,
            hear=tracker.add_mixture,
            observe=tracker.add_estimate,
            windowed=lambda done: report(done / total if total else 0.0, "separating"),
            cancelled=cancelled,
        ):
            keep(target, block)
        computation = self._computation(plan.masking.batch, len(plan.masking.speeds))
        return Separated(tracker.decide(plan.gates), read, peak, computation)

    def _computation(self, batch: int, speeds: int) -> dict[str, int]:
        """Return `SeparatedFiles.computation`."""
        bits = 16 if self._arithmetic.bfloat16 else 32
        return {"threads": torch.get_num_threads(), "batch": batch, "bits": bits, "speeds": speeds}


@dataclass(frozen=True)
class _Plan:
    """A separation before its recording is read: queries (Q, D), how the recording is cut into windows, masking (None
    without queries), and whether absent targets are attenuated."""

    queries: Tensor
    windows: Windows
    masking: Masking | None
    gates: bool

    @property
    def at_once(self) -> int:
        """Number of windows in a batch."""
        return self.masking.windows if self.masking is not None else 1
