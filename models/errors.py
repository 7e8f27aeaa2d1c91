"""Exceptions of the models package.

ModelsError
  CheckpointInvalid     a weights file or folder is missing, damaged or of a wrong shape
  SilentQuery           an example holds no sound
    ExampleTooShort     an example is too short to tell
  QueryModelMismatch    a query was made by another model
  LabelUnknown          no such class, or one without an embedding
  TextRefused           a text names several sounds, or what is not wanted
    TextUnknown         no class with an embedding is surely meant by it
  Cancelled             the caller cancelled the operation
  NothingLeft           a negative query is the same sound as the query
  SpanOutside           a span is not inside its recording
  DeviceUnavailable     no such accelerator on this machine
  CorpusInvalid         not a readable corpus of labelled audio
  MediaError            a media file, read or written
    AudioUndecodable    the file cannot be decoded, or not safely
    AudioTooLong        longer, or more samples, than allowed
    AudioTooWide        more channels than allowed
    FormatUnsupported   the format cannot hold the audio

Nothing here imports torch: the sandboxed process that decodes must start quickly.
"""


class ModelsError(Exception):
    """Base of all errors of this package; `code` is the error's code in the REST API."""

    code = "internal"


class CheckpointInvalid(ModelsError):
    """The file or folder does not hold valid weights; the message names the first problem."""

    code = "checkpoint_invalid"


class SilentQuery(ModelsError):
    """An example holds no sound that a query could be made from."""

    code = "audio_silent"


class ExampleTooShort(SilentQuery):
    """An example, or a span, lasts less than a query needs, whether or not it is silent."""

    code = "request_invalid"


class QueryModelMismatch(ModelsError):
    """The query was made by another model; embeddings of different models cannot be exchanged."""

    code = "query_model_mismatch"


class LabelUnknown(ModelsError):
    """No class has this name, or the model has no embedding for it."""

    code = "label_unknown"

    def __init__(self, message: str, near: list[str] | None = None) -> None:
        super().__init__(message)
        self.near = near or []


class TextRefused(ModelsError):
    """A text names several sounds, or what is not wanted; the message says how to ask."""

    code = "request_invalid"


class TextUnknown(TextRefused):
    """No class that the model has an embedding for is surely meant by a text; the message has near names."""

    code = "text_unknown"


class Cancelled(ModelsError):
    """The caller's `cancelled` callback returned true."""

    code = "canceled"


class NothingLeft(ModelsError):
    """The negative query is the same sound as the query it is taken off."""

    code = "request_invalid"


class SpanOutside(ModelsError):
    """A span begins or ends outside its recording, or is empty."""

    code = "span_outside"


class DeviceUnavailable(ModelsError):
    """This machine has no accelerator of the requested kind."""

    code = "model_unavailable"


class CorpusInvalid(ModelsError):
    """The path holds no readable corpus, the corpus has no such split, or no recording of it is usable."""

    code = "corpus_invalid"


class MediaError(ModelsError):
    """A media file cannot be read or written; `detail` is a message for the client, without paths."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class AudioUndecodable(MediaError):
    """The file holds no audio stream that can be decoded, or one whose rate or channels change."""

    code = "audio_undecodable"


class AudioTooLong(MediaError):
    """The recording is longer than allowed, or has more samples."""

    code = "audio_too_long"


class AudioTooWide(MediaError):
    """The recording has more channels than allowed."""

    code = "audio_too_wide"


class FormatUnsupported(MediaError):
    """The format is unknown, or cannot hold such audio."""

    code = "format_unsupported"
