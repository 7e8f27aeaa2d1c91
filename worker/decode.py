"""Untrusted media to 32-bit float WAV, in a child process that may crash, hang or be killed
without harm to this one."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from app.media import sandbox
from models.errors import AudioTooLong, AudioTooWide, AudioUndecodable, Cancelled, MediaError
from models.media import Limits, MediaInfo

logger = logging.getLogger(__name__)

# FFmpeg's libraries and numpy take a third of this; a decoder works block by block.
_MEMORY_BYTES = 1 << 30
_HEADER_BYTES = 4096
# Two hours of stereo decode in a minute; a slow codec on a slow machine still passes.
_SECONDS = 600.0

_ERRORS: dict[str, type[MediaError]] = {error.code: error for error in (AudioUndecodable, AudioTooLong, AudioTooWide)}


class DecodeTimedOut(MediaError):
    """Decoding took longer than is allowed."""

    code = "timed_out"


def decode(
    source: Path,
    target: Path,
    limits: Limits | None = None,
    *,
    seconds: float = _SECONDS,
    cancelled: Callable[[], bool] | None = None,
) -> MediaInfo:
    """Decodes the media file `source` to `target`, a WAV of 32-bit floats at its own rate and channels.

    Returns what it is, with its exact number of frames. `cancelled` is asked 20 times a second and kills the child.
    Raises AudioUndecodable (a crash of the decoder too), AudioTooLong, AudioTooWide, DecodeTimedOut, Cancelled; then
    there is no target. OSError where this machine is at fault: no source, a full disk.
    """
    limits = limits or Limits()
    source, target = source.resolve(strict=True), target.absolute()
    private = Path(tempfile.mkdtemp(prefix="decode-", dir=target.parent))
    try:
        decoded = private / "decoded.wav"
        words = ("decode", str(source), str(decoded), "--limits", json.dumps(dataclasses.asdict(limits)))
        command = sandbox.python_command("models.media", *words)
        outcome = sandbox.run(command, _allowance(limits, seconds), folder=private, cancelled=cancelled)
        info = _answer(outcome, seconds)
        decoded.replace(target)
        return info
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _allowance(limits: Limits, seconds: float) -> sandbox.SandboxLimits:
    # Somewhat more than the decoder's own limits, which say better what is wrong.
    return sandbox.SandboxLimits(
        seconds=seconds,
        cpu_seconds=int(seconds) + 1,
        memory_bytes=_MEMORY_BYTES,
        file_bytes=int(limits.samples) * 4 + _HEADER_BYTES,
    )


def _answer(outcome: sandbox.Outcome, seconds: float) -> MediaInfo:
    if outcome.status == "cancelled":
        raise Cancelled("decoding was cancelled")
    if outcome.status == "timed_out":
        raise DecodeTimedOut(f"decoding took longer than {seconds:g} s")
    if outcome.status == "crashed" and outcome.signal is not None:
        raise AudioUndecodable(f"the decoder crashed on this file ({outcome.signal.name})")
    if outcome.status == "flooded":
        raise AudioUndecodable("the decoder failed on this file")
    if outcome.returncode == 2:
        # Not the recording's fault: the disk's, or ours.
        raise OSError(f"the decoder could not work: {outcome.errors.decode(errors='replace').strip()[-500:]}")
    try:
        answer = json.loads(outcome.output)
        if "ok" in answer:
            return MediaInfo(**answer["ok"])
        raise _ERRORS.get(answer["error"]["code"], AudioUndecodable)(answer["error"]["detail"])
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("decoder gave no answer: %s", outcome.errors.decode(errors="replace").strip()[-2000:])
        raise AudioUndecodable("the decoder failed on this file") from error
