"""Exception tree of the service, and the code and HTTP status of each class.

EarmarkError                    internal                  500
  RequestInvalid                request_invalid           422   a field is wrong; `errors` point at it
    LabelUnknown                label_unknown             422
    TextUnknown                 text_unknown              422
    NameReserved                name_reserved             422
    FormatUnsupported           format_unsupported        422
    SpanOutside                 span_outside              422
    AudioUndecodable            audio_undecodable         422
    AudioTooLong                audio_too_long            422
    AudioTooWide                audio_too_wide            422
    UrlRefused                  url_refused               422
    QueryModelMismatch          query_model_mismatch      422
    IdempotencyMismatch         idempotency_mismatch      422
  NotFound                      not_found                 404
  Unauthorized                  unauthorized              401   with WWW-Authenticate
  RateLimited                   rate_limited              429   with Retry-After
    QuotaExceeded               quota_exceeded            429
  IdempotencyInProgress         idempotency_in_progress   409
  UploadTooLarge                upload_too_large          413
  RequestTooLarge               request_too_large         413   its scratch or its stems would be too large
  UploadTimeout                 upload_timeout            408
  NotMultipart                  not_multipart             415
  MediaTypeUnsupported          media_type_unsupported    415
  RangeNotSatisfiable           range_not_satisfiable     416
  AlreadyFinished               already_over              409
  NotRetryable                  not_retryable             409
  AudioInUse                    audio_in_use              409
  PresignUnavailable            presign_unavailable       409
  UploadMissing                 upload_missing            409
  OffsetMismatch                offset_mismatch           409
  TusVersionUnsupported         tus_version_unsupported   412   with Tus-Version
  QueryNotReady                 query_not_ready           409
  StemsExpired                  stems_expired             410
  UploadsExpired                uploads_expired           410
  Unavailable                   internal                  503   with Retry-After
    QueueFull                   queue_full                503
    QueueUnavailable            queue_unavailable         503
    StoreUnavailable            store_unavailable         503
      DiskFull                  disk_full                 503
      StoreRefused              store_unavailable         503   the store refuses this server, whoever asks
    ModelUnavailable            model_unavailable         503
    Overloaded                  overloaded                503   a budget that all share is used up
  RecordTooNew                  internal                  500   written by a newer release
  RecordUnreadable              internal                  500   damaged: set aside, and to be deleted
  ClientGone                    client_gone               499   the client has closed the connection

The `error` of a job or a target uses the same codes; `audio_silent`, `timed_out`, `out_of_memory`, `worker_lost` and
`internal` occur only there. `app/http/problems.py` makes the responses.
"""

import errno
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FieldError:
    """A field error: a JSON pointer (RFC 6901) into the body, and what is wrong there."""

    pointer: str
    detail: str


