"""Check that logs hold no secret: none of those that a deployment was given, and nothing that looks like one."""

import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from pydantic import SecretStr

from app.settings import Settings

# What a client could use: API keys, webhook secrets, tokens of signed URLs, presigned URLs of the store, headers.
LOOKS_LIKE_A_SECRET = re.compile(
    r"emk_[0-7][0-9A-HJKMNP-TV-Z]{25}_[A-Za-z0-9_-]{43}"
    r"|whsec_[A-Za-z0-9+/]{16,}"
    r"|[0-7][0-9A-HJKMNP-TV-Z]{25}\.[0-9a-f]{1,12}\.[A-Za-z0-9_-]{43}"
    r"|token(?:=|%3D)[A-Za-z0-9_-]+"
    r"|X-Amz-(?:Signature|Credential|Security-Token)(?:=|%3D)[A-Za-z0-9]+"
    r"|v1,[A-Za-z0-9+/]{43}="
    r"|(?i:bearer) +[A-Za-z0-9_-]{8,}"
)


def secrets_of(settings: Settings) -> set[str]:
    """Return the secrets in settings: of the store, of URLs and webhooks, and the password of Redis."""
    values = [getattr(settings, name) for name in Settings.model_fields]
    found = {value.get_secret_value() for value in values if isinstance(value, SecretStr)}
    return found | {urlsplit(settings.redis_url).password or ""} - {""}


def require_no_secrets(logs: Mapping[str, str], secrets: Iterable[str]) -> None:
    """Require that no log, by name, holds a secret. Raises AssertionError with the lines, cut before it."""
    known = [re.escape(secret) for secret in secrets]
    for pattern in (LOOKS_LIKE_A_SECRET, *([re.compile("|".join(known))] if known else [])):
        for name, text in logs.items():
            lines = [line for line in text.splitlines() if pattern.search(line)]
            shown = [f"{name}: {pattern.split(line)[0]}..." for line in lines[:5]]
            assert not lines, f"{len(lines)} lines of logs hold a secret:\n" + "\n".join(shown)
