"""Measurements of the tests of faults and scheduling, as tables for docker/README.md."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.end_to_end.deployment import ROOT

SOAK = bool(os.environ.get("EARMARK_SOAK"))
README = ROOT / "docker" / "README.md"
COLUMNS = {
    "capacity": (
        "what one key does",
        "what another key asks for",
        "before, median",
        "longest",
        "meanwhile, median",
        "longest",
    ),
    "faults": ("what happens", "what it costs", "measured"),
    "clocks": ("clock of the worker", "clock of housekeeping", "its job waits again"),
    "outages": ("what happens", "what it costs", "measured"),
    "versions": ("phase", "workers", "jobs that name", "jobs", "done by"),
    "many": ("jobs, workers", "killed", "of the jobs", "time"),
    "worst-day": (
        "the other key's",
        "times",
        "p50 before",
        "beside busy loops",
        "during",
        "p99 before",
        "beside busy loops",
        "during",
    ),
    "worst-day-cpu": ("CPU time of", "before", "during"),
    "attacks": ("the attack", "answers"),
    "long": ("recording", "time", "peak memory of the worker", "peak scratch", "checked"),
    "scheduling": ("workers", "the ten short jobs", "the long job"),
}


@dataclass
class Figures:
    """Rows of the tables, in the order of measurement."""

    rows: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def add(self, table: str, *cells: str) -> None:
        """Add a row."""
        print(" | ".join(cells))
        self.rows.setdefault(table, []).append(cells)

    def _machine(self) -> str:
        """Describe the machine and its load."""
        minutes = (time.monotonic() - self.started) / 60
        load = os.getloadavg()[1 if minutes < 10 else 2]
        return (
            f"On {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, in {minutes:.0f} minutes, "
            f"with a load average of {load:.1f} on all of them."
        )

    def write(self, path: Path = README) -> None:
        """Write the tables between their marks; tables without measurements are unchanged."""
        text = path.read_text()
        for table, rows in self.rows.items():
            lines = [COLUMNS[table], ("---",) * len(COLUMNS[table]), *rows]
            begin, end = f"<!-- {table}: begin -->\n", f"<!-- {table}: end -->"
            before, _, rest = text.partition(begin)
            after = rest.partition(end)[2]
            table_text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
            text = f"{before}{begin}{table_text}\n{self._machine()}\n{end}{after}"
        path.write_text(text)
