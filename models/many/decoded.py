"""Decoding of many recordings ahead of what is done with them."""

import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

from models.errors import MediaError
from models.many.inputs import Input
from models.media import ANY_LENGTH
from models.media.serving import DecodingChild
from models.own_recordings import OwnRecording, end_by_exception, printable

# Decoded recordings that wait: enough for batches of short ones; of long ones, a second is held while one is used.
_MOST_BYTES = 1 << 28
_MOST = 64


class DecodedAhead:
    """Recordings, decoded in order by a child process while others are used. A context manager.

    near: the folder whose disk holds the decoded recordings.
    """

    def __init__(self, inputs: Sequence[Input], near: Path, track: int | None = None) -> None:
        self._inputs = inputs
        self._near = near
        self._track = track
        self._ready: SimpleQueue[tuple[Input, OwnRecording | Exception]] = SimpleQueue()
        self._room = threading.Condition()
        self._held: dict[Path, int] = {}
        self._ended = False

    def __iter__(self) -> Iterator[tuple[Input, OwnRecording | Exception]]:
        """Yield each recording, or the error that it has: MediaError, or OSError."""
        for _ in self._inputs:
            yield self._ready.get()

    def release(self, recording: OwnRecording) -> None:
        """Delete a decoded recording that is no longer used."""
        recording.path.unlink(missing_ok=True)
        with self._room:
            del self._held[recording.path]
            self._room.notify()

    @contextmanager
    def running(self) -> Iterator["DecodedAhead"]:
        """Context in which recordings are decoded. Their folder is removed however it ends, by SIGTERM or SIGHUP."""
        with (
            end_by_exception(),
            tempfile.TemporaryDirectory(prefix=".decoded-", dir=self._near) as folder,
            DecodingChild(ANY_LENGTH) as child,
        ):
            thread = threading.Thread(target=self._decode_all, args=(Path(folder), child), daemon=True)
            thread.start()
            try:
                yield self
            finally:
                with self._room:
                    self._ended = True
                    self._room.notify()
                child.kill()
                thread.join()

    def _decode_all(self, folder: Path, child: DecodingChild) -> None:
        for number, given in enumerate(self._inputs):
            with self._room:
                self._room.wait_for(self._has_room)
                if self._ended:
                    return
            target = folder / f"{number}.wav"
            try:
                info = child.decode(given.path, target, self._track)
            except MediaError as error:
                error.detail = f"{printable(given.path.name)}: {error.detail}"
                self._ready.put((given, error))
            except Exception as error:  # whoever waits for it raises it
                self._ready.put((given, error))
            else:
                with self._room:
                    self._held[target] = target.stat().st_size if target.exists() else 0
                self._ready.put((given, OwnRecording(target, info)))

    def _has_room(self) -> bool:
        return self._ended or (len(self._held) < _MOST and (sum(self._held.values()) < _MOST_BYTES))
