"""Whether a webhook can be promised, and what it is signed with."""

from app.dependencies import Dependencies
from app.errors import NotFound, RequestInvalid, UrlRefused
from app.http.problems import field_error
from app.job_api.schemas import WebhookSent
from app.jobs.lifecycle import Webhook
from app.keys.repository import KeyRepository


def create_webhook(deps: Dependencies, sent: WebhookSent | None) -> Webhook | None:
    """What the job's record holds of it. Raises `UrlRefused`, and `RequestInvalid` where nothing could sign it."""
    if sent is None:
        return None
    try:
        deps.outbound.check(sent.url)
    except UrlRefused as error:
        raise UrlRefused(error.detail, [field_error(error.detail, "webhook", "url")]) from error
    if signing_secret(deps, deps.caller.key_id) is None:
        detail = "This service has no secret to sign webhooks with (EARMARK_WEBHOOK_SECRET)."
        raise RequestInvalid(detail, [field_error(detail, "webhook")])
    return Webhook(url=sent.url, events=list(dict.fromkeys(sent.events)))


def signing_secret(deps: Dependencies, owner: str) -> str | None:
    """The secret of the key that made a job, or the deployment's where keys are switched off; None if there is none."""
    if not owner:
        secret = deps.settings.webhook_secret
        return secret.get_secret_value() if secret else None
    try:
        return KeyRepository(deps.redis).get(owner).webhook_secret
    except NotFound:
        return None
