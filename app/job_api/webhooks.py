"""Webhooks of jobs: validation at creation, and the secret that signs them."""

from app.dependencies import Dependencies
from app.errors import NotFound, RequestInvalid, UrlRefused
from app.http.problems import field_error
from app.job_api.schemas import WebhookSent
from app.jobs.lifecycle import Webhook
from app.keys.repository import KeyRepository


def create_webhook(deps: Dependencies, webhook: WebhookSent | None) -> Webhook | None:
    """Return what the job's record holds of a requested webhook.

    Raises `UrlRefused`, and `RequestInvalid` if there is no secret to sign it with.
    """
    if webhook is None:
        return None
    try:
        deps.outbound.check(webhook.url)
    except UrlRefused as error:
        raise UrlRefused(error.detail, [field_error(error.detail, "webhook", "url")]) from error
    if signing_secret(deps, deps.caller.key_id) is None:
        detail = "This service has no secret to sign webhooks with (EARMARK_WEBHOOK_SECRET)."
        raise RequestInvalid(detail, [field_error(detail, "webhook")])
    return Webhook(url=webhook.url, events=list(dict.fromkeys(webhook.events)))


def signing_secret(deps: Dependencies, owner: str) -> str | None:
    """Return the secret of the key that owns a job, or the deployment's if authentication is off; None without one."""
    if not owner:
        secret = deps.settings.webhook_secret
        return secret.get_secret_value() if secret else None
    try:
        return KeyRepository(deps.redis).get(owner).webhook_secret
    except NotFound:
        return None
