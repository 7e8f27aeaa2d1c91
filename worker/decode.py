"""Decoding of untrusted media in a sandbox: a child process that may crash, hang or be killed without harm to this
one. Plain WAV needs no decoder, and so no sandbox, whose child takes three times as long as the samples."""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from app.errors import DiskFull
from app.media.sandbox import Outcome, Sandbox, SandboxLimits
from models.errors import AudioUndecodable, Cancelled, MediaError
from models.media import Limits, MediaInfo
from models.media.decoding import FAILED, arguments, convert_plain, read_report

logger = logging.getLogger(__name__)

SANDBOX = Sandbox("models.media.decoding")
# FFmpeg's libraries and numpy take a third of this; a decoder works block by block.
MEMORY_BYTES = 1 << 30
HEADER_BYTES = 4096
# Time to start, and a part of the longest recording's length: stereo decodes 120 times as fast as it sounds; a slow
# codec on a slow machine still passes.
START_SECONDS = 120
SECONDS_PER_SECOND = 1 / 12


class DecodeTimedOut(MediaError):
    """Decoding took longer than the limit."""

    code = "timed_out"


def decode(
    source: Path,
    target: Path,
    limits: Limits | None = None,
    *,
    track: int | None = None,
    sandbox_limits: SandboxLimits | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> MediaInfo:
    """Decode a track of the media file `source` to `target`, a WAV of 32-bit floats at its own rate and channels.

    Return its description with the exact number of frames. limits: of the audio; track: counted from 1, by default
    the first that can be read; sandbox_limits: of the child process,
    by default those that fit `limits`. `cancelled` is called 20 times a second, or before each block; the child is
    killed when it is true.
    Raises AudioUndecodable (also when the decoder crashes), AudioTooLong, AudioTooWide, DecodeTimedOut, Cancelled, all
    without a target left behind; OSError for an error of this machine: no source, a full disk.
    """
    limits = limits or Limits()
    sandbox_limits = sandbox_limits or fitting_sandbox(limits)
    source, target = source.resolve(strict=True), target.absolute()
    private = Path(tempfile.mkdtemp(prefix="decode-", dir=target.parent))
    try:
        decoded = private / "decoded.wav"
        info = convert_plain(source, decoded, limits, track, check=lambda: _require_wanted(cancelled))
        if info is not None:
            decoded.replace(target)
            return info
        words = arguments(source, decoded, limits, track)
        outcome = SANDBOX.run("models.media.decoding", words, sandbox_limits, folder=private, cancelled=cancelled)
        info = _media_info(outcome, sandbox_limits)
        decoded.replace(target)
        return info
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _require_wanted(cancelled: Callable[[], bool] | None) -> None:
    if cancelled is not None and cancelled():
        raise Cancelled("decoding was cancelled")


def fitting_sandbox(limits: Limits) -> SandboxLimits:
    """Return limits of the child process a little above those of the decoder, whose errors are more precise."""
    seconds = math.ceil(START_SECONDS + SECONDS_PER_SECOND * limits.seconds)
    return SandboxLimits(
        seconds=seconds,
        cpu_seconds=seconds + 1,
        memory_bytes=MEMORY_BYTES,
        file_bytes=int(limits.samples) * 4 + HEADER_BYTES,
    )


def _media_info(outcome: Outcome, limits: SandboxLimits) -> MediaInfo:
    """Return what the child reports, or raise the error that it or its end stands for."""
    if outcome.status == "cancelled":
        raise Cancelled("decoding was cancelled")
    if outcome.status == "timed_out":
        raise DecodeTimedOut(f"decoding took longer than {limits.seconds:g} s")
    if outcome.status == "flooded":
        raise AudioUndecodable(FAILED)
    if outcome.returncode == 2:
        # This machine or a defect is the cause, not the file.
        message = outcome.errors.decode(errors="replace").strip()[-500:]
        number = next((each for each in DiskFull.errnos if message.endswith(os.strerror(each))), errno.EIO)
        raise OSError(number, f"the decoder failed: {message}")
    returncode = -outcome.signal if outcome.signal is not None else outcome.returncode or 0
    try:
        return read_report(returncode, outcome.output, outcome.errors)
    except AudioUndecodable as error:
        if error.detail == FAILED:
            logger.warning("the decoder has no result: %s", outcome.errors.decode(errors="replace").strip()[-2000:])
        raise
