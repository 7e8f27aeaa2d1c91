"""Rates and latencies measured by the load generator wrk."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import programs

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Measurement:
    """Responses per second, the 99th percentile of their latency in seconds, and the number of failures."""

    rate: float
    p99: float
    failures: int


def measure(
    url: str,
    folder: Path,
    *,
    seconds: int,
    connections: int,
    headers: dict[str, str] | None = None,
    body: Any = None,
    pause: float = 0.0,
) -> Measurement:
    """Send requests at full rate, or with a pause (s) after each response on a connection; POST if there is a body."""
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
    output = subprocess.run(
        [*command, "--latency", "--script", str(script), url],
        env=programs.environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    latency = re.search(r"99%\s+([\d.]+)(us|ms|s|m)", output)
    failures = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    if rate is None or latency is None:
        raise SystemExit(f"wrk measured nothing:\n{output}")
    return Measurement(float(rate[1]), float(latency[1]) * _UNITS[latency[2]], int(failures[1]) if failures else 0)
