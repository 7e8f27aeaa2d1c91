"""The engine: the public interface of the models. Makes queries, detections and stems of recordings."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import checkpoints, detection, labels, matching, query, stems
from models.audio import Waveform, mono, require_inside, resample
from models.detection import Detection
from models.detector_runner import Decision, DetectorRunner, PresenceTracker
from models.errors import Cancelled, LabelUnknown, TextRefused, TextUnknown
from models.labels import KnownClass
from models.media import Limits, check_format, open_audio
from models.options import DEFAULT_OPTIONS, SeparationOptions
from models.precision import Arithmetic, Precision
from models.presence import Rule
from models.profiles import Profiles
from models.query import Query, QueryRules, require_model
from models.separation import Masking, Source, Windows, at_rate, never
from models.separation import stems as separated_blocks
from models.stems import Spool, SpooledStems, StemFile, apply_gates

__all__ = ["Engine", "SeparatedFiles", "Separation", "SeparationOptions", "StemFile"]

Progress = Callable[[float, str], None]

_BLOCK = 65536
# The approximate share of a separation's time that each stage takes, as start and end.
_STAGES = {"detecting": (0.0, 0.05), "separating": (0.05, 0.9), "encoding": (0.9, 1.0)}
# Memory for the masks of one batch. More is no faster on a CPU; on a GPU this fills the device.
_MASKING_BYTES = {"cpu": 1 << 25, "cuda": 1 << 32}
_MOST_MASKS = 16


@dataclass(frozen=True)
class Separation:
    """Stems by their queries' names, the residual of the mixture, and each target's presence, 0 to 1."""

    stems: dict[str, Waveform]
    residual: Waveform
    presence: dict[str, float]


@dataclass(frozen=True)
class SeparatedFiles:
    """Stems as files, the residual last and named "residual". gain: the factor on mixture and stems that avoids
    clipping. frames, duration (s): of the mixture and of every stem."""

    stems: list[StemFile]
    presence: dict[str, float]
    gain: float
    rate: int
    channels: int
    frames: int
    duration: float


class Engine:
    """A model on a device. Not safe for use by several threads. It changes the bundle's networks irreversibly: do not
    pass the same bundle to another engine or to `checkpoints.save`."""

    def __init__(self, bundle: checkpoints.Bundle, device: str = "auto", precision: Precision = "auto") -> None:
        self.observe_batch: Callable[[int], object] | None = None  # called with the number of masks of each batch
        self._arithmetic = Arithmetic.of(device, precision)
        self._bundle = bundle
        self._detector, self._separator = bundle.detector, bundle.separator
        self._arithmetic.prepare(self._detector)
        self._arithmetic.prepare(self._separator)
        if not self._arithmetic.exact:
            self._separator.fold()
        self._runner = DetectorRunner(self._detector, self._arithmetic)
        self._rules = QueryRules(**bundle.config["query"])
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
        return f"{self._bundle.name}@{self._bundle.version}"

    @property
    def device(self) -> str:
        return str(self._arithmetic.device)

    @property
    def rate(self) -> int:
        """Sample rate of the networks in Hz."""
        return self._separator.rate

    def describe(self) -> dict[str, Any]:
        """Return the description that a worker announces: the model, and the classes that it detects or separates."""
        classes = self._classes()
        return {
            "name": self._bundle.name,
            "version": self._bundle.version,
            "embedding_size": self._detector.embedding_size,
            "labels": len(self._detected()),
            "askable_labels": sum(known.askable for known in classes),
            "sample_rate": self.rate,
            "classes": [
                asdict(known) | {"path": list(known.path), "synonyms": list(known.synonyms)} for known in classes
            ],
        }

    def _detected(self) -> set[int]:
        return set(getattr(self._detector, "class_indices", torch.arange(labels.CLASSES)).tolist())

    def _classes(self) -> list[KnownClass]:
        detected, askable = self._detected(), self._bundle.class_embeddings
        return [
            KnownClass(
                label=label.name,
                mid=label.mid,
                slug=label.slug,
                path=label.path,
                askable=label.mid in askable,
                source=self._source(label.mid),
                synonyms=label.synonyms,
                description=label.description,
            )
            for label in labels.ontology().values()
            if label.index in detected or label.mid in askable
        ]

    def _source(self, mid: str) -> str | None:
        """Return where a class's embedding comes from, "clips" or "predicted", or None if there is none."""
        if mid not in self._bundle.class_embeddings:
            return None
        return "predicted" if mid in self._bundle.predicted else "clips"

    # Queries

    def embed(
        self,
        recordings: Sequence[Waveform],
        spans: Sequence[tuple[float, float]] | None = None,
        from_mixture: bool = False,
    ) -> Query:
        """Make one query from examples of a sound, each at least 0.1 s long.

        spans: (start, end) in seconds of the one recording given; each is an example. from_mixture:
        the examples are parts of the very recording that is to be separated, so that the query needs no correction
        towards its class (`models.plda`). Raises SilentQuery, SpanOutside.
        """
        if not recordings:
            raise ValueError("a query needs at least one example")
        if spans is not None:
            if len(recordings) != 1:
                raise ValueError("spans belong to one recording")
            recordings = [_span(recordings[0], start, end) for start, end in spans]
        examples = [resample(mono(one.samples)[None], one.rate, self._detector.rate)[0] for one in recordings]
        return query.embed(
            self._runner, examples, self._rules, self.model_id, None if from_mixture else self._bundle.prior
        )

    def label(self, name: str) -> Query:
        """Return a class's query by its name, slug or mid. Raises LabelUnknown, whose `near` lists similar names."""
        embeddings = self._bundle.class_embeddings
        askable = [label for label in labels.ontology().values() if label.mid in embeddings]
        if not askable:
            raise LabelUnknown(f"{self.model_id} has no embeddings of classes: give it an example of the sound instead")
        label = labels.find(name)
        if label.mid not in embeddings:
            kin = [other for other in askable if set(other.path[1:]) & set(label.path[1:])]
            near = [other.name for other in sorted(kin, key=lambda other: -len(set(other.path) & set(label.path)))][:5]
            hint = f" Near it: {', '.join(near)}." if near else ""
            raise LabelUnknown(f"{self.model_id} has no embedding of {label.name!r}: give it an example.{hint}", near)
        return Query(embeddings[label.mid].clone(), self.model_id)

    def label_mean(self, weights: Mapping[str, float]) -> Query:
        """Return the weighted mean of classes' queries, by their names. Raises LabelUnknown."""
        queries = [(self.label(name), weight) for name, weight in weights.items()]
        return queries[0][0] if len(queries) == 1 else Query.mean(queries)

    def match_text(self, text: str) -> dict[str, float]:
        """Return the classes that a text such as "a dog barking" means, for `label_mean`: names with weights that add
        up to 1, the heaviest first. Raises TextRefused, TextUnknown."""
        try:
            return {match.label: weight for match, weight in self._vocabulary.resolve(text)}
        except matching.TextUnknown as error:
            raise TextUnknown(str(error).rstrip(".")) from error
        except matching.TextRefused as error:
            raise TextRefused(str(error).rstrip(".")) from error

    @cached_property
    def _vocabulary(self) -> matching.Vocabulary[KnownClass]:
        return matching.Vocabulary(self._classes())

    # Detection

    def detect(
        self,
        recording: Waveform,
        top: int = detection.TOP,
        threshold: float = detection.THRESHOLD,
        cancelled: Callable[[], bool] = never,
        progress: Progress | None = None,
    ) -> Detection:
        """Detect the sounds in a recording of any length: tags and events. Raises Cancelled.

        top: the number of tags. threshold: the probability that an event must reach; it ends below half of that.
        progress(ratio, "detecting").
        """
        return self._detect(_in_memory(recording), top, threshold, cancelled, progress)

    def detect_file(
        self,
        path: str | Path,
        top: int = detection.TOP,
        threshold: float = detection.THRESHOLD,
        cancelled: Callable[[], bool] = never,
        progress: Progress | None = None,
        limits: Limits | None = None,
    ) -> Detection:
        """Detect the sounds in a file, block by block. Raises subclasses of MediaError too."""
        return self._detect(_in_file(Path(path), limits), top, threshold, cancelled, progress)

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

        progress(ratio, stage). Raises Cancelled, QueryModelMismatch, ValueError for impossible windows or names.
        """
        source = _in_memory(recording)
        report = _reporter(progress)
        plan = self._plan(queries, options)
        blocks: list[list[Tensor]] = [[] for _ in queries]
        decisions, _ = self._separate(
            source, plan, lambda target, block: blocks[target].append(block), report, cancelled
        )
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
        source = _in_file(Path(path), limits)
        check_format(options.format, source.rate, source.channels, options.bit_depth)
        if not queries and not options.residual:
            raise ValueError("no queries and no residual: there is nothing to write")
        report = _reporter(progress)
        plan = self._plan(queries, options)
        folder = Path(folder)
        existed = folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with (
                tempfile.TemporaryDirectory(prefix=".spool-", dir=folder, ignore_cleanup_errors=True) as waiting,
                Spool(Path(waiting), len(queries), source.channels) as spool,
            ):
                decisions, frames = self._separate(source, plan, spool.append, report, cancelled)
                gates = [decision.gate for decision in decisions]
                files, gain = stems.write(
                    SpooledStems(source, spool, gates, cancelled),
                    list(queries),
                    folder,
                    options,
                    lambda done: report(done / frames, "encoding"),
                    source_name,
                )
        except BaseException:
            if not existed:
                with suppress(OSError):  # what is left in it must not hide the error
                    folder.rmdir()
            raise
        presence = {name: decision.presence for name, decision in zip(queries, decisions, strict=True)}
        return SeparatedFiles(files, presence, gain, source.rate, source.channels, frames, frames / source.rate)

    def _plan(self, queries: Mapping[str, Query], options: SeparationOptions) -> "_Plan":
        stems.check_names(list(queries))
        for one in queries.values():
            require_model(one, self.model_id)
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
            batch=options.batch or self._masks_at_once(windows),
            joint=options.joint,
            exhaustive=options.exhaustive,
            autocast=self._arithmetic.masks,
            observe=self.observe_batch,
        )
        return _Plan(vectors, windows, masking, gates)

    def _masks_at_once(self, windows: Windows) -> int:
        needed = self._separator.mask_bytes * windows.size / self.rate
        return min(max(int(_MASKING_BYTES.get(self._arithmetic.device.type, 0) / needed), 1), _MOST_MASKS)

    def _separate(
        self,
        source: Source,
        plan: "_Plan",
        keep: Callable[[int, Tensor], None],
        report: Progress,
        cancelled: Callable[[], bool],
    ) -> tuple[Sequence[Decision], int]:
        """Separate, pass the query and samples (C, n) of stems' blocks to `keep`, and return the decisions and the
        mixture's length."""
        tracker = PresenceTracker(self._runner, self._rule, self._profiles, plan.queries)
        read = 0

        def count_blocks() -> Iterator[Tensor]:
            nonlocal read
            for block in source.blocks():
                if cancelled():
                    raise Cancelled("the separation was cancelled")
                read += block.shape[1]
                report(read / source.frames if source.frames else 0.0, "detecting")
                yield block

        for block in at_rate(replace(source, blocks=count_blocks), self.rate):
            if plan.masking:
                tracker.add_mixture(block)
        if plan.masking is None:
            return [], read
        total = plan.windows.count(round(read * self.rate / source.rate))
        for target, block in separated_blocks(
            source,
            plan.masking,
            plan.windows,
            self.rate,
            observe=tracker.add_estimate,
            windowed=lambda done: report(done / total, "separating"),
            cancelled=cancelled,
        ):
            keep(target, block)
        return tracker.decide(plan.gates), read


