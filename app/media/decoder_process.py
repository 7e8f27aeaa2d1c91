"""Decoder processes: modules that decode a recording in the sandbox, and write the result or a refusal to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from app.errors import AudioTooLong, AudioUndecodable, SpanOutside
from app.media import priority
from app.media.sandbox import Sandbox, SandboxLimits

# Refusals with a meaning: a recording that exceeds the limits on its length, and one that ends before a section.
TOO_LONG, OUTSIDE = "too long", "outside"
# Their zygote has imported what they need. The front end itself loads no decoder.
SANDBOX = Sandbox(*(f"app.media.{name}" for name in ("probe", "waveform", "spectrogram", "sections", "filter_graph")))
NO_AUDIO = "The file holds no audio that can be decoded."
_REFUSED = 1  # exit status

Result = TypeVar("Result")


async def run(
    module: str, path: Path, numbers: Iterable[float], limits: SandboxLimits, parse: Callable[[bytes], Result]
) -> Result:
    """Return what a module writes about the recording at `path`, parsed by a function that may raise ValueError.

    Raises AudioUndecodable, also if it takes too long; AudioTooLong, SpanOutside.
    """
    outcome = await SANDBOX.run_async(module, [str(path.absolute()), *map(str, numbers)], limits)
    if outcome.status == "timed_out":
        raise AudioUndecodable("The recording takes too long to decode.")
    try:
        if outcome.is_success:
            return parse(outcome.output)
        refusal = json.loads(outcome.output)["refused"] if outcome.returncode == _REFUSED else ""
    except (ValueError, KeyError, TypeError):
        refusal = ""
    if refusal == TOO_LONG:
        raise AudioTooLong("The recording is longer than is allowed.")
    if refusal == OUTSIDE:
        raise SpanOutside("The recording ends before the section.")
    raise AudioUndecodable(refusal or "The recording cannot be decoded safely.")


def answer(decode: Callable[[], bytes]) -> int:
    """Write to stdout what `decode` returns, or {"refused": detail}; return the exit status of the module.

    To be called in the sandbox.
    """
    from app.media.opening import Refused  # the front end itself loads no decoder

    priority.lower_after(priority.SHORT_SECONDS)
    try:
        content, status = decode(), 0
    except (ValueError, OSError, MemoryError) as error:
        detail = str(error) if isinstance(error, Refused) else "The file cannot be read."
        content, status = json.dumps({"refused": detail}).encode(), _REFUSED
    sys.stdout.buffer.write(content)
    return status
