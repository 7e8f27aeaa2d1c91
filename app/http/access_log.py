"""The access line of a request: who sent it, from where, what it made, how many bytes and seconds it took, its status.

Code that learns one of these notes it while it handles the request. The entry is a context variable, so threads that
work for the request share it.
"""

import logging
from contextvars import ContextVar
from dataclasses import dataclass, field
from urllib.parse import quote

from starlette.types import Message, Receive, Scope, Send

log = logging.getLogger("earmark.access")

_MOST_MADE = 64  # ids on one line: a form may carry dozens of examples
_MAX_ADDRESS = 64  # characters: a proxy may pass on what is no address


@dataclass
class AccessEntry:
    """What is known of one request. Bytes are those of its body and of the response's."""

    client: str  # address
    key_id: str = ""
    refused_key: str = ""  # id in a key, or in a signed URL, that was refused
    made: list[str] = field(default_factory=list)
    bytes_in: int = 0
    bytes_out: int = 0

    def count_received(self, receive: Receive) -> Receive:
        """Return the same channel, which counts the bytes of the body."""

        async def counted() -> Message:
            message = await receive()
            self.bytes_in += len(message.get("body", b""))
            return message

        return counted

    def count_sent(self, send: Send) -> Send:
        """Return the same channel, which counts the bytes of the response's body."""

        async def counted(message: Message) -> None:
            self.bytes_out += len(message.get("body", b""))
            await send(message)

        return counted

    def write(self, scope: Scope, method: str, status: int, seconds: float, route: str) -> None:
        """Write the line. The path is without its query string, which may hold a token, and quoted: one line."""
        fields: dict[str, object] = {"status": status, "seconds": round(seconds, 4), "route": route}
        fields |= {"client": self.client, "bytes_in": self.bytes_in, "bytes_out": self.bytes_out}
        fields |= {"key": self.key_id} if self.key_id else {}
        fields |= {"refused_key": self.refused_key} if self.refused_key else {}
        fields |= {"made": self.made} if self.made else {}
        log.info("%s %s %d", method, quote(scope["path"]), status, extra={"fields": fields})


_entry: ContextVar[AccessEntry | None] = ContextVar("earmark_access_entry", default=None)


def begin(scope: Scope) -> AccessEntry:
    """Return the entry of a request that begins."""
    entry = AccessEntry(client_address(scope))
    _entry.set(entry)
    return entry


def client_address(scope: Scope) -> str:
    """Return the address of a request's sender; uvicorn reads it from the headers of trusted proxies."""
    client = scope.get("client")
    return client[0][:_MAX_ADDRESS] if client else ""


def note_key(key_id: str) -> None:
    """Note whose request it is."""
    if (entry := _entry.get()) is not None:
        entry.key_id = key_id


def note_refused_key(key_id: str) -> None:
    """Note the id in a key or a signed URL that was refused."""
    if (entry := _entry.get()) is not None:
        entry.refused_key = key_id


def note_made(some_id: str) -> None:
    """Note the id of an upload or a job that the request has made."""
    if (entry := _entry.get()) is not None and len(entry.made) < _MOST_MADE:
        entry.made.append(some_id)
