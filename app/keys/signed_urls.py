"""Signed URLs: each gives read access to one resource for a time, for clients that cannot send `Authorization`, such as
media elements and EventSource.

`?token=` holds the key's id, the time of expiry, and their HMAC-SHA256 together with the path. Expiry is rounded to
whole periods, so that a URL stays the same from poll to poll and caches and ETags remain useful.
"""

import base64
import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from redis import Redis

from app.records import ids
from app.redis_client import BackgroundRefresh, server_clock
from app.settings import Settings

log = logging.getLogger("earmark.keys")

_SECRET_KEY = "earmark:url-secret"  # noqa: S105 (the name of a Redis key)
_TOKEN = re.compile(r"([0-7][0-9A-HJKMNP-TV-Z]{25})\.([0-9a-f]{1,12})\.([A-Za-z0-9_-]{43})")
_SIGNED_PATH = re.compile(r'/v1/[^"?\s]+\?token=[A-Za-z0-9._-]+')

Sign = Callable[[str], str]


class UrlSigner:
    """Signs and verifies URLs; all processes of a deployment share one secret.

    Without one in the settings it is in Redis, and every process looks there again every `refresh_seconds`: where Redis
    has lost it, a process that has it writes it back; where another one was written, that one is used from then on.

    `clock` returns seconds since 1970; by default, the Redis server's.
    """

    def __init__(
        self,
        redis: Redis,
        settings: Settings,
        clock: Callable[[], float] | None = None,
        refresh_seconds: float = 10.0,
    ) -> None:
        self.clock = clock or server_clock(redis).now
        self.is_ready = False  # whether signing needs no call to Redis
        self._redis = redis
        self._period = settings.url_seconds
        self._secret_changes = 0
        self._is_configured = settings.url_secret is not None
        self._secret = settings.url_secret.get_secret_value().encode() if settings.url_secret else b""
        self._refresh = BackgroundRefresh(self._share_secret, refresh_seconds, "secret of URLs")

    @property
    def edition(self) -> tuple[float, int]:
        """Edition of newly signed URLs, by period and secret: a path has the same URL while it is the same."""
        self._get_secret()
        return self.clock() // self._period, self._secret_changes

    def prepare(self) -> None:
        """Load the secret and set the clock, so that signing needs no call to Redis. Raises redis-py's errors."""
        self._get_secret()
        self.clock()
        self.is_ready = True

    def close(self) -> None:
        """Use the client no longer in the background."""
        self._refresh.close()

    def signer_for(self, owner: str) -> Sign:
        """Return a function that signs paths for this key; without an owner it returns them unchanged."""
        return lambda path: self.sign(path, owner) if owner else path

    def sign(self, path: str, key_id: str) -> str:
        """Return a path (percent-encoded, as in responses) with a token that is valid for one to two periods."""
        expiry = format(int((self.clock() // self._period + 2) * self._period), "x")
        return f"{path}?token={key_id.removeprefix(f'{ids.KEY}_')}.{expiry}.{self._mac(key_id, expiry, unquote(path))}"

    def renew_all(self, text: str, key_id: str) -> str:
        """Return a text with new tokens for the paths in it that were signed for this key; other text is unchanged."""

        def renew(match: re.Match[str]) -> str:
            path, token = match[0].split("?token=")
            is_genuine = self._signing_key(token, unquote(path)) == key_id
            return self.sign(path, key_id) if is_genuine else match[0]

        return _SIGNED_PATH.sub(renew, text)

    def verify(self, token: str, path: str) -> str | None:
        """Return the id of the key that signed this path (decoded); None if the token is invalid or expired."""
        key_id = self._signing_key(token, path)
        return key_id if key_id is not None and int(token.split(".")[1], 16) > self.clock() else None

    def _signing_key(self, token: str, path: str) -> str | None:
        """Return the id of the key that a path was signed for, expired or not; None if the token is invalid."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            return None
        key_id = f"{ids.KEY}_{match[1]}"
        return key_id if hmac.compare_digest(match[3], self._mac(key_id, match[2], path)) else None

    def _mac(self, key_id: str, expiry: str, path: str) -> str:
        mac = hmac.digest(self._get_secret(), f"{key_id}\n{expiry}\n{path}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()

    def _get_secret(self) -> bytes:
        if not self._secret:
            self._share_secret()
            self._refresh.postpone()
        elif not self._is_configured:
            self._refresh.start_if_due()
        return self._secret

    def _share_secret(self) -> None:
        """Use the secret in Redis; where there is none, write this process's, of several the first one that arrives."""
        own = self._secret
        stored: Any = self._redis.get(_SECRET_KEY)  # a full server allows this alone
        if stored is None:
            candidate = own or secrets.token_bytes(32)
            stored = self._redis.set(_SECRET_KEY, candidate, nx=True, get=True) or candidate
            if stored == own:
                log.warning("Redis had lost the secret of signed URLs; it is written back")
        self._secret = stored
        if own and stored != own:
            log.warning("another secret signs URLs from now on; those signed before are invalid")
            self._secret_changes += 1  # not before: URLs of the previous secret must not be of the new edition
