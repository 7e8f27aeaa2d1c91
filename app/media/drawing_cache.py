"""Cache of spectrograms and waveforms in the memory of one process; those that were used last are kept."""

from collections import OrderedDict


class DrawingCache:
    """Bytes by key, at most `max_bytes` of them. Not thread-safe: for the event loop of the server only."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._contents: OrderedDict[str, bytes] = OrderedDict()  # the least recently used first

    def get(self, key: str) -> bytes | None:
        """Return what was kept under a key, if it still is."""
        content = self._contents.get(key)
        if content is not None:
            self._contents.move_to_end(key)
        return content

    def put(self, key: str, content: bytes) -> None:
        """Keep bytes under a key, in place of those that were used least recently."""
        self._bytes += len(content) - len(self._contents.pop(key, b""))
        self._contents[key] = content
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._contents.popitem(last=False)[1])