class EarmarkError(Exception):
    """Base of all errors that are sent to clients; `detail` is a sentence without paths, keys or internals."""

    code = "internal"
    status = 500
    title = "Internal error"
    retry_after: int | None = None

    def __init__(self, detail: str = "", errors: list[FieldError] | None = None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.errors = errors or []


class RequestInvalid(EarmarkError):
    """The request is well-formed, but its content cannot be processed."""

    code = "request_invalid"
    status = 422
    title = "The request is not valid"


class LabelUnknown(RequestInvalid):
    """No class has this name, or the model cannot separate it by name."""

    code = "label_unknown"
    title = "No such label"


class TextUnknown(RequestInvalid):
    """No class that the model can separate by name is surely meant by a text."""

    code = "text_unknown"
    title = "No such sound"


class NameReserved(RequestInvalid):
    """The name `residual` is used for the rest of the mixture."""

    code = "name_reserved"
    title = "The name is reserved"


class FormatUnsupported(RequestInvalid):
    """The format cannot hold the mixture's channels, rate or bit depth."""

    code = "format_unsupported"
    title = "The format does not fit"


class SpanOutside(RequestInvalid):
    """A span begins or ends outside the mixture."""

    code = "span_outside"
    title = "The span lies outside the mixture"


class AudioUndecodable(RequestInvalid):
    """The bytes are not audio in a supported format."""

    code = "audio_undecodable"
    title = "The file is not audio that can be decoded"


class AudioTooLong(RequestInvalid):
    """The recording is longer than the limit."""

    code = "audio_too_long"
    title = "The audio is too long"


class AudioTooWide(RequestInvalid):
    """The recording has more channels than the limit."""

    code = "audio_too_wide"
    title = "The audio has too many channels"


class UrlRefused(RequestInvalid):
    """The URL may not be requested, or cannot be fetched; the detail reveals nothing about internal networks."""

    code = "url_refused"
    title = "The URL is refused"


class QueryModelMismatch(RequestInvalid):
    """The embedding was made by another model; embeddings of different models are not interchangeable."""

    code = "query_model_mismatch"
    title = "The query was made by another model"


class NotFound(EarmarkError):
    """The resource does not exist, or belongs to another client."""

    code = "not_found"
    status = 404
    title = "Not found"


RefusalReason = Literal["missing", "malformed", "unknown", "url"]
_CHALLENGES: dict[RefusalReason, str] = {
    "missing": "",
    "malformed": "invalid_request",
    "unknown": "invalid_token",
    "url": "invalid_token",
}


class Unauthorized(EarmarkError):
    """No API key, or an invalid one; `challenge` is the response's `WWW-Authenticate` (RFC 6750, section 3).

    reason: also the label of a metric; `url` is a signed URL.
    """

    code = "unauthorized"
    status = 401
    title = "An API key is required"

    def __init__(self, detail: str, reason: RefusalReason, key_id: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.key_id = key_id  # as the request claims, which may be untrue
        error = _CHALLENGES[reason]
        self.challenge = 'Bearer realm="earmark"' + (f', error="{error}"' if error else "")


class RateLimited(EarmarkError):
    """The caller exceeds its rate limit."""

    code = "rate_limited"
    status = 429
    title = "Too many requests"

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class QuotaExceeded(RateLimited):
    """A quota of the caller is used up: audio seconds of today, or what is kept for it."""

    code = "quota_exceeded"
    title = "A quota is used up"


class IdempotencyInProgress(EarmarkError):
    """The first request with this `Idempotency-Key` has no response yet."""

    code = "idempotency_in_progress"
    status = 409
    title = "The first request with this key is in progress"


class IdempotencyMismatch(RequestInvalid):
    """The `Idempotency-Key` was used with a different request."""

    code = "idempotency_mismatch"
    title = "The key was used with a different request"


class UploadTooLarge(EarmarkError):
    """A file, or the whole body, is larger than `limit` bytes."""

    code = "upload_too_large"
    status = 413
    title = "The upload is too large"

    def __init__(self, limit: int, subject: str = "A file") -> None:
        super().__init__(f"{subject} may have {limit} bytes.")


class RequestTooLarge(EarmarkError):
    """The job would need more disk space of a worker, or of the store, than a job may use."""

    code = "request_too_large"
    status = 413
    title = "The job is too large"


class UploadTimeout(EarmarkError):
    """The body arrived too slowly."""

    code = "upload_timeout"
    status = 408
    title = "The upload took too long"


class NotMultipart(EarmarkError):
    """The body must be multipart/form-data and is not."""

    code = "not_multipart"
    status = 415
    title = "The body is not multipart/form-data"


class MediaTypeUnsupported(EarmarkError):
    """The operation does not accept the body's content type."""

    code = "media_type_unsupported"
    status = 415
    title = "The content type is not supported"


class RangeNotSatisfiable(EarmarkError):
    """The range starts after the last byte; `size` is the number of bytes."""

    code = "range_not_satisfiable"
    status = 416
    title = "The range cannot be satisfied"

    def __init__(self, size: int) -> None:
        super().__init__(f"The content has {size} bytes.")
        self.size = size


class AlreadyFinished(EarmarkError):
    """The job is in a terminal state and cannot be canceled; the detail names the state, and what can be done."""

    code = "already_over"
    status = 409
    title = "The job is already finished"

    def __init__(self, kind: str, state: str) -> None:
        others = "delete it to discard what it made" if state == "succeeded" else "retry it to run it again"
        super().__init__(f"The {kind} is {state}; only a queued or running one can be canceled: {others}.")


class NotRetryable(EarmarkError):
    """The job has not failed and was not canceled."""

    code = "not_retryable"
    status = 409
    title = "The job cannot be retried"


class AudioInUse(EarmarkError):
    """A queued or running job needs the audio."""

    code = "audio_in_use"
    status = 409
    title = "The audio is in use"


class PresignUnavailable(EarmarkError):
    """The store is a local folder, which clients cannot reach; files must be sent to the API."""

    code = "presign_unavailable"
    status = 409
    title = "Presigned uploads are not available"


class UploadMissing(EarmarkError):
    """The store has no object at the presigned URL."""

    code = "upload_missing"
    status = 409
    title = "The upload has not arrived"


class OffsetMismatch(EarmarkError):
    """A resumable upload does not go on at this offset; HEAD tells where it does."""

    code = "offset_mismatch"
    status = 409
    title = "The upload goes on elsewhere"


class TusVersionUnsupported(EarmarkError):
    """The request needs `Tus-Resumable`, with the version of the protocol that this server has."""

    code = "tus_version_unsupported"
    status = 412
    title = "This version of tus is not supported"
    supported = "1.0.0"


class QueryNotReady(EarmarkError):
    """The saved query has not succeeded (yet)."""

    code = "query_not_ready"
    status = 409
    title = "The saved query is not ready"


class StemsExpired(EarmarkError):
    """The stems have been deleted after their retention time."""

    code = "stems_expired"
    status = 410
    title = "The stems have expired"


class UploadsExpired(EarmarkError):
    """An upload that the job needs has expired or was deleted."""

    code = "uploads_expired"
    status = 410
    title = "The uploads have expired"


class Unavailable(EarmarkError):
    """Base of errors of services that are temporarily unavailable; clients should retry."""

    status = 503
    title = "Not available"
    retry_after = 5


class QueueFull(Unavailable):
    """Too many jobs are waiting."""

    code = "queue_full"
    title = "The queue is full"
    retry_after = 30


class QueueUnavailable(Unavailable):
    """The Redis server of the queue does not respond."""

    code = "queue_unavailable"
    title = "The queue is not available"


class StoreUnavailable(Unavailable):
    """The object store does not respond, or refuses the call."""

    code = "store_unavailable"
    title = "The object store is not available"


class DiskFull(StoreUnavailable):
    """A disk is full: of the store, of an API for its uploads in flight, or of a worker."""

    code = "disk_full"
    title = "A disk of the server is full"
    errnos = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # the last where `ulimit` bounds the size of files


class StoreRefused(StoreUnavailable):
    """The object store refuses this server: its keys, its rights, or a bucket that does not exist.

    Waiting does not mend it. advice: for the operator, the store's reason and the settings to look at.
    """

    def __init__(self, detail: str, advice: str) -> None:
        super().__init__(detail)
        self.advice = advice


class ModelUnavailable(Unavailable):
    """No worker has this model, or this version of it, and the server is not configured for it."""

    code = "model_unavailable"
    title = "The model is not available"
    retry_after = 30


class Overloaded(Unavailable):
    """A budget that all clients share is used up (`app/budgets/`)."""

    code = "overloaded"
    title = "The server is overloaded"


class RecordTooNew(EarmarkError):
    """The record was written by a newer release, which this one cannot read; upgrade this process."""


class RecordUnreadable(EarmarkError):
    """The record is damaged; it is set aside (`app/records/quarantine.py`)."""

    def __init__(self, detail: str = "The stored record is damaged; DELETE works on it.") -> None:
        super().__init__(detail)


class ClientGone(EarmarkError):
    """The client closed the connection before the response; the response is not delivered."""

    code = "client_gone"
    status = 499
    title = "The client closed the connection"
