"""The engine: the public interface of the models. Makes queries, detections and stems of recordings."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import checkpoints, detection, short_detections
from models.audio import Waveform, mono, require_finite, require_inside, resample
from models.compute.batches import Failure
from models.compute.precision import Arithmetic, Precision
from models.detection import Detection
from models.media import Limits
from models.named_queries import NamedQueries
from models.options import DEFAULT_OPTIONS, THRESHOLD, TOP, SeparationOptions
from models.queries import query
from models.queries.excerpts import excerpts
from models.queries.profiles import Profiles
from models.queries.query import Query, QueryRules, require_model
from models.separation.detector_runner import DetectorRunner, PresenceTracker
from models.separation.long_recordings import Source, at_rate, never
from models.separation.presence import Rule
from models.separation.separated_files import Progress, SeparatedFiles
from models.separation.separator_runner import Separation, SeparatorRunner
from models.separation.short_recordings import RecordingFile
from models.separation.sources import in_file, in_memory
from models.separation.stems import StemFile

__all__ = ["Engine", "SeparatedFiles", "Separation", "SeparationOptions", "StemFile"]

_USUAL_RATE = 44100  # Hz


class Engine:
    """A model on a device. Several threads may use one on a CPU, and a single one on a GPU. It changes the bundle's
    networks irreversibly: do not pass the same bundle to another engine or to `checkpoints.save`."""

    def __init__(self, bundle: checkpoints.Bundle, device: str = "auto", precision: Precision = "auto") -> None:
        self._arithmetic = Arithmetic.of(device, precision)
        self._bundle = bundle
        self._detector = bundle.detector
        self._arithmetic.prepare(bundle.detector)
        self._arithmetic.prepare(bundle.separator)
        self._arithmetic.accelerate(bundle.detector, bundle.separator)
        self._detector_runner = DetectorRunner(self._detector, self._arithmetic)
        self._rules = QueryRules(**bundle.config["query"])
        self._named = NamedQueries(bundle)
        # Without a fitted rule, presence is estimated by the default one, and no stem is attenuated.
        whole = {"window_seconds": self._detector.window_samples / self._detector.rate}
        rule = Rule.of(whole if bundle.presence is None else bundle.presence)
        track = partial(PresenceTracker, self._detector_runner, rule, Profiles(bundle.prior, bundle.clip_embeddings))
        gates = bundle.presence is not None
        self._separator_runner = SeparatorRunner(bundle.separator, self._arithmetic, track, gates)

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
        """Name and version, such as "base@1"; `understands` tells whose queries it takes."""
        return self._bundle.model_id

    @property
    def device(self) -> str:
        return str(self._arithmetic.device)

    @property
    def rate(self) -> int:
        """Sample rate of the networks in Hz."""
        return self._separator_runner.rate

    def observe_batches(self, observe: Callable[[int], object]) -> None:
        """Call `observe` with the number of masks of each batch of separations from here on."""
        self._separator_runner.observe_batch = observe

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

    def warm_up(self) -> None:
        """Separate 10 s of noise, so that the first recording takes no longer than later ones: kernels are made when a
        shape is first computed, and memory is slow when it is first used."""
        noise = 0.1 * torch.randn(2, 10 * _USUAL_RATE, generator=torch.Generator().manual_seed(0))
        recording = Waveform(noise, _USUAL_RATE)
        part, rest = recording.span(0.0, 2.0), recording.span(2.0, 6.0)
        query = self.embed([part], from_mixture=True, surroundings=[rest])
        self.separate(recording, {"noise": query})

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
            return query.embed(self._detector_runner, self._heard(recordings), *made_of)
        around = torch.cat(self._heard(surroundings))
        # What is taken off the query may be less precise, as embeddings that only decide presence.
        sketch = self._detector_runner.sketch if self._arithmetic.bfloat16 else None
        return query.embed_apart(self._detector_runner, self._heard(recordings), around, *made_of, sketch)

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
            self._detector_runner.framewise,
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
        curve, samples = detection.framewise(detector, blocks, self._detector_runner.framewise, cancelled)
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
        return self._separator_runner.separate(recording, self._vectors(queries), options, progress, cancelled)

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
        vectors, target = self._vectors(queries), Path(folder)
        return self._separator_runner.separate_file(
            Path(path), vectors, target, options, progress, cancelled, limits, source_name
        )

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
        yield from self._separator_runner.separate_files(recordings, self._vectors(queries), options, limits)

    def _vectors(self, queries: Mapping[str, Query]) -> dict[str, Tensor]:
        """Return the vector (D,) of each query. Raises QueryModelMismatch."""
        return {name: self.accept(one).vector for name, one in queries.items()}


def _span(recording: Waveform, start: float, end: float) -> Waveform:
    require_inside(start, end, recording.duration)
    return recording.span(start, end)
