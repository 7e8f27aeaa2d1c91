"""Ids: a prefix and a ULID, which sorts by its time of creation (github.com/ulid/spec)."""

import re
import secrets
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
AUDIO = "aud"
SEPARATION = "sep"
DETECTION = "det"
QUERY = "qry"
KEY = "key"


def new_id(prefix: str, seconds: float | None = None) -> str:
    """Return a new id: `prefix_` and 26 characters that hold 48 bits of milliseconds and 80 random bits.

    seconds: when it is created, since 1970; by default, by this machine's clock.
    """
    milliseconds = int((time.time() if seconds is None else seconds) * 1000)
    return _format(prefix, milliseconds << 80 | secrets.randbits(80))


def _format(prefix: str, number: int) -> str:
    return prefix + "_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def first_id(prefix: str, seconds: float) -> str:
    """Return the id that sorts before all ids created from then on; `seconds` since 1970."""
    return _format(prefix, max(0, int(seconds * 1000)) << 80)


def timestamp(some_id: str) -> float:
    """Return when an id was created, in seconds since 1970."""
    number = 0
    for letter in some_id.rpartition("_")[2][:10]:  # 48 bits of milliseconds
        number = number << 5 | _ALPHABET.index(letter)
    return number / 1000


def pattern(prefix: str) -> str:
    """Return a regular expression that matches ids with this prefix."""
    return rf"^{prefix}_[0-7][0-9A-HJKMNP-TV-Z]{{25}}$"


def is_id(text: str, prefix: str) -> bool:
    """Whether a text is an id with this prefix; no other text may become part of a key in Redis or the store."""
    return re.fullmatch(pattern(prefix), text) is not None
