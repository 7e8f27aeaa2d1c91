"""wrk, the load generator: its rate and its latencies."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import programs

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Measured:
    """Answers a second, the 99th percentile of their seconds, and how many were no success."""

    rate: float
    p99: float
    failed: int


def measure(
    url: str,
    folder: Path,
    *,
    seconds: int,
    connections: int,
    headers: dict[str, str] | None = None,
    body: Any = None,
    pause: float = 0.0,
) -> Measured:
    """Ask as often as can be, or with a pause (s) after each answer of a connection; POST where there is a body."""
    lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in (headers or {}).items()]
    if body is not None:
        lines += ['wrk.method = "POST"', 'wrk.headers["Content-Type"] = "application/json"']
        lines += [f"wrk.body = [[{json.dumps(body)}]]"]
    if pause:
        lines += [f"function delay() return {round(pause * 1000)} end"]
    script = folder / "wrk.lua"
    script.write_text("\n".join(lines) + "\n")
    program = programs.find("wrk")
    if program is None:
        raise SystemExit("wrk is missing: make tools")
    command = [str(program), "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    told = subprocess.run(
        [*command, "--latency", "--script", str(script), url],
        env=programs.environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", told)
    slow = re.search(r"99%\s+([\d.]+)(us|ms|s|m)", told)
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", told)
    if rate is None or slow is None:
        raise SystemExit(f"wrk measured nothing:\n{told}")
    return Measured(float(rate[1]), float(slow[1]) * _UNITS[slow[2]], int(failed[1]) if failed else 0)
