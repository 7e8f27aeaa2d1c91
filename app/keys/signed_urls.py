"""Addresses that open one thing to whoever has them, for a while: for media elements and EventSource, which send no
`Authorization`.

`?token=` names the key and the end of its time, and signs both together with the path (HMAC-SHA256). Ends are rounded
to whole periods, so that an address stays the same from poll to poll, and caches and ETags keep their sense.
"""

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from redis import Redis

from app.records import ids
from app.settings import Settings

_SECRET = "earmark:url-secret"  # noqa: S105 (the name of a Redis key)
_TOKEN = re.compile(r"([0-7][0-9A-HJKMNP-TV-Z]{25})\.([0-9a-f]{1,12})\.([A-Za-z0-9_-]{43})")
_SIGNED = re.compile(r'/v1/[^"?\s]+\?token=[A-Za-z0-9._-]+')

Sign = Callable[[str], str]


class UrlSigner:
    """Signs and checks; one secret for all processes of a deployment."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._period = settings.url_seconds
        self._secret = settings.url_secret.get_secret_value().encode() if settings.url_secret else b""

    @property
    def valid_until(self) -> float:
        """Until when, in seconds since 1970, what is signed stays the same."""
        return (time.time() // self._period + 1) * self._period

    def load_secret(self) -> None:
        """Fetch the secret, once; signing would do it. Raises redis-py's errors."""
        self._shared_secret()

    @property
    def has_secret(self) -> bool:
        """Whether signing asks nobody."""
        return bool(self._secret)

    def signer_for(self, owner: str) -> Sign:
        """Signs paths for what belongs to this key; what belongs to nobody is open already and stays as it is."""
        return lambda path: self.sign(path, owner) if owner else path

    def sign(self, path: str, key_id: str) -> str:
        """A path (percent-encoded, as in an answer) with a token that opens it for one to two periods."""
        end = format(int((time.time() // self._period + 2) * self._period), "x")
        return f"{path}?token={key_id.removeprefix(f'{ids.KEY}_')}.{end}.{self._mac(key_id, end, unquote(path))}"

    def renew_all(self, text: str, key_id: str) -> str:
        """A text in which every path that was signed for this key gets a new token; what others wrote stays."""

        def renewed(found: re.Match[str]) -> str:
            path, token = found[0].split("?token=")
            genuine = self._signer(token, unquote(path)) == key_id
            return self.sign(path, key_id) if genuine else found[0]

        return _SIGNED.sub(renewed, text)

    def verify(self, token: str, path: str) -> str | None:
        """The id of the key that a token stands for on this path (decoded), now; None if for none."""
        key_id = self._signer(token, path)
        return key_id if key_id is not None and int(token.split(".")[1], 16) > time.time() else None

    def _signer(self, token: str, path: str) -> str | None:
        """The id of the key that a path was signed for, if it was, whenever that was."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            return None
        key_id = f"{ids.KEY}_{match[1]}"
        return key_id if hmac.compare_digest(match[3], self._mac(key_id, match[2], path)) else None

    def _mac(self, key_id: str, end: str, path: str) -> str:
        signed = hmac.digest(self._shared_secret(), f"{key_id}\n{end}\n{path}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(signed).rstrip(b"=").decode()

    def _shared_secret(self) -> bytes:
        if not self._secret:
            made = secrets.token_bytes(32)
            kept: Any = self._redis.set(_SECRET, made, nx=True, get=True)
            self._secret = kept or made
        return self._secret
