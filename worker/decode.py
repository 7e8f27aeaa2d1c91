"""Decoding of untrusted media in a sandbox: a child process that may crash, hang or be killed without harm to this
one."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from app.errors import DiskFull
from app.media import sandbox
from models.errors import AudioTooLong, AudioTooWide, AudioUndecodable, Cancelled, MediaError
from models.media import Limits, MediaInfo

logger = logging.getLogger(__name__)

# FFmpeg's libraries and numpy take a third of this; a decoder works block by block.
MEMORY_BYTES = 1 << 30
HEADER_BYTES = 4096
# Two hours of stereo decode in a minute; a slow codec on a slow machine still passes.
SECONDS = 600

_ERRORS: dict[str, type[MediaError]] = {error.code: error for error in (AudioUndecodable, AudioTooLong, AudioTooWide)}


class DecodeTimedOut(MediaError):
    """Decoding took longer than the limit."""

    code = "timed_out"


def decode(
    source: Path,
    target: Path,
    limits: Limits | None = None,
    *,
    sandbox_limits: sandbox.SandboxLimits | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> MediaInfo:
    """Decode the media file `source` to `target`, a WAV of 32-bit floats at its own rate and channels.

    Return its description with the exact number of frames. limits: of the audio; sandbox_limits: of the child process,
    by default those that fit `limits`. `cancelled` is called 20 times a second; the child is killed when it is true.
    Raises AudioUndecodable (also when the decoder crashes), AudioTooLong, AudioTooWide, DecodeTimedOut, Cancelled, all
    without a target left behind; OSError for an error of this machine: no source, a full disk.
    """
    limits = limits or Limits()
    sandbox_limits = sandbox_limits or fitting_sandbox(limits)
    source, target = source.resolve(strict=True), target.absolute()
    private = Path(tempfile.mkdtemp(prefix="decode-", dir=target.parent))
    try:
        decoded = private / "decoded.wav"
        arguments = ("decode", str(source), str(decoded), "--limits", json.dumps(dataclasses.asdict(limits)))
        program = sandbox.python_command("models.media", *arguments)
        outcome = sandbox.run(program, sandbox_limits, folder=private, cancelled=cancelled)
        info = _media_info(outcome, sandbox_limits)
        decoded.replace(target)
        return info
    finally:
        shutil.rmtree(private, ignore_errors=True)


def fitting_sandbox(limits: Limits) -> sandbox.SandboxLimits:
    """Return limits of the child process a little above those of the decoder, whose errors are more precise."""
    return sandbox.SandboxLimits(
        seconds=SECONDS,
        cpu_seconds=SECONDS + 1,
        memory_bytes=MEMORY_BYTES,
        file_bytes=int(limits.samples) * 4 + HEADER_BYTES,
    )


def _media_info(outcome: sandbox.Outcome, limits: sandbox.SandboxLimits) -> MediaInfo:
    """Return what the child reports, or raise the error that it or its end stands for."""
    if outcome.status == "cancelled":
        raise Cancelled("decoding was cancelled")
    if outcome.status == "timed_out":
        raise DecodeTimedOut(f"decoding took longer than {limits.seconds:g} s")
    if outcome.status == "crashed" and outcome.signal is not None:
        raise AudioUndecodable(f"the decoder crashed on this file ({outcome.signal.name})")
    if outcome.status == "flooded":
        raise AudioUndecodable("the decoder failed on this file")
    if outcome.returncode == 2:
        # This machine or a defect is the cause, not the file.
        message = outcome.errors.decode(errors="replace").strip()[-500:]
        number = next((each for each in DiskFull.errnos if message.endswith(os.strerror(each))), errno.EIO)
        raise OSError(number, f"the decoder failed: {message}")
    try:
        report = json.loads(outcome.output)
        if "ok" in report:
            return MediaInfo(**report["ok"])
        raise _ERRORS.get(report["error"]["code"], AudioUndecodable)(report["error"]["detail"])
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("the decoder reported no result: %s", outcome.errors.decode(errors="replace").strip()[-2000:])
        raise AudioUndecodable("the decoder failed on this file") from error
