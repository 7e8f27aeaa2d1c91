"""What can go wrong, as types, and how each is told to a client.

EarmarkError                    code                      status
  RequestInvalid                request_invalid           422   a field is wrong; `errors` point at it
    LabelUnknown                label_unknown             422
    NameReserved                name_reserved             422
    FormatUnsupported           format_unsupported        422
    SpanOutside                 span_outside              422
    AudioUndecodable            audio_undecodable         422
    AudioSilent                 audio_silent              422
    AudioTooLong                audio_too_long            422
    AudioTooWide                audio_too_wide            422
    UrlRefused                  url_refused               422
    QueryModelMismatch          query_model_mismatch      422
  NotFound                      not_found                 404
  UploadTooLarge                upload_too_large          413
  NotMultipart                  not_multipart             415
  MediaTypeUnsupported          media_type_unsupported    415
  RangeNotSatisfiable           range_not_satisfiable     416
  AlreadyOver                   already_over              409
  AudioInUse                    audio_in_use              409
  PresignUnavailable            presign_unavailable       409
  UploadMissing                 upload_missing            409
  QueryNotReady                 query_not_ready           409
  StemsExpired                  stems_expired             410
  UploadTimeout                 upload_timeout            408
  Unavailable                                             503   with Retry-After
    QueueFull                   queue_full
    QueueUnavailable            queue_unavailable
    StoreUnavailable            store_unavailable
    ModelUnavailable            model_unavailable
  RecordTooNew                  internal                  500   written by a newer release
  ClientGone                    client_gone               499   nobody reads the answer

The words of a job's or a target's own `error` are the same; `timed_out`, `out_of_memory`, `worker_lost` and
`internal` appear only there. Answers are made in `problems.py`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class FieldError:
    """One wrong field: a JSON pointer (RFC 6901) into the body, and what is wrong there."""

    pointer: str
    detail: str


class EarmarkError(Exception):
    """Base of all errors that a client may be told; `detail` is a sentence without paths, keys or internals."""

    code = "internal"
    status = 500
    title = "Internal error"
    retry_after: int | None = None

    def __init__(self, detail: str = "", errors: list[FieldError] | None = None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.errors = errors or []


class RequestInvalid(EarmarkError):
    """The request is well-formed and says something that cannot be done."""

    code = "request_invalid"
    status = 422
    title = "The request is not valid"


class LabelUnknown(RequestInvalid):
    """No class has this name, or no model can be asked for it."""

    code = "label_unknown"
    title = "No such label"


class NameReserved(RequestInvalid):
    """`residual` names what is left of the mixture."""

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
    """The bytes are no audio that we read."""

    code = "audio_undecodable"
    title = "The file is not audio that can be decoded"


class AudioSilent(RequestInvalid):
    """There is nothing to hear in an example."""

    code = "audio_silent"
    title = "The audio is silent"


class AudioTooLong(RequestInvalid):
    """The recording lasts longer than is allowed."""

    code = "audio_too_long"
    title = "The audio is too long"


class AudioTooWide(RequestInvalid):
    """The recording has more channels, or another rate, than is allowed."""

    code = "audio_too_wide"
    title = "The audio has too many channels"


class UrlRefused(RequestInvalid):
    """The URL may not be asked, or gives nothing to fetch; told without a word on what lies inside."""

    code = "url_refused"
    title = "The URL is refused"


class QueryModelMismatch(RequestInvalid):
    """The embedding was made by another model; those of different models cannot be exchanged."""

    code = "query_model_mismatch"
    title = "The query is another model's"


class NotFound(EarmarkError):
    """No such thing, or not this client's."""

    code = "not_found"
    status = 404
    title = "Not found"


class Unauthorized(EarmarkError):
    """No key, or none that opens this; `challenge` is the answer's `WWW-Authenticate` (RFC 6750, section 3)."""

    code = "unauthorized"
    status = 401
    title = "A key is needed"

    def __init__(self, detail: str, error: str = "") -> None:
        super().__init__(detail)
        self.challenge = 'Bearer realm="earmark"' + (f', error="{error}"' if error else "")


