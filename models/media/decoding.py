"""Decoding of whole files to WAV: here, as a program, or by that program in a child process that may crash."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.compute.threads import ONE_THREAD
from models.encoding import WavWriter
from models.errors import AudioTooLong, AudioTooWide, AudioUndecodable, MediaError
from models.media.limits import Limits, MediaInfo
from models.media.reader import AudioReader, open_audio, open_plain

_ERRORS: dict[str, type[MediaError]] = {error.code: error for error in (AudioUndecodable, AudioTooLong, AudioTooWide)}
ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = "python -m models.media"
FAILED = "the decoder failed on this file"


def decode(path: str | Path, target: str | Path, limits: Limits | None = None, track: int | None = None) -> MediaInfo:
    """Decode a track of a media file to a WAV of 32-bit floats (RF64 above 4 GiB) at its own rate and channels.

    Returns its properties with the exact number of frames. Raises as `open_audio`; a failure leaves no target.
    """
    with open_audio(path, limits, track) as reader:
        return _write(reader, Path(target), lambda: None)


def convert_plain(
    path: Path, target: Path, limits: Limits, track: int | None = None, check: Callable[[], object] = lambda: None
) -> MediaInfo | None:
    """Do the same with a file that needs no decoder (`open_plain`), so that it needs no child process either, however
    little it is trusted. Returns None for any other file.

    `check()` is called before each block. Raises as `decode`, and what `check` raises.
    """
    plain = open_plain(path, track)
    if plain is None:
        return None
    with open_audio(path, limits, track, plain) as reader:
        return _write(reader, target, check)


def _write(reader: AudioReader, target: Path, check: Callable[[], object]) -> MediaInfo:
    with WavWriter(target, reader.rate, reader.channels, 32, reader.info.mask) as writer:
        for block in reader:
            check()
            writer.write(block)
    return reader.info


def decode_in_child(path: Path, target: Path, limits: Limits, track: int | None = None) -> MediaInfo:
    """Do the same in a child process, so that a file that crashes FFmpeg is an error like any other.

    Raises as `decode`: AudioUndecodable also for a crash; OSError for an error of this machine.
    """
    program = [sys.executable, "-m", "models.media", *arguments(path.absolute(), target.absolute(), limits, track)]
    paths = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    done = subprocess.run(  # noqa: S603 - a list of words, no shell
        program,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    try:
        return read_report(done.returncode, done.stdout, done.stderr)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def arguments(path: Path, target: Path, limits: Limits, track: int | None) -> list[str]:
    """Return the arguments of the program `python -m models.media`."""
    chosen = [] if track is None else ["--track", str(track)]
    return ["decode", str(path), str(target), "--limits", json.dumps(dataclasses.asdict(limits)), *chosen]


def read_report(returncode: int, output: bytes, errors: bytes) -> MediaInfo:
    """Return what the program has printed, or raise the error that it or its end stands for: a MediaError of the file,
    or OSError for an error of this machine. `returncode` is negative for a signal."""
    if returncode < 0:
        raise AudioUndecodable(f"the decoder crashed on this file ({signal.Signals(-returncode).name})")
    if returncode == 2:
        # This machine or a defect is the cause, not the file.
        told = errors.decode(errors="replace").strip()[-500:].removeprefix(f"{_PROGRAM}: ")
        raise OSError(f"the decoder failed: {told}")
    try:
        report = json.loads(output)
        if "ok" in report:
            return MediaInfo(**{**report["ok"], "warnings": tuple(report["ok"]["warnings"])})
        error, detail = _ERRORS[report["error"]["code"]], report["error"]["detail"]
    except (ValueError, KeyError, TypeError) as error:
        raise AudioUndecodable(FAILED) from error
    raise error(detail)


def report(source: Path, target: Path, limits: Limits, track: int | None) -> dict[str, Any]:
    """Decode, and return {"ok": {...}} or {"error": {"code", "detail"}}. Raises OSError for an error of this
    machine."""
    try:
        return {"ok": dataclasses.asdict(decode(source, target, limits, track))}
    except MediaError as error:
        return {"error": {"code": error.code, "detail": error.detail}}
    except (MemoryError, OSError) as error:
        if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
            return {"error": {"code": AudioUndecodable.code, "detail": "decoding needs more memory than allowed"}}
        if error.errno != errno.EFBIG:
            raise
        return {"error": {"code": AudioTooLong.code, "detail": "the decoded recording is larger than allowed"}}


def main(words: list[str] | None = None) -> int:
    """Run `python -m models.media decode IN OUT [--limits JSON] [--track N]`: print one line of JSON, {"ok": {...}} or
    {"error": {"code", "detail"}}, and return 0 or 1."""
    parser = argparse.ArgumentParser(prog=_PROGRAM, description="Decode a media file to float WAV.")
    parser.add_argument("command", choices=["decode"])
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument("target", type=Path, metavar="OUT")
    parser.add_argument("--limits", default="{}", help="JSON object: seconds, channels, lowest_rate, ...")
    parser.add_argument("--track", type=int, help="audio track, counted from 1; default: the first that can be read")
    given = parser.parse_args(words)
    try:
        limits = Limits(**json.loads(given.limits))
    except (TypeError, ValueError) as error:
        parser.error(f"--limits: {error}")
    try:
        answer = report(given.source, given.target, limits, given.track)
    except OSError as error:
        sys.stderr.write(f"{_PROGRAM}: {error.strerror}\n")
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0 if "ok" in answer else 1
