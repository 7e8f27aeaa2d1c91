"""Decoding of many files to WAV by one child process: a process for each file takes longer to start than a short file
to decode. A file that crashes the child is that file's error; the next one gets a new child."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from models.compute.threads import ONE_THREAD
from models.media.decoding import ROOT, read_report, report
from models.media.limits import Limits, MediaInfo


class DecodingChild:
    """A child process that decodes one file after the other, started when it is needed. A context manager."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, path: Path, target: Path, track: int | None = None) -> MediaInfo:
        """Decode as `models.media.decode` does. Raises the same; AudioUndecodable also for a crash."""
        process = self._process = self._process or self._start()
        orders, answers = process.stdin, process.stdout
        if orders is None or answers is None:
            raise OSError("the decoder has no pipes")
        order = {"source": str(path.absolute()), "target": str(target.absolute()), "track": track}
        try:
            orders.write(json.dumps(order).encode() + b"\n")
            orders.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = b""
        try:
            if line:
                if b'"machine"' in line[:10]:
                    return read_report(2, b"", json.loads(line)["machine"].encode())
                return read_report(0, line, b"")
            self._process = None
            orders.close()
            answers.close()
            return read_report(process.wait(), b"", b"")
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
        return subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "models.media.serving", json.dumps(dataclasses.asdict(self._limits))],
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        """End the child, which another thread may wait for."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End the child."""
        self.kill()
        if self._process is not None:
            process, self._process = self._process, None
            process.communicate()

    def __enter__(self) -> DecodingChild:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def main() -> int:
    """Answer each line of the input, {"source", "target", "track"}, with a line as `models.media.decoding.report`
    returns it, or {"machine": message} for an error of this machine."""
    limits = Limits(**json.loads(sys.argv[1]))
    try:
        for line in sys.stdin:
            order = json.loads(line)
            try:
                answer = report(Path(order["source"]), Path(order["target"]), limits, order["track"])
            except OSError as error:
                answer = {"machine": str(error.strerror)}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
