"""Jobs as large as the limits allow, for tests of records and of what clients see of them."""

from array import array
from typing import Any

from redis import Redis

from app.jobs.kinds import DETECTION
from app.jobs.lifecycle import Job, JobError, TargetState, Webhook
from app.outbound import LONGEST_URL
from app.records.audio import audio_key
from app.records.detections import DetectionResult, EventRecord, PictureRecord, TagRecord
from app.records.ids import new_id
from app.records.separations import OutputRecord, SeparationRequest, SeparationResult, Span, StemRecord, TargetRecord
from app.records.shared import EmbeddingRecord, ExampleRecord, ModelRecord, RecordingRecord, pack_vector
from tests.app.records import new_job

MODEL = ModelRecord(name="m" * 64, version="1" * 8)
LABEL = "Vehicle horn, car horn, honking, toot and others"  # as long as the longest name of a class
DETAIL = "The examples differ a lot from each other, " * 6  # longer than any sentence of a worker
WIDE = "\U0001f600"  # four bytes of UTF-8


def detection_result(audio_id: str, events: int, tags: int = 527, seconds: float = 600.0) -> DetectionResult:
    """Return a result with so many events and tags, in a recording of so many seconds."""
    return DetectionResult(
        audio=RecordingRecord(audio_id=audio_id, duration=seconds, sample_rate=44100, channels=2),
        tags=[TagRecord(label=LABEL, mid="/m/0bt9lr", probability=0.9123 / (index + 1)) for index in range(tags)],
        events=[
            EventRecord(
                label=LABEL,
                mid="/m/0bt9lr",
                start=seconds * index / (events + 1),
                end=seconds * (index + 0.7) / (events + 1),
                confidence=1 / (index + 2),
            )
            for index in range(events)
        ],
        picture=PictureRecord(key="detections/det_x/e/timeline.png", bytes=123456, sha256="0" * 64),
        model=MODEL,
        metrics=dict.fromkeys(("decoding", "detecting", "encoding", "real_time_factor"), 0.1234567),
    )


def large_metadata(entries: int, letter: str = WIDE) -> dict[str, str]:
    """Return metadata with so many entries of the greatest length."""
    return {f"{index:02}" + letter * 62: letter * 512 for index in range(entries)}


def large_separation(redis: Redis, targets: int, examples: int, embedding_size: int, metadata: int) -> Job:
    """Return a new separation of which every part is as large as the limits allow; its uploads exist.

    examples: of each target, half of them negative; if there are none, targets have spans and embeddings by turns.
    """
    uploads = [new_id("aud") for _ in range(1 + targets * examples)]
    with redis.pipeline() as pipe:
        for upload in uploads:
            pipe.set(audio_key(upload), "{}")
        pipe.execute()
    records, names = [], [f"{index:02}" + WIDE * 62 for index in range(targets)]
    for index, name in enumerate(names):
        own = [ExampleRecord(audio_id=upload) for upload in uploads[1 + index * examples : 1 + (index + 1) * examples]]
        record = TargetRecord(name=name, examples=own[::2], not_examples=own[1::2])
        if not examples and index % 2:
            record.spans = [Span(start=1.2345678901234 * at, end=1.3345678901234 * at + 1) for at in range(20)]
        elif not examples:
            vector = array("f", [0.1234567 * at for at in range(embedding_size)])
            record.embedding = EmbeddingRecord(vector=pack_vector(vector), model=MODEL, coherence=0.8765)
        records.append(record)
    request = SeparationRequest(
        mixture=RecordingRecord(audio_id=uploads[0], duration=7200.123456, sample_rate=192000, channels=8),
        model=MODEL,
        targets=records,
        output=OutputRecord(format="wav", bit_depth=24),
    )
    url = "https://hooks.example.com/"
    return new_job(*uploads).model_copy(
        update={
            "request": request.model_dump(),
            "targets": [TargetState(name=name, label=LABEL) for name in names],
            "metadata": large_metadata(metadata),
            "webhook": Webhook(url=url + WIDE * (LONGEST_URL - len(url)), events=["succeeded", "failed", "canceled"]),
            "request_id": "r" * 64,
            "owner": new_id("key"),
        }
    )


def large_detection(metadata: int) -> Job:
    """Return a new detection with so many entries of metadata; it uses no upload."""
    recording = RecordingRecord(audio_id=new_id("aud"), duration=7200.0, sample_rate=44100, channels=2)
    request = {"audio": recording.model_dump(), "model": MODEL.model_dump(), "threshold": 0.01, "top": 527}
    return new_job(kind=DETECTION).model_copy(
        update={"request": request, "targets": [], "metadata": large_metadata(metadata)}
    )


def failed_target(target: TargetState) -> TargetState:
    """Return a target that failed with a long sentence."""
    error = JobError(code="query_model_mismatch", detail=DETAIL)
    return target.model_copy(update={"status": "failed", "error": error})


def large_outcome(job: Job) -> tuple[list[TargetState], dict[str, Any], list[str]]:
    """Return targets, result and warnings of a separation, as large as they can be."""
    succeeded = {"status": "succeeded", "presence": 0.98765, "coherence": 0.4321, "warnings": [DETAIL]}
    targets = [target.model_copy(update=succeeded) for target in job.targets]
    stems = [
        StemRecord(
            name=name,
            key=f"separations/{job.id}/{'e' * 32}/{index}.flac",
            content_type="audio/flac",
            bytes=1_234_567_890,
            sha256="f" * 64,
            peak=0.123456789,
            loudness=-23.456789,
        )
        for index, name in enumerate([*(target.name for target in targets), "residual"])
    ]
    mixture = RecordingRecord(audio_id="aud_" + "0" * 26, duration=7200.123456, sample_rate=192000, channels=8)
    result = SeparationResult(mixture=mixture, stems=stems, gain=0.987654321, model=MODEL, metrics={"decoding": 1.5})
    return targets, result.model_dump(), [DETAIL]
