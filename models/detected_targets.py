"""Targets that a recording itself gives: the sounds that the detector finds in it, each with its query."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch

from models import labels
from models.audio import Waveform, mono, resample
from models.engine import Engine
from models.errors import Cancelled, LabelUnknown, SilentQuery
from models.labels import Label
from models.media import ANY_LENGTH, Limits
from models.options import DEFAULT_AUTO, Auto, SeparationOptions
from models.queries.auto_targets import AutoTarget, choose_targets, compared_spans, same_sounds
from models.queries.query import Query, surroundings
from models.separation.long_recordings import never
from models.separation.separated_files import Progress, SeparatedFiles

_LONGEST_NAME = 64  # characters


@dataclass(frozen=True)
class DetectedTargets:
    """Queries and classes of the targets, by name, the most probable first; and what is to be told about them."""

    queries: dict[str, Query]
    labels: dict[str, Label]
    warnings: list[str]


def detect_targets(
    engine: Engine,
    path: Path,
    auto: Auto = DEFAULT_AUTO,
    *,
    cancelled: Callable[[], bool] = never,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> DetectedTargets:
    """Return a target for each sound that is detected in a decoded recording, a WAV. Raises Cancelled, MediaError.

    A query comes from the spans in which its class sounds alone; without such spans it is the class embedding; a class
    that has no embedding is queried by the spans in which it is most probable. Of classes that are the same sound to
    the separator, only the first is a target. progress: of the detection.
    """
    found = engine.detect_file(path, labels.CLASSES, auto.threshold, cancelled, progress, limits)
    queries: dict[str, Query] = {}
    sounds: dict[str, AutoTarget] = {}
    for sound in choose_targets(found, 2 * auto.most, auto.threshold):
        if cancelled():
            raise Cancelled("stopped between two steps")
        query = _query(engine, path, sound)
        if query is not None:
            name = sound.label.slug[:_LONGEST_NAME]
            queries[name], sounds[name] = query, sound
    same = _same_sounds(engine, path, queries, list(sounds.values()), cancelled)
    chosen = [name for name in queries if name not in same][: auto.most]
    warnings = [
        f'"{sounds[name].label.name}" is no target: it is the same sound as "{sounds[other].label.name}" here.'
        for name, other in same.items()
        if other in chosen
    ]
    if not chosen:
        warnings.append(f"No sound is detected with a probability of {auto.threshold:g}: there are no targets.")
    return DetectedTargets(
        {name: queries[name] for name in chosen}, {name: sounds[name].label for name in chosen}, warnings
    )


def separate_detected(
    engine: Engine,
    path: Path,
    folder: Path,
    options: SeparationOptions,
    auto: Auto,
    source_name: str,
    progress: Progress | None = None,
) -> tuple[DetectedTargets, SeparatedFiles]:
    """Separate the sounds that are detected in a decoded recording of any length, as `Engine.separate_file` does.

    Without targets there is the residual alone, or, if it is not requested, no file.
    """
    targets = detect_targets(engine, path, auto, progress=progress, limits=ANY_LENGTH)
    if not targets.queries and not options.residual:
        info = soundfile.info(path)
        return targets, SeparatedFiles([], {}, 1.0, info.samplerate, info.channels, info.frames, info.duration)
    done = engine.separate_file(
        path, targets.queries, folder, options, progress=progress, limits=ANY_LENGTH, source_name=source_name
    )
    return targets, done


def _query(engine: Engine, path: Path, sound: AutoTarget) -> Query | None:
    def class_query() -> Query:
        return engine.label(sound.label.mid)

    def span_query() -> Query:
        around = surroundings(sound.spans, soundfile.info(path).duration)
        return engine.embed(_read(path, sound.spans), from_mixture=True, surroundings=_read(path, around))

    for make_query in (span_query, class_query) if sound.alone else (class_query, span_query):
        try:
            return make_query()
        except (LabelUnknown, SilentQuery):
            continue
    return None


def _same_sounds(
    engine: Engine,
    path: Path,
    queries: dict[str, Query],
    sounds: list[AutoTarget],
    cancelled: Callable[[], bool],
) -> dict[str, str]:
    parts = _read(path, compared_spans(sounds))
    if len(queries) < 2 or not parts:
        return {}
    joined = torch.cat([part.samples for part in parts], dim=1)
    stems = engine.separate(
        Waveform(resample(joined, parts[0].rate, engine.rate), engine.rate),
        queries,
        SeparationOptions(gate=False),
        cancelled=cancelled,
    ).stems
    return same_sounds({name: stem.samples for name, stem in stems.items()})


def _read(path: Path, spans: Sequence[tuple[float, float]]) -> list[Waveform]:
    """Return parts of the recording, in seconds, as one channel each."""
    rate = soundfile.info(path).samplerate
    parts = []
    for start, end in spans:
        samples, _ = soundfile.read(
            path, start=round(start * rate), stop=round(end * rate), dtype="float32", always_2d=True
        )
        parts.append(Waveform(mono(torch.from_numpy(samples.T)).unsqueeze(0).contiguous(), rate))
    return parts
