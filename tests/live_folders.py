"""Folders that programs change meanwhile: `Path.rglob` fails where a folder is deleted under it."""

import os
from pathlib import Path


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and below it; some may be gone already."""
    return [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]