@dataclass(frozen=True)
class _Plan:
    """A separation before its recording is read: queries (Q, D), how the recording is cut into windows, masking (None
    without queries), and whether absent targets are attenuated."""

    queries: Tensor
    windows: Windows
    masking: Masking | None
    gates: bool


def _span(recording: Waveform, start: float, end: float) -> Waveform:
    require_inside(start, end, recording.duration)
    return recording.span(start, end)


def _in_memory(recording: Waveform) -> Source:
    return Source(recording.rate, recording.channels, recording.frames, lambda: recording.samples.split(_BLOCK, dim=1))


def _in_file(path: Path, limits: Limits | None) -> Source:
    def blocks() -> Iterator[Tensor]:
        with open_audio(path, limits) as reader:
            yield from (torch.from_numpy(block) for block in reader)

    with open_audio(path, limits) as reader:
        known = reader.info
    frames = known.frames or (round(known.duration * reader.rate) if known.duration else None)
    return Source(reader.rate, reader.channels, frames, blocks, known.mask)


def _reporter(progress: Progress | None) -> Progress:
    """Return a function that reports (share of a stage, stage) as a ratio of the whole, which never falls."""
    reached = 0.0

    def report(share: float, stage: str) -> None:
        nonlocal reached
        start, end = _STAGES[stage]
        reached = max(reached, start + (end - start) * min(max(share, 0.0), 1.0))
        if progress is not None:
            progress(reached, stage)

    return report