class RateLimited(EarmarkError):
    """The caller asks too often."""

    code = "rate_limited"
    status = 429
    title = "Too many requests"

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class QuotaExceeded(RateLimited):
    """The caller's audio seconds of today do not suffice."""

    code = "quota_exceeded"
    title = "The day's quota is used up"


class IdempotencyInProgress(EarmarkError):
    """The first request with this `Idempotency-Key` has no answer yet."""

    code = "idempotency_in_progress"
    status = 409
    title = "The same request is being answered"


class IdempotencyMismatch(RequestInvalid):
    """The `Idempotency-Key` belongs to a request that was another one."""

    code = "idempotency_mismatch"
    title = "The request is not the one that the key was first sent with"


class UploadTooLarge(EarmarkError):
    """A file, or the whole body, is larger than `limit` bytes."""

    code = "upload_too_large"
    status = 413
    title = "The upload is too large"

    def __init__(self, limit: int, subject: str = "A file") -> None:
        super().__init__(f"{subject} may have {limit} bytes.")


class UploadTimeout(EarmarkError):
    """The body came too slowly."""

    code = "upload_timeout"
    status = 408
    title = "The upload took too long"


class NotMultipart(EarmarkError):
    """The body should be multipart/form-data and is not."""

    code = "not_multipart"
    status = 415
    title = "The body is not multipart/form-data"


class MediaTypeUnsupported(EarmarkError):
    """The body's content type is none that this call reads."""

    code = "media_type_unsupported"
    status = 415
    title = "The content type is not supported"


class RangeNotSatisfiable(EarmarkError):
    """The range lies behind the last byte; `size` is how many there are."""

    code = "range_not_satisfiable"
    status = 416
    title = "The range cannot be satisfied"

    def __init__(self, size: int) -> None:
        super().__init__(f"The content has {size} bytes.")
        self.size = size


class AlreadyFinished(EarmarkError):
    """The job has ended, so it cannot be canceled."""

    code = "already_over"
    status = 409
    title = "The job is already over"


class AudioInUse(EarmarkError):
    """A job that waits or runs needs the audio."""

    code = "audio_in_use"
    status = 409
    title = "The audio is in use"


class PresignUnavailable(EarmarkError):
    """The store is a folder, which clients cannot reach: send files to the API."""

    code = "presign_unavailable"
    status = 409
    title = "The store takes no direct uploads"


class UploadMissing(EarmarkError):
    """Nothing has arrived in the store at the signed address."""

    code = "upload_missing"
    status = 409
    title = "The upload has not arrived"


class QueryNotReady(EarmarkError):
    """The saved query has not succeeded, yet or at all."""

    code = "query_not_ready"
    status = 409
    title = "The saved query is not ready"


class StemsExpired(EarmarkError):
    """The stems were kept as long as promised and are gone."""

    code = "stems_expired"
    status = 410
    title = "The stems have expired"


class Unavailable(EarmarkError):
    """Something we stand on does not answer; try again."""

    status = 503
    title = "Not available"
    retry_after = 5


class QueueFull(Unavailable):
    """Too many jobs wait already."""

    code = "queue_full"
    title = "The queue is full"
    retry_after = 30


class QueueUnavailable(Unavailable):
    """The queue's server does not answer."""

    code = "queue_unavailable"
    title = "The queue is not available"


class StoreUnavailable(Unavailable):
    """The object store does not answer, or refuses."""

    code = "store_unavailable"
    title = "The object store is not available"


class ModelUnavailable(Unavailable):
    """No worker ever announced this model."""

    code = "model_unavailable"
    title = "No worker has announced this model"
    retry_after = 30


class RecordTooNew(EarmarkError):
    """The record was written by a newer release, which this one cannot read; roll forward, or wait for it to."""


class ClientGone(EarmarkError):
    """The client hung up before it was answered; nobody reads this answer."""

    code = "client_gone"
    status = 499
    title = "The client closed the connection"
