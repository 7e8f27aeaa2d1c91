"""What can go wrong in the science, as types.

ModelsError
  CheckpointInvalid     a weights file or folder that is not what it should be
  SilentQuery           nothing to hear in an example
  QueryModelMismatch    a query made by another model
  LabelUnknown          no such class, or one without an embedding
  Cancelled             the caller asked to stop
  SpanOutside           a span that is not inside its recording
  DeviceUnavailable     no such accelerator on this machine
  CorpusInvalid         nothing that can be read as a corpus of labelled audio
  MediaError            about a media file, in or out
    AudioUndecodable    nothing that can be decoded, or not safely
    AudioTooLong        longer, or more samples, than is allowed
    AudioTooWide        more channels than are allowed
    FormatUnsupported   a format that cannot hold what it should

Nothing here imports torch: the limited child process that decodes must start in a blink.
"""


class ModelsError(Exception):
    """Base of all errors of this package; `code` is the word that the REST contract uses."""

    code = "internal"


class CheckpointInvalid(ModelsError):
    """The file or folder does not hold the weights that were asked for; the message names the first fault."""

    code = "checkpoint_invalid"


class SilentQuery(ModelsError):
    """An example holds no sound to make a query from."""

    code = "audio_silent"


class QueryModelMismatch(ModelsError):
    """The query was made by another model; embeddings of different models cannot be exchanged."""

    code = "query_model_mismatch"


class LabelUnknown(ModelsError):
    """No class has this name, or the model has no embedding for it."""

    code = "label_unknown"

    def __init__(self, message: str, near: list[str] | None = None) -> None:
        super().__init__(message)
        self.near = near or []


class Cancelled(ModelsError):
    """The caller's `cancelled` callback said stop."""

    code = "canceled"


class SpanOutside(ModelsError):
    """A span begins or ends outside its recording, or holds nothing."""

    code = "span_outside"


class DeviceUnavailable(ModelsError):
    """This machine has no accelerator of the kind that was asked for."""

    code = "model_unavailable"


class CorpusInvalid(ModelsError):
    """Nothing that can be read as a corpus, no such split in it, or nothing of it left."""

    code = "corpus_invalid"


class MediaError(ModelsError):
    """Something is the matter with a media file; `detail` is a sentence for whoever sent it, without paths."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class AudioUndecodable(MediaError):
    """The file holds no audio stream that can be decoded, or one that changes under way."""

    code = "audio_undecodable"


class AudioTooLong(MediaError):
    """The recording is longer than is allowed, or has more samples."""

    code = "audio_too_long"


class AudioTooWide(MediaError):
    """The recording has more channels than are allowed."""

    code = "audio_too_wide"


class FormatUnsupported(MediaError):
    """The format is unknown, or cannot hold such audio."""

    code = "format_unsupported"
