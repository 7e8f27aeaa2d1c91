"""What the tests of faults and of scheduling measured, as tables for docker/README.md."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from tests.end_to_end.deployment import ROOT

SOAK = bool(os.environ.get("EARMARK_SOAK"))
README = ROOT / "docker" / "README.md"
COLUMNS = {
    "faults": ("what happens", "what it costs", "measured"),
    "scheduling": ("workers", "the ten short jobs", "the long job"),
}


@dataclass
class Figures:
    """Rows of the tables, in the order in which tests measured them."""

    rows: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)

    def add(self, table: str, *cells: str) -> None:
        """A measurement."""
        print(" | ".join(cells))
        self.rows.setdefault(table, []).append(cells)

    def write(self, path: Path = README) -> None:
        """Put the tables between their marks; those of which nothing was measured stay as they are."""
        text = path.read_text()
        for table, rows in self.rows.items():
            lines = [COLUMNS[table], ("---",) * len(COLUMNS[table]), *rows]
            begin, end = f"<!-- {table}: begin -->\n", f"<!-- {table}: end -->"
            before, _, rest = text.partition(begin)
            after = rest.partition(end)[2]
            text = before + begin + "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + end + after
        path.write_text(text)
