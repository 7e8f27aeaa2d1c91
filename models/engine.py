"""The engine: the public interface of the models. Makes queries, detections and stems of recordings."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import audio, checkpoints, detection, short_detections
from models.audio import Waveform, mono, require_finite, require_inside, resample
from models.compute.batches import Failure, run_in_batches
from models.compute.precision import Arithmetic, Precision
from models.detection import Detection
from models.errors import Cancelled
from models.media import Limits, check_format
from models.named_queries import NamedQueries
from models.options import DEFAULT_OPTIONS, SPEEDS, THRESHOLD, TOP, SeparationOptions
from models.queries import query
from models.queries.excerpts import excerpts
from models.queries.profiles import Profiles
from models.queries.query import Query, QueryRules, require_model
from models.separation import stems
from models.separation.detector_runner import Decision, DetectorRunner, PresenceTracker
from models.separation.long_recordings import Masking, Source, Windows, at_rate, never
from models.separation.long_recordings import stems as separated_blocks
from models.separation.presence import Rule
from models.separation.separated_files import Progress, Separated, SeparatedFiles, output_folder, reporter
from models.separation.short_recordings import RecordingFile, ShortRecording, read_short, separate_short
from models.separation.sources import in_file, in_memory
from models.separation.stems import HeldStems, Spool, SpooledStems, StemFile, apply_gates

__all__ = ["Engine", "SeparatedFiles", "Separation", "SeparationOptions", "StemFile"]

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


class Engine:
    """A model on a device. Several threads may use one on a CPU, and a single one on a GPU. It changes the bundle's
    networks irreversibly: do not pass the same bundle to another engine or to `checkpoints.save`."""

    def __init__(self, bundle: checkpoints.Bundle, device: str = "auto", precision: Precision = "auto") -> None:
        self.observe_batch: Callable[[int], object] | None = None  # called with the number of masks of each batch
        self._arithmetic = Arithmetic.of(device, precision)
        self._bundle = bundle
        self._detector, self._separator = bundle.detector, bundle.separator
        self._arithmetic.prepare(self._detector)
        self._arithmetic.prepare(self._separator)
        self._arithmetic.accelerate(self._detector, self._separator)
        self._runner = DetectorRunner(self._detector, self._arithmetic)
        self._rules = QueryRules(**bundle.config["query"])
        self._named = NamedQueries(bundle)
        self._profiles = Profiles(bundle.prior, bundle.clip_embeddings)
        self._gates = bundle.presence is not None
        # Without a fitted rule, presence is estimated by the default one, and no stem is attenuated.
        whole = {"window_seconds": self._detector.window_samples / self._detector.rate}
        self._rule = Rule.of(bundle.presence if bundle.presence is not None else whole)

    @classmethod
    def load(
        cls, source: str | Path | Mapping[str, str | Path], device: str = "auto", precision: Precision = "auto"
    ) -> "Engine":
        """Load a shipped model by name, a folder, or the authors' files {"detector": path, "separator": path} (the
        separator's file alone suffices, since it contains the detector).

        device: "auto", "cpu", "cuda", "cuda:1"; precision: "auto" or "exact" (float32, no shortcut). Raises
        CheckpointInvalid, DeviceUnavailable.
        """
        if isinstance(source, Mapping):
            return cls(checkpoints.authors_bundle(**source), device, precision)
        return cls(checkpoints.load(source), device, precision)

    @property
    def model_id(self) -> str:
        """Name and version, such as "base@1"; queries of other models are refused."""
        return self._bundle.model_id

    @property
    def device(self) -> str:
        return str(self._arithmetic.device)

    @property
    def rate(self) -> int:
        """Sample rate of the networks in Hz."""
        return self._separator.rate

    def understands(self, made_by: str) -> bool:
        """Return whether queries of a model, such as "base@3", can be used: it is this version, or an earlier one with
        the same query encoder."""
        earlier = {f"{self._bundle.name}@{version}" for version in self._bundle.queries_of}
        return made_by in {self.model_id, *earlier}

    def accept(self, query: Query) -> Query:
        """Return a query as one of this model. Raises QueryModelMismatch unless it `understands` the query's."""
        if self.understands(query.model):
            return replace(query, model=self.model_id)
        require_model(query, self.model_id)
        return query

    def describe(self) -> dict[str, Any]:
        """Return the description that a worker announces: the model, and the classes that it detects or separates."""
        classes = self._named.classes()
        return {
            "name": self._bundle.name,
            "version": self._bundle.version,
            "embedding_size": self._detector.embedding_size,
            "labels": len(self._named.detected),
            "askable_labels": sum(known.askable for known in classes),
            "sample_rate": self.rate,
            "queries_of": list(self._bundle.queries_of),
            "classes": [
                asdict(known) | {"path": list(known.path), "synonyms": list(known.synonyms)} for known in classes
            ],
        }

    # Queries

    def embed(
        self,
        recordings: Sequence[Waveform],
        spans: Sequence[tuple[float, float]] | None = None,
        from_mixture: bool = False,
        surroundings: Sequence[Waveform] = (),
    ) -> Query:
        """Make one query from examples of a sound, each at least 0.1 s long.

        spans: (start, end) in seconds of the one recording given; each is an example. from_mixture:
        the examples are parts of the very recording that is to be separated, so that the query needs no correction
        towards its class (`models.queries.plda`). surroundings: parts of that recording around the examples (see
        `models.queries.query.surroundings`), whose sound is taken off the query. Raises SilentQuery, ExampleTooShort,
        SpanOutside, and ValueError for samples that are not finite.
        """
        if isinstance(recordings, Waveform):
            raise TypeError("a query is made of a list of recordings: embed([recording])")
        if not recordings:
            raise ValueError("a query needs at least one example")
        if spans is not None:
            if len(recordings) != 1:
                raise ValueError("spans belong to one recording")
            recordings = [_span(recordings[0], start, end) for start, end in spans]
        prior = None if from_mixture else self._bundle.prior
        part = "span" if from_mixture or spans is not None else "example"
        made_of = (self._rules, self.model_id, prior, part)
        if not surroundings:
            return query.embed(self._runner, self._heard(recordings), *made_of)
        around = torch.cat(self._heard(surroundings))
        return query.embed_apart(self._runner, self._heard(recordings), around, *made_of)

    def excerpts(self, recordings: Sequence[Waveform], most_seconds: float) -> list[Waveform]:
        """Return the parts of examples that `embed` makes their query of, at most so many seconds of them together, to
        be embedded by another model one day (`models.queries.excerpts`). Raises SilentQuery."""
        rate = self._detector.rate
        found = excerpts(self._heard(recordings), rate, self._rules, most_seconds)
        return [Waveform(samples[None], rate) for samples in found]

    def _heard(self, recordings: Sequence[Waveform]) -> list[Tensor]:
        for one in recordings:
            require_finite(one)
        return [resample(mono(one.samples)[None], one.rate, self._detector.rate)[0] for one in recordings]

    def label(self, name: str) -> Query:
        """Return a class's query by its name, slug or mid. Raises LabelUnknown, whose `near` lists similar names."""
        return self._named.query(name)

    def label_mean(self, weights: Mapping[str, float]) -> Query:
        """Return the weighted mean of classes' queries, by their names. Raises LabelUnknown."""
        return self._named.mean(weights)

    def match_text(self, text: str) -> dict[str, float]:
        """Return the classes that a text such as "a dog barking" means, for `label_mean`: names with weights that add
        up to 1, the heaviest first. Raises TextRefused, TextUnknown."""
        return self._named.match(text)

    # Detection

    def detect(
        self,
        recording: Waveform,
        top: int = TOP,
        threshold: float = THRESHOLD,
        cancelled: Callable[[], bool] = never,
        progress: Progress | None = None,
    ) -> Detection:
        """Detect the sounds in a recording of any length: tags and events. Raises Cancelled, and ValueError for
        samples that are not finite.

        top: the number of tags. threshold: the probability that an event must reach; it ends below half of that.
        progress(ratio, "detecting").
        """
        require_finite(recording)
        return self._detect(in_memory(recording), top, threshold, cancelled, progress)

    def detect_file(
        self,
        path: str | Path,
        top: int = TOP,
        threshold: float = THRESHOLD,
        cancelled: Callable[[], bool] = never,
        progress: Progress | None = None,
        limits: Limits | None = None,
    ) -> Detection:
        """Detect the sounds in a file, block by block. Raises subclasses of MediaError too."""
        with in_file(Path(path), limits) as source:
            return self._detect(source, top, threshold, cancelled, progress)

    def detect_files(
        self,
        paths: Iterable[Path],
        top: int = TOP,
        threshold: float = THRESHOLD,
        *,
        limits: Limits | None = None,
    ) -> Iterator[tuple[Path, Detection | Failure]]:
        """Detect the sounds in many files; yield each with what `detect_file` returns or raises, not in order.

        Recordings that fit a window of the detector share batches.
        """
        return short_detections.run(
            paths,
            self._detector,
            self._runner.framewise,
            limits,
            finish=lambda short, curve: self._timeline(curve, short.samples, top, threshold),
            run_long=lambda path: self.detect_file(path, top, threshold, limits=limits),
        )

    def _detect(
        self, source: Source, top: int, threshold: float, cancelled: Callable[[], bool], progress: Progress | None
    ) -> Detection:
        detector = self._detector

        def count_blocks() -> Iterator[Tensor]:
            read = 0
            for block in source.blocks():
                read += block.shape[1]
                if progress is not None and source.frames:
                    progress(min(read / source.frames, 1.0), "detecting")
                yield block

        blocks = (mono(block) for block in at_rate(replace(source, blocks=count_blocks), detector.rate))
        curve, samples = detection.framewise(detector, blocks, self._runner.framewise, cancelled)
        return self._timeline(curve, samples, top, threshold)

    def _timeline(self, curve: Tensor, samples: int, top: int, threshold: float) -> Detection:
        """Curve (F, 527) of so many samples at the detector's rate -> its tags and events."""
        detector = self._detector
        return detection.timeline(curve, detection.row_seconds(detector), samples / detector.rate, top, threshold)

    # Separation

    def separate(
        self,
        recording: Waveform,
        queries: Mapping[str, Query],
        options: SeparationOptions = DEFAULT_OPTIONS,
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> Separation:
        """Separate a recording in memory into stems of its rate, channels and length. Options of files have no effect.

        progress(ratio, stage). Raises Cancelled, QueryModelMismatch, ValueError for impossible windows or names, and
        for recordings that are empty or hold samples that are not finite.
        """
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
        path: str | Path,
        queries: Mapping[str, Query],
        folder: str | Path,
        options: SeparationOptions = DEFAULT_OPTIONS,
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] = never,
        limits: Limits | None = None,
        source_name: str = "",
    ) -> SeparatedFiles:
        """Separate a file block by block: create `folder`, write NAME.FORMAT for each query and residual.FORMAT.

        source_name: a name to begin the files' with, SOURCE-NAME.FORMAT. limits: of the input. Stems are kept as
        float32 in a temporary folder inside `folder` until they are encoded. A failure leaves no files. Raises what
        `separate` raises, and subclasses of MediaError for the file or format.
        """
        with in_file(Path(path), limits) as source:
            check_format(options.format, source.rate, source.channels, options.bit_depth)
            if not queries and not options.residual:
                raise ValueError("no queries and no residual: there is nothing to write")
            report = reporter(progress)
            plan = self._plan(queries, options)
            with output_folder(Path(folder)) as place, Spool(place, len(queries), source.channels) as spool:
                done = self._separate(source, plan, spool.append, report, cancelled)
                gates = [decision.gate for decision in done.decisions]
                written = stems.write(
                    SpooledStems(source, spool, gates, cancelled, done.peak),
                    list(queries),
                    Path(folder),
                    options,
                    lambda count: report(count / done.frames, "encoding"),
                    source_name,
                )
        return SeparatedFiles.of(source, done, list(queries), written)

    def separate_files(
        self,
        recordings: Iterable[RecordingFile],
        queries: Mapping[str, Query],
        options: SeparationOptions = DEFAULT_OPTIONS,
        *,
        limits: Limits | None = None,
    ) -> Iterator[tuple[RecordingFile, SeparatedFiles | Failure]]:
        """Separate many files; yield each with what `separate_file` returns or raises, not in order.

        Recordings that fit a window share batches, which are written while the next one is computed.
        """
        self._plan(queries, options)  # raises what concerns all of them

        def separate(short: Sequence[ShortRecording]) -> list[tuple[Tensor, Sequence[Decision]]]:
            plan = self._plan(queries, options, short[0].window.samples.shape[1])
            return separate_short(short, plan.masking, windows, self.rate, lambda: self._tracker(plan), plan.gates)

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
                one.path, queries, one.folder, options, limits=limits, source_name=one.source_name
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

    def _plan(self, queries: Mapping[str, Query], options: SeparationOptions, window: int | None = None) -> "_Plan":
        """window: samples of the windows that are to be masked, by default the options'."""
        stems.check_names(list(queries))
        for one in queries.values():
            self.accept(one)
        windows = Windows.of(self._separator, options)
        gates = options.gate and self._gates
        if not queries:
            return _Plan(torch.zeros(0, self._separator.query_size), windows, None, gates)
        vectors = torch.stack([one.vector.float() for one in queries.values()])
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
    ) -> "Separated":
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
        tracker = self._tracker(plan)
        for target, block in separated_blocks(
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
        bits = 16 if self._arithmetic.bfloat16 else 32
        return {"threads": torch.get_num_threads(), "batch": batch, "bits": bits, "speeds": speeds}

    def _tracker(self, plan: "_Plan") -> PresenceTracker:
        return PresenceTracker(self._runner, self._rule, self._profiles, plan.queries)


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


def _span(recording: Waveform, start: float, end: float) -> Waveform:
    require_inside(start, end, recording.duration)
    return recording.span(start, end)
