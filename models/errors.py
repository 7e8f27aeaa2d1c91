"""What can go wrong in the science, as types.

ModelsError
  CheckpointInvalid     a weights file or folder that is not what it should be
  SilentQuery           nothing to hear in an example
  QueryModelMismatch    a query made by another model
  LabelUnknown          no such class, or one without an embedding
  Cancelled             the caller asked to stop

Media errors live in `media.py`, which must not import torch.
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
